// Attention with online softmax over tiles of keys (FlashAttention-2, Dao 2023).
//
// s_ik = scale q_i k_k, lse_i = ln sum_k exp(s_ik), o_i = sum_k exp(s_ik - lse_i) v_k over the keys
// of the token's span. Weights are kept as powers of two: log2(e) is part of the scale.
//
// mma: bf16 on tensor cores, attention_flash.cuh. decode: few tokens, attention_decode.cuh.
//
// tiled: f32 arithmetic. A block takes BQ query rows of one key-value head (rows are (token, sharing
// head), see Rows) and goes through the keys that any of them sees, BK at a time. V arrives while
// the scores are taken, the next K while V is weighed. Row r is shared by 16 neighbouring threads.
#include "attention_decode.cuh"
#include "attention_flash.cuh"
#include "attention_tiles.cuh"

template <typename T, typename C, u32 D, u32 BQ, u32 BK>
__device__ __forceinline__ void attention_tiled(
    const Attention& p, const T* __restrict__ q, const C* __restrict__ k, const C* __restrict__ v,
    const u32* __restrict__ span, T* __restrict__ o, float* __restrict__ lse) {
    const u32 R = 4;
    const u32 KEYS = BK / LANES;
    const u32 THREADS = BQ / R * LANES;
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ u32 first[BQ];
    __shared__ u32 end[BQ];
    float* queries = (float*)smem;
    float* keys = queries + BQ * (D + 4);
    float* values = keys + BK * (D + 4);
    float* weights = values + BK * (D + 4);

    Place place(p);
    Rows rows(p, place.kv);
    u32 start = place.tile * BQ;
    Spans<BQ> spans = {first, end};
    spans.load(p, rows, span, start);
    Incoming<T, D, BQ, THREADS> own;
    own.start(queries, q, p.d, wide_rows(q, p.d), [&](u32 r) {
        return start + r < rows.count ? q + rows.at(start + r) * p.d : (const T*)nullptr;
    });
    own.finish(queries, p.d);
    __syncthreads();

    bool wide = wide_rows(k, p.d) && wide_rows(v, p.d);
    u32 stop = spans.end[BQ - 1];
    Incoming<C, D, BK, THREADS> incoming;
    auto start_keys = [&](float* tile, const C* x, u32 key) {
        bool all = spans.one_sees(key, key + BK);
        incoming.start(tile, x, p.d, wide, [&](u32 r) {
            bool take = all || spans.somebody_sees(key + r);
            return take ? x + ((u64)(key + r) * p.g + place.kv) * p.d : (const C*)nullptr;
        });
    };

    u32 lane = threadIdx.x % LANES;
    u32 row = threadIdx.x / LANES * R;
    float scale = p.scale * LOG2E;
    float most[R], sum[R];
    Part<D, R> out;
    out.clear();
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        most[r] = NOTHING;
        sum[r] = 0.0f;
    }
    start_keys(keys, k, spans.first[0]);
    for (u32 key = spans.first[0]; key < stop; key += BK) {
        incoming.finish(keys, p.d);
        __syncthreads();  // The keys are here, and nobody needs the last values any more.
        start_keys(values, v, key);
        float s[R][KEYS];
        multiply_rows<D>(s, queries + row * (D + 4), keys + lane * (D + 4), p.d);
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            Span seen = spans.of(row + r);
            float high = most[r];
#pragma unroll
            for (u32 c = 0; c < KEYS; c++) {
                s[r][c] = seen.sees(key + lane + c * LANES) ? s[r][c] * scale : NEGATIVE_INFINITY;
                high = fmaxf(high, s[r][c]);
            }
            high = reduce_lanes<Max>(high);
            float shrink = fast_exp2(most[r] - high);
            most[r] = high;
            sum[r] *= shrink;
            out.multiply(r, shrink);
#pragma unroll
            for (u32 c = 0; c < KEYS; c++) {
                float weight = fast_exp2(s[r][c] - high);
                sum[r] += weight;
                weights[(row + r) * (BK + 4) + lane + c * LANES] = weight;
            }
        }
        incoming.finish(values, p.d);
        __syncthreads();  // The values are here, and nobody needs the keys any more.
        if (key + BK < stop) {
            start_keys(keys, k, key + BK);
        }
        out.template add<BK>(weights + row * (BK + 4), values, p.d);
    }
    copy_async_wait<0>();

    bool wide_out = wide_rows(o, p.d);
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        float total = reduce_lanes<Sum>(sum[r]);
        if (start + row + r < rows.count) {
            u64 at = rows.at(start + row + r);
            out.store(o + at * p.d, r, total > 0.0f ? 1.0f / total : 0.0f, p.d, wide_out);
            if (lane == 0) {
                lse[at] = total > 0.0f ? most[r] * LN2 + logf(total) : NOTHING;
            }
        }
    }
}

