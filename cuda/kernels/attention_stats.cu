// What the gradients of attention need of a row: stats = (lse, sum over d of o * do)
// (Dao 2023, algorithm 2). o[m,h,d], do[m,h,d], lse[m,h] -> stats[m,h,2]
//
// A row of m * h takes as many lanes of a warp as it has packs of 16 bytes, so that a warp reads a
// whole number of rows side by side; a row of more than 512 elements takes a block.
#include "rows.cuh"

struct AttentionStats {
    u32 m, h, d;
};

template <typename T, bool WIDE>
__device__ __forceinline__ void attention_stats(
    const AttentionStats& p,
    const T* __restrict__ o,
    const T* __restrict__ upstream,
    const float* __restrict__ lse,
    float* __restrict__ stats) {
    constexpr u32 N = PACK<T>;
    __shared__ float scratch[WARP];
    RowShare share = share_rows<N>(p.d);
    bool live = share.row < p.m * p.h;
    u32 d = live ? p.d : 0;
    u64 first = (u64)share.row * row_stride<T>(p.d);
    float sum = 0.0f;
    for (u32 j = share.thread * N; j < d; j += share.threads * N) {
        float a[N], b[N];
        load_pack<WIDE>(a, o + first, j, d);
        load_pack<WIDE>(b, upstream + first, j, d);
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            sum += a[l] * b[l];
        }
    }
    sum = row_reduce<Sum>(share, sum, 0.0f, scratch);
    if (live && share.thread == 0) {
        stats[2 * (u64)share.row] = lse[share.row];
        stats[2 * (u64)share.row + 1] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(512) attention_stats_f32(
    AttentionStats p, const float* o, const float* upstream, const float* lse, float* stats) {
    attention_stats<float, false>(p, o, upstream, lse, stats);
}

extern "C" __global__ void __launch_bounds__(512) attention_stats_bf16(
    AttentionStats p, const bf16* o, const bf16* upstream, const float* lse, float* stats) {
    attention_stats<bf16, false>(p, o, upstream, lse, stats);
}

extern "C" __global__ void __launch_bounds__(512) attention_stats_vector_f32(
    AttentionStats p, const float* o, const float* upstream, const float* lse, float* stats) {
    attention_stats<float, true>(p, o, upstream, lse, stats);
}

extern "C" __global__ void __launch_bounds__(512) attention_stats_vector_bf16(
    AttentionStats p, const bf16* o, const bf16* upstream, const float* lse, float* stats) {
    attention_stats<bf16, true>(p, o, upstream, lse, stats);
}
