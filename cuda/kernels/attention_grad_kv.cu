// Gradients of attention with respect to keys and values (FlashAttention-2, Dao 2023).
//
// With p_ik = exp(scale q_i k_k - lse_i) and stats_i = (lse_i, delta_i):
// dv_k = sum_i p_ik do_i and dk_k = scale sum_i p_ik (do_i v_k - delta_i) q_i over the query rows
// (token, sharing head) that see key k, in order: spans never decrease, so the tokens whose window has
// a key are neighbours, and so are those of which it is a sink. Keys that nobody sees get 0.
//
// mma: bf16 on tensor cores; a warp keeps the gradients of 16 keys, and the next query rows arrive
// while the present ones are used.
//
// tiled: f32 arithmetic. A block takes BK keys of one key-value head and BQ query rows at a time.
// Queries arrive while v do is taken, the next upstream gradients while dk is summed.
#include "attention_mma.cuh"
#include "attention_tiles.cuh"

struct AttentionGradKv : Attention {};

// Tokens begin .. stop-1 are those from the first to the last that may see a key of from .. to-1; none if
// begin >= stop. A key past the sinks of a document has its window's tokens alone.
__device__ __forceinline__ void find_tokens(
    const Attention& p, const u32* span, u32 from, u32 to, u32& begin, u32& stop) {
    begin = count_leading(p.m, [&](u32 token) { return span_of(p, span, token).end <= from; });
    stop = count_leading(p.m, [&](u32 token) { return span_of(p, span, token).recent < to; });
    if (p.sinks > 0) {
        u32 low = count_leading(p.m, [&](u32 token) { return span_of(p, span, token).sink <= from; });
        u32 high = count_leading(p.m, [&](u32 token) { return span_of(p, span, token).first < to; });
        stop = low < high ? high : stop;
    }
}

