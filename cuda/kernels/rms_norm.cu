// y = w * x * r with r = 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019).
// x[m,k], w[k] -> y[m,k], r[m]
//
// Short rows take a part of a warp, others a block. A thread keeps its elements in registers, so
// that x is read once; what a row has beyond HELD elements a thread is read twice. The weight is
// loaded before the sum, to have both loads under way at once.
#include "rows.cuh"

struct RmsNorm {
    u32 m, k;
    float eps;
};

template <typename T, bool WIDE>
__device__ __forceinline__ void rms_norm(
    const RmsNorm& p, const T* __restrict__ x, const float* __restrict__ w, T* __restrict__ y, float* __restrict__ r) {
    constexpr u32 N = PACK<T>;
    __shared__ float scratch[WARP];
    RowShare share = share_rows<N>(p.k);
    bool live = share.row < p.m;
    u32 k = live ? p.k : 0;
    const T* row = x + (u64)share.row * row_stride<T>(p.k);
    T* out = y + (u64)share.row * row_stride<T>(p.k);
    u32 step = share.threads * N;
    u32 held = share.threads * HELD;

    float v[HELD / N][N], weight[HELD / N][N];
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        load_pack<WIDE>(v[i], row, share.thread * N + i * step, k);
    }
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        load_pack<WIDE>(weight[i], w, share.thread * N + i * step, k);
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            sum += v[i][l] * v[i][l];
        }
    }
    for (u32 j = held + share.thread * N; j < k; j += step) {
        float more[N];
        load_pack<WIDE>(more, row, j, k);
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            sum += more[l] * more[l];
        }
    }
    sum = row_reduce<Sum>(share, sum, 0.0f, scratch);
    float factor = 1.0f / sqrtf(sum / (float)p.k + p.eps);
    if (live && share.thread == 0) {
        r[share.row] = factor;
    }

#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            v[i][l] = weight[i][l] * (v[i][l] * factor);
        }
        store_pack<WIDE>(out, share.thread * N + i * step, k, v[i]);
    }
    for (u32 j = held + share.thread * N; j < k; j += step) {
        float more[N], scale[N];
        load_pack<WIDE>(more, row, j, k);
        load_pack<WIDE>(scale, w, j, k);
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            more[l] = scale[l] * (more[l] * factor);
        }
        store_pack<WIDE>(out, j, k, more);
    }
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_f32(RmsNorm p, const float* x, const float* w, float* y, float* r) {
    rms_norm<float, false>(p, x, w, y, r);
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_bf16(RmsNorm p, const bf16* x, const float* w, bf16* y, float* r) {
    rms_norm<bf16, false>(p, x, w, y, r);
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_vector_f32(RmsNorm p, const float* x, const float* w, float* y, float* r) {
    rms_norm<float, true>(p, x, w, y, r);
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_vector_bf16(RmsNorm p, const bf16* x, const float* w, bf16* y, float* r) {
    rms_norm<bf16, true>(p, x, w, y, r);
}
