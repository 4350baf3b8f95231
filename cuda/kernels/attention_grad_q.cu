// Gradient of attention with respect to the queries (FlashAttention-2, Dao 2023).
//
// With p_ik = exp(scale q_i k_k - lse_i) and stats_i = (lse_i, delta_i):
// dq_i = scale sum_k p_ik (do_i v_k - delta_i) k_k, in one pass over the keys that a tile of rows sees.
//
// mma: bf16 on tensor cores; a warp keeps 16 query rows and their gradients. Otherwise as tiled.
//
// tiled: f32 arithmetic. A block takes BQ query rows of one key-value head and BK keys at a time.
// Keys arrive while do v is taken, the next values while the rest is computed.
#include "attention_mma.cuh"
#include "attention_tiles.cuh"

struct AttentionGradQ : Attention {};

template <typename T, u32 D, u32 BQ, u32 BK, u32 R>
__device__ __forceinline__ void attention_grad_q_tiled(
    const AttentionGradQ& p, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
    const u32* __restrict__ span, const float* __restrict__ stats, const T* __restrict__ d_o, T* __restrict__ dq) {
    const u32 KEYS = BK / LANES;
    const u32 THREADS = BQ / R * LANES;
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ u32 first[BQ];
    __shared__ u32 end[BQ];
    float* queries = (float*)smem;
    float* upstream = queries + BQ * (D + 4);
    float* keys = upstream + BQ * (D + 4);
    float* values = keys + BK * (D + 4);
    float* slopes = values + BK * (D + 4);

    Place place(p);
    Rows rows(p, place.kv);
    u32 start = place.tile * BQ;
    Spans<BQ> spans(p, rows, span, start, first, end);
    Incoming<T, D, BQ, THREADS> own;
    for (u32 side = 0; side < 2; side++) {
        const T* x = side == 0 ? q : d_o;
        float* tile = side == 0 ? queries : upstream;
        own.start(tile, x, p.d, wide_rows(x, p.d), [&](u32 r) {
            return start + r < rows.count ? x + rows.at(start + r) * p.d : (const T*)nullptr;
        });
        own.finish(tile, p.d);
    }
    __syncthreads();

    bool wide = wide_rows(k, p.d) && wide_rows(v, p.d);
    u32 stop = spans.stop();
    Incoming<T, D, BK, THREADS> incoming;
    auto start_keys = [&](float* tile, const T* x, u32 key) {
        bool all = spans.one_sees(key, key + BK);
        incoming.start(tile, x, p.d, wide, [&](u32 r) {
            bool take = all || spans.somebody_sees(key + r);
            return take ? x + ((u64)(key + r) * p.g + place.kv) * p.d : (const T*)nullptr;
        });
    };

    u32 lane = threadIdx.x % LANES;
    u32 row = threadIdx.x / LANES * R;
    float scale = p.scale * LOG2E;
    float lse[R], delta[R];
    Part<D, R> out;
    out.clear();
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        u32 known = start + row + r < rows.count ? start + row + r : rows.count - 1;
        lse[r] = stats[2 * rows.at(known)] * LOG2E;
        delta[r] = stats[2 * rows.at(known) + 1];
    }
    u32 key = spans.start();
    start_keys(values, v, key);
    while (key < stop) {
        incoming.finish(values, p.d);
        __syncthreads();  // The values are here, and nobody needs the last keys any more.
        start_keys(keys, k, key);
        float s[R][KEYS], slope[R][KEYS];
        multiply_rows<D>(slope, upstream + row * (D + 4), values + lane * (D + 4), p.d);
        incoming.finish(keys, p.d);
        __syncthreads();  // The keys are here, and nobody needs the values any more.
        u32 next = spans.skip(key + BK);
        if (next < stop) {
            start_keys(values, v, next);
        }
        multiply_rows<D>(s, queries + row * (D + 4), keys + lane * (D + 4), p.d);
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            Span seen = spans.of(row + r);
#pragma unroll
            for (u32 c = 0; c < KEYS; c++) {
                bool sees = seen.sees(key + lane + c * LANES);
                float weight = sees ? fast_exp2(s[r][c] * scale - lse[r]) : 0.0f;
                float ds = sees ? weight * (slope[r][c] - delta[r]) : 0.0f;
                slopes[(row + r) * (BK + 4) + lane + c * LANES] = ds;
            }
        }
        __syncwarp();  // Rows of slopes are written and read by the same 16 threads.
        out.template add<BK>(slopes + row * (BK + 4), keys, p.d);
        __syncwarp();
        key = next;
    }
    copy_async_wait<0>();

    bool wide_out = wide_rows(dq, p.d);
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        if (start + row + r < rows.count) {
            out.store(dq + rows.at(start + row + r) * p.d, r, p.scale, p.d, wide_out);
        }
    }
}