template <typename T, u32 D, u32 BK, u32 BQ, u32 R>
__device__ __forceinline__ void attention_grad_kv_tiled(
    const AttentionGradKv& p, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
    const u32* __restrict__ span, const float* __restrict__ stats, const T* __restrict__ d_o, T* __restrict__ dk,
    T* __restrict__ dv) {
    const u32 QUERIES = BQ / LANES;
    const u32 THREADS = BK / R * LANES;
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ uint4 facts[BQ];  // Of each query row of the tile: first key, end, lse, delta.
    float* keys = (float*)smem;
    float* values = keys + BK * (D + 4);
    float* queries = values + BK * (D + 4);
    float* upstream = queries + BQ * (D + 4);
    float* weights = upstream + BQ * (D + 4);

    u32 kv = blockIdx.x % p.g;
    u32 start = blockIdx.x / p.g * BK;
    Rows rows(p, kv);
    u32 begin, stop;
    find_tokens(p, span, start, start + BK, begin, stop);
    begin *= rows.shared;
    stop *= rows.shared;

    bool wide = wide_rows(q, p.d) && wide_rows(d_o, p.d);
    Incoming<T, D, BQ, THREADS> incoming;
    auto start_queries = [&](float* tile, const T* x, u32 query) {
        incoming.start(tile, x, p.d, wide, [&](u32 r) {
            return query + r < stop ? x + rows.at(query + r) * p.d : (const T*)nullptr;
        });
    };
    auto load_facts = [&](u32 query) {
        for (u32 r = threadIdx.x; r < BQ; r += THREADS) {
            uint4 fact = make_uint4(0, 0, 0, 0);
            if (query + r < stop) {
                Span seen = span_of(p, span, (query + r) / rows.shared);
                u64 at = 2 * rows.at(query + r);
                fact = make_uint4(seen.first, seen.end, f32_bits(stats[at] * LOG2E), f32_bits(stats[at + 1]));
            }
            facts[r] = fact;
        }
    };

    u32 lane = threadIdx.x % LANES;
    u32 row = threadIdx.x / LANES * R;
    float scale = p.scale * LOG2E;
    Part<D, R> out_k, out_v;
    out_k.clear();
    out_v.clear();
    if (begin < stop) {
        Incoming<T, D, BK, THREADS> own;
        for (u32 side = 0; side < 2; side++) {
            const T* x = side == 0 ? k : v;
            float* tile = side == 0 ? keys : values;
            own.start(tile, x, p.d, wide_rows(x, p.d), [&](u32 r) {
                return start + r < p.t ? x + ((u64)(start + r) * p.g + kv) * p.d : (const T*)nullptr;
            });
            own.finish(tile, p.d);
        }
        start_queries(upstream, d_o, begin);
        load_facts(begin);
    }
    for (u32 query = begin; query < stop; query += BQ) {
        incoming.finish(upstream, p.d);
        __syncthreads();  // The upstream gradients are here, and nobody needs the last queries any more.
        start_queries(queries, q, query);
        float s[R][QUERIES], slope[R][QUERIES];
        multiply_rows<D>(slope, values + row * (D + 4), upstream + lane * (D + 4), p.d);
        incoming.finish(queries, p.d);
        __syncthreads();
        multiply_rows<D>(s, keys + row * (D + 4), queries + lane * (D + 4), p.d);
#pragma unroll
        for (u32 c = 0; c < QUERIES; c++) {
            uint4 fact = facts[lane + c * LANES];
            Span seen = masked(fact.x, fact.y, p.window, p.sinks);
#pragma unroll
            for (u32 r = 0; r < R; r++) {
                bool sees = seen.sees(start + row + r);
                float weight = sees ? fast_exp2(s[r][c] * scale - bits_f32(fact.z)) : 0.0f;
                slope[r][c] = sees ? weight * (slope[r][c] - bits_f32(fact.w)) : 0.0f;
                weights[(row + r) * (BQ + 4) + lane + c * LANES] = weight;
            }
        }
        __syncwarp();  // Rows of weights are written and read by the same 16 threads.
        out_v.template add<BQ>(weights + row * (BQ + 4), upstream, p.d);
        __syncthreads();  // Nobody needs the upstream gradients, the facts and the weights any more.
        if (query + BQ < stop) {
            start_queries(upstream, d_o, query + BQ);
            load_facts(query + BQ);
        }
#pragma unroll
        for (u32 r = 0; r < R; r++) {
#pragma unroll
            for (u32 c = 0; c < QUERIES; c++) {
                weights[(row + r) * (BQ + 4) + lane + c * LANES] = slope[r][c];
            }
        }
        __syncwarp();
        out_k.template add<BQ>(weights + row * (BQ + 4), queries, p.d);
        __syncwarp();
    }

    bool wide_k = wide_rows(dk, p.d);
    bool wide_v = wide_rows(dv, p.d);
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        if (start + row + r < p.t) {
            u64 at = ((u64)(start + row + r) * p.g + kv) * p.d;
            out_k.store(dk + at, r, p.scale, p.d, wide_k);
            out_v.store(dv + at, r, 1.0f, p.d, wide_v);
        }
    }
}