// Entries: head size up to 64, 128, 256; query rows and keys of a tile as in `tiled` of the row's CUDA table.

extern "C" __global__ void __launch_bounds__(256) attention_tiled64_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, float, 64, 64, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(256) attention_tiled64_f32_f16(
    Attention p, const float* q, const f16* k, const f16* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, f16, 64, 64, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(256) attention_tiled128_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, float, 128, 64, 32>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(256) attention_tiled128_f32_f16(
    Attention p, const float* q, const f16* k, const f16* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, f16, 128, 64, 32>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_tiled256_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, float, 256, 32, 16>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_tiled256_f32_f16(
    Attention p, const float* q, const f16* k, const f16* v, const u32* span, float* o, float* lse) {
    attention_tiled<float, f16, 256, 32, 16>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_tiled256_bf16(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_tiled<bf16, bf16, 256, 32, 16>(p, q, k, v, span, o, lse);
}

// Entries: heads of a block.

extern "C" __global__ void __launch_bounds__(128) attention_decode1_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse, float* scratch) {
    attention_decode<float, float, 1, 2>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode1_f32_f16(
    Attention p, const float* q, const f16* k, const f16* v, const u32* span, float* o, float* lse, float* scratch) {
    attention_decode<float, f16, 1, 4>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode1_bf16(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse, float* scratch) {
    attention_decode<bf16, bf16, 1, 4>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode4_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse, float* scratch) {
    attention_decode<float, float, 4, 2>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode4_f32_f16(
    Attention p, const float* q, const f16* k, const f16* v, const u32* span, float* o, float* lse, float* scratch) {
    attention_decode<float, f16, 4, 4>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode4_bf16(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse, float* scratch) {
    attention_decode<bf16, bf16, 4, 4>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode8_f32(
    Attention p, const float* q, const float* k, const float* v, const u32* span, float* o, float* lse, float* scratch) {
    attention_decode<float, float, 8, 2>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode8_f32_f16(
    Attention p, const float* q, const f16* k, const f16* v, const u32* span, float* o, float* lse, float* scratch) {
    attention_decode<float, f16, 8, 2>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode8_bf16(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse, float* scratch) {
    attention_decode<bf16, bf16, 8, 2>(p, q, k, v, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_join_f32(
    Attention p, const float*, const void*, const void*, const u32* span, float* o, float* lse, const float* scratch) {
    attention_join<float>(p, span, o, lse, scratch);
}

extern "C" __global__ void __launch_bounds__(128) attention_join_bf16(
    Attention p, const bf16*, const void*, const void*, const u32* span, bf16* o, float* lse, const float* scratch) {
    attention_join<bf16>(p, span, o, lse, scratch);
}

// Entries: head size up to 64, 128, 256; query rows of a block. The second bound keeps ptxas from spilling for
// the sake of a third block on a processor.

extern "C" __global__ void __launch_bounds__(128) attention_mma64_64(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<64, 1, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_mma64_128(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<64, 2, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_mma128_64(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<128, 1, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_mma128_128(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<128, 2, 64>(p, q, k, v, span, o, lse);
}

extern "C" __global__ void __launch_bounds__(128) attention_mma256_64(
    Attention p, const bf16* q, const bf16* k, const bf16* v, const u32* span, bf16* o, float* lse) {
    attention_flash<256, 1, 32>(p, q, k, v, span, o, lse);
}