template <u32 D, u32 BK>
__device__ __forceinline__ void attention_grad_q_mma(
    const AttentionGradQ& p, const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
    const u32* __restrict__ span, const float* __restrict__ stats, const bf16* __restrict__ d_o,
    bf16* __restrict__ dq) {
    const u32 BQ = 64;
    const u32 THREADS = 128;
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ u32 first[BQ];
    __shared__ u32 end[BQ];
    Chunks<D> queries = {smem};
    Chunks<D> upstream = {smem + BQ * Chunks<D>::ROW};
    Chunks<D> keys = {smem + 2 * BQ * Chunks<D>::ROW};
    Chunks<D> values = {smem + (2 * BQ + BK) * Chunks<D>::ROW};

    Place place(p);
    Rows rows(p, place.kv);
    u32 start = place.tile * BQ;
    Spans<BQ> spans(p, rows, span, start, first, end);
    auto load_rows = [&](const Chunks<D>& tile, const bf16* x) {
        tile.template load<BQ, THREADS, 4>(x, p.d, [&](u32 r) {
            return start + r < rows.count ? x + rows.at(start + r) * p.d : (const bf16*)nullptr;
        });
    };
    load_rows(queries, q);
    load_rows(upstream, d_o);
    __syncthreads();

    u32 stop = spans.stop();
    KeyLoader<D, BQ, BK, THREADS> load = {spans, (u64)p.g * p.d, place.kv * p.d, p.d};
    u32 lane = threadIdx.x % WARP;
    u32 row = threadIdx.x / WARP * 16;
    Sight sight = {spans.of(row), spans.of(row + 15)};
    float scale = p.scale * LOG2E;
    float lse[2], delta[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 r = start + row + 8 * i + lane / 4;
        u64 at = 2 * rows.at(r < rows.count ? r : rows.count - 1);
        lse[i] = stats[at] * LOG2E;
        delta[i] = stats[at + 1];
    }
    float out[1][D / 8][4];
    clear_sums(out);
    u32 key = spans.start();
    load.keys(values, v, key);
    while (key < stop) {
        copy_async_wait<0>();
        __syncthreads();  // The values are here, and nobody needs the last keys any more.
        load.keys(keys, k, key);
        bool some = sight.some(key, key + BK);
        float slope[1][BK / 8][4];
        if (some) {
            multiply_transposed(slope, upstream, row, values);
        }
        copy_async_wait<0>();
        __syncthreads();  // The keys are here, and nobody needs the values any more.
        u32 next = spans.skip(key + BK);
        if (next < stop) {
            load.keys(values, v, next);
        }
        if (some) {
            float s[1][BK / 8][4];
            multiply_transposed(s, queries, row, keys);
            if (!sight.all(key, key + BK)) {
                mask_columns<BK / 8>(s[0], key, spans.of(row + lane / 4), spans.of(row + lane / 4 + 8));
            }
#pragma unroll
            for (u32 i = 0; i < BK / 2; i++) {
                u32 half = i % 4 / 2;
                float weight = fast_exp2(s[0][i / 4][i % 4] * scale - lse[half]);
                s[0][i / 4][i % 4] = weight * (slope[0][i / 4][i % 4] - delta[half]);
            }
            u32 slopes[1][BK / 16][4];
#pragma unroll
            for (u32 j = 0; j < BK / 16; j++) {
                left_of_sums(slopes[0][j], s[0][2 * j], s[0][2 * j + 1]);
            }
            multiply_add<D>(out, slopes, keys);
        }
        key = next;
    }
    copy_async_wait<0>();
    __syncthreads();  // Without a key nobody has waited for the queries that other warps copy.
    queries.store(row, out[0], p.scale, p.scale);
    __syncwarp();
    queries.template write<16>(row, p.d, [&](u32 r) {
        u32 at = start + row + r;
        return at < rows.count ? dq + rows.at(at) * p.d : (bf16*)nullptr;
    });
}

// Entries: head size up to 64, 128, 256; query rows and keys of a tile and rows of a thread as in
// `tiled` of the row's CUDA table.

extern "C" __global__ void __launch_bounds__(256) attention_grad_q_tiled64_f32(
    AttentionGradQ p, const float* q, const float* k, const float* v, const u32* span, const float* stats, const float* d_o,
    float* dq) {
    attention_grad_q_tiled<float, 64, 64, 64, 4>(p, q, k, v, span, stats, d_o, dq);
}

extern "C" __global__ void __launch_bounds__(128) attention_grad_q_tiled128_f32(
    AttentionGradQ p, const float* q, const float* k, const float* v, const u32* span, const float* stats, const float* d_o,
    float* dq) {
    attention_grad_q_tiled<float, 128, 32, 32, 4>(p, q, k, v, span, stats, d_o, dq);
}

extern "C" __global__ void __launch_bounds__(128) attention_grad_q_tiled256_f32(
    AttentionGradQ p, const float* q, const float* k, const float* v, const u32* span, const float* stats, const float* d_o,
    float* dq) {
    attention_grad_q_tiled<float, 256, 16, 16, 2>(p, q, k, v, span, stats, d_o, dq);
}

extern "C" __global__ void __launch_bounds__(128) attention_grad_q_tiled256_bf16(
    AttentionGradQ p, const bf16* q, const bf16* k, const bf16* v, const u32* span, const float* stats, const bf16* d_o,
    bf16* dq) {
    attention_grad_q_tiled<bf16, 256, 16, 16, 2>(p, q, k, v, span, stats, d_o, dq);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_grad_q_mma64(
    AttentionGradQ p, const bf16* q, const bf16* k, const bf16* v, const u32* span, const float* stats,
    const bf16* d_o, bf16* dq) {
    attention_grad_q_mma<64, 64>(p, q, k, v, span, stats, d_o, dq);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_grad_q_mma128(
    AttentionGradQ p, const bf16* q, const bf16* k, const bf16* v, const u32* span, const float* stats,
    const bf16* d_o, bf16* dq) {
    attention_grad_q_mma<128, 32>(p, q, k, v, span, stats, d_o, dq);
}