// Query tokens of one head after the other, BQ at a time.
template <u32 D, u32 BQ>
__device__ __forceinline__ void attention_grad_kv_mma(
    const AttentionGradKv& p, const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
    const u32* __restrict__ span, const float* __restrict__ stats, const bf16* __restrict__ d_o,
    bf16* __restrict__ dk, bf16* __restrict__ dv) {
    const u32 BK = 64;
    const u32 THREADS = 128;
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ uint4 facts[2][BQ];  // Of each query of a stage: first key, last key, lse, delta.
    Chunks<D> keys = {smem};
    Chunks<D> values = {smem + BK * Chunks<D>::ROW};
    Chunks<D> stages = {smem + 2 * BK * Chunks<D>::ROW};  // BQ queries, BQ upstream gradients, twice.

    u32 kv = blockIdx.x % p.g;
    u32 start = blockIdx.x / p.g * BK;
    u32 begin, stop;
    find_tokens(p, span, start, start + BK, begin, stop);
    auto key_row = [&](u32 key) { return ((u64)key * p.g + kv) * p.d; };
    auto load_keys = [&](const Chunks<D>& tile, const bf16* x) {
        tile.template load<BK, THREADS, 4>(x, p.d, [&](u32 r) {
            return start + r < p.t ? x + key_row(start + r) : (const bf16*)nullptr;
        });
    };
    auto load_queries = [&](u32 stage, u32 head, u32 token) {
        for (u32 side = 0; side < 2; side++) {
            const bf16* x = side == 0 ? q : d_o;
            stages.from_row((2 * stage + side) * BQ).template load<BQ, THREADS, 4>(x, p.d, [&](u32 r) {
                return token + r < stop ? x + ((u64)(token + r) * p.h + head) * p.d : (const bf16*)nullptr;
            });
        }
        if (threadIdx.x < BQ) {
            bool take = token + threadIdx.x < stop;
            u64 known = take ? token + threadIdx.x : 0;
            u32* to = (u32*)&facts[stage][threadIdx.x];
            copy_async4(to, span + 2 * known, take);
            copy_async4(to + 1, span + 2 * known + 1, take);
            copy_async4(to + 2, stats + 2 * (known * p.h + head), take);
            copy_async4(to + 3, stats + 2 * (known * p.h + head) + 1, take);
        }
        copy_async_commit();
    };

    u32 lane = threadIdx.x % WARP;
    u32 row = threadIdx.x / WARP * 16;
    u32 key = start + row;
    float scale = p.scale * LOG2E;
    float out_k[1][D / 8][4], out_v[1][D / 8][4];
    clear_sums(out_k);
    clear_sums(out_v);
    u32 head = kv * (p.h / p.g);
    u32 last = begin < stop ? head + p.h / p.g : head;
    u32 token = begin;
    u32 stage = 0;
    if (head < last) {
        load_keys(keys, k);
        load_keys(values, v);
        load_queries(0, head, token);
    }
    while (head < last) {
        copy_async_wait<0>();
        __syncthreads();  // This stage is here, and nobody needs the other one any more.
        u32 present = token;
        token += BQ;
        if (token >= stop) {
            token = begin;
            head++;
        }
        if (head < last) {
            load_queries(stage ^ 1, head, token);
        }
        u32 count = stop - present < BQ ? stop - present : BQ;
        Span low = span_of(p, facts[stage][0].x, facts[stage][0].y);
        Span high = span_of(p, facts[stage][count - 1].x, facts[stage][count - 1].y);
        Sight sight = {low, high};
        if (sight.some(key, key + 16)) {
            Chunks<D> queries = stages.from_row(2 * stage * BQ);
            Chunks<D> upstream = stages.from_row((2 * stage + 1) * BQ);
            float s[1][BQ / 8][4], slope[1][BQ / 8][4];
            multiply_transposed(s, keys, row, queries);
            multiply_transposed(slope, values, row, upstream);
            if (count < BQ || !sight.all(key, key + 16)) {
#pragma unroll
                for (u32 i = 0; i < BQ / 2; i++) {
                    u32 column = i / 4 * 8 + lane % 4 * 2 + i % 2;
                    Span seen = span_of(p, facts[stage][column].x, facts[stage][column].y);
                    bool sees = column < count && seen.sees(key + i % 4 / 2 * 8 + lane / 4);
                    s[0][i / 4][i % 4] = sees ? s[0][i / 4][i % 4] : NEGATIVE_INFINITY;
                    slope[0][i / 4][i % 4] = sees ? slope[0][i / 4][i % 4] : 0.0f;
                }
            }
#pragma unroll
            for (u32 n = 0; n < BQ / 4; n++) {
                uint4 fact = facts[stage][n / 2 * 8 + lane % 4 * 2 + n % 2];
                float lse = bits_f32(fact.z) * LOG2E;
                float delta = bits_f32(fact.w);
#pragma unroll
                for (u32 c = n % 2; c < 4; c += 2) {
                    float weight = fast_exp2(s[0][n / 2][c] * scale - lse);
                    s[0][n / 2][c] = weight;
                    slope[0][n / 2][c] = weight * (slope[0][n / 2][c] - delta);
                }
            }
            u32 weights[1][BQ / 16][4], slopes[1][BQ / 16][4];
#pragma unroll
            for (u32 j = 0; j < BQ / 16; j++) {
                left_of_sums(weights[0][j], s[0][2 * j], s[0][2 * j + 1]);
                left_of_sums(slopes[0][j], slope[0][2 * j], slope[0][2 * j + 1]);
            }
            multiply_add<D>(out_v, weights, upstream);
            multiply_add<D>(out_k, slopes, queries);
        }
        stage ^= 1;
    }

    __syncwarp();  // A warp's results take the place of its own keys and values.
    keys.store(row, out_k[0], p.scale, p.scale);
    values.store(row, out_v[0], 1.0f, 1.0f);
    __syncwarp();
    keys.template write<16>(row, p.d, [&](u32 r) {
        return start + row + r < p.t ? dk + key_row(start + row + r) : (bf16*)nullptr;
    });
    values.template write<16>(row, p.d, [&](u32 r) {
        return start + row + r < p.t ? dv + key_row(start + row + r) : (bf16*)nullptr;
    });
}

// Entries: head size up to 64, 128, 256; keys and query rows of a tile and keys of a thread as in
// `tiled` of the row's CUDA table.

extern "C" __global__ void __launch_bounds__(256) attention_grad_kv_tiled64_f32(
    AttentionGradKv p, const float* q, const float* k, const float* v, const u32* span, const float* stats, const float* d_o,
    float* dk, float* dv) {
    attention_grad_kv_tiled<float, 64, 64, 64, 4>(p, q, k, v, span, stats, d_o, dk, dv);
}

extern "C" __global__ void __launch_bounds__(128) attention_grad_kv_tiled128_f32(
    AttentionGradKv p, const float* q, const float* k, const float* v, const u32* span, const float* stats, const float* d_o,
    float* dk, float* dv) {
    attention_grad_kv_tiled<float, 128, 32, 32, 4>(p, q, k, v, span, stats, d_o, dk, dv);
}

extern "C" __global__ void __launch_bounds__(128) attention_grad_kv_tiled256_f32(
    AttentionGradKv p, const float* q, const float* k, const float* v, const u32* span, const float* stats, const float* d_o,
    float* dk, float* dv) {
    attention_grad_kv_tiled<float, 256, 16, 16, 2>(p, q, k, v, span, stats, d_o, dk, dv);
}

extern "C" __global__ void __launch_bounds__(128) attention_grad_kv_tiled256_bf16(
    AttentionGradKv p, const bf16* q, const bf16* k, const bf16* v, const u32* span, const float* stats, const bf16* d_o,
    bf16* dk, bf16* dv) {
    attention_grad_kv_tiled<bf16, 256, 16, 16, 2>(p, q, k, v, span, stats, d_o, dk, dv);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_grad_kv_mma64(
    AttentionGradKv p, const bf16* q, const bf16* k, const bf16* v, const u32* span, const float* stats,
    const bf16* d_o, bf16* dk, bf16* dv) {
    attention_grad_kv_mma<64, 64>(p, q, k, v, span, stats, d_o, dk, dv);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_grad_kv_mma128(
    AttentionGradKv p, const bf16* q, const bf16* k, const bf16* v, const u32* span, const float* stats,
    const bf16* d_o, bf16* dk, bf16* dv) {
    attention_grad_kv_mma<128, 32>(p, q, k, v, span, stats, d_o, dk, dv);
}
