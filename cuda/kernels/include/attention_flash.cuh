// The forward pass in bf16 on tensor cores (FlashAttention-2, Dao 2023): a warp keeps 16 M query rows,
// their maxima, sums and outputs in registers; weights go from the sums of q k to the left factor of
// weights times v without leaving registers. V arrives while the scores are taken, the next K while
// V is weighed.
#pragma once
#include "attention_mma.cuh"

template <u32 D, u32 M, u32 BK>
__device__ __forceinline__ void attention_flash(
    const Attention& p, const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
    const u32* __restrict__ span, bf16* __restrict__ o, float* __restrict__ lse) {
    const u32 WARPS = 4;
    const u32 THREADS = WARPS * WARP;
    const u32 BQ = 16 * M * WARPS;
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ u32 first[BQ];
    __shared__ u32 end[BQ];
    Chunks<D> queries = {smem};
    Chunks<D> keys = {smem + BQ * Chunks<D>::ROW};
    Chunks<D> values = {smem + (BQ + BK) * Chunks<D>::ROW};

    Place place(p);
    Rows rows(p, place.kv);
    u32 start = place.tile * BQ;
    Spans<BQ> spans(p, rows, span, start, first, end);
    queries.template load<BQ, THREADS, 4>(q, p.d, [&](u32 r) {
        return start + r < rows.count ? q + rows.at(start + r) * p.d : (const bf16*)nullptr;
    });
    __syncthreads();

    u32 stop = spans.stop();
    KeyLoader<D, BQ, BK, THREADS> load = {spans, (u64)p.g * p.d, place.kv * p.d, p.d};
    u32 lane = threadIdx.x % WARP;
    u32 row = threadIdx.x / WARP * 16 * M;
    Sight sight = {spans.of(row), spans.of(row + 16 * M - 1)};
    float scale = p.scale * LOG2E;
    float most[M][2], sum[M][2];
    float out[M][D / 8][4];
    clear_sums(out);
#pragma unroll
    for (u32 i = 0; i < 2 * M; i++) {
        most[i / 2][i % 2] = NOTHING;
        sum[i / 2][i % 2] = 0.0f;
    }
    u32 key = spans.start();
    load.keys(keys, k, key);
    while (key < stop) {
        copy_async_wait<0>();
        __syncthreads();  // The keys are here, and nobody needs the last values any more.
        load.keys(values, v, key);
        bool some = sight.some(key, key + BK);
        u32 weights[M][BK / 16][4];
        if (some) {
            float s[M][BK / 8][4];
            multiply_transposed(s, queries, row, keys);
            if (!sight.all(key, key + BK)) {
#pragma unroll
                for (u32 m = 0; m < M; m++) {
                    u32 r = row + 16 * m + lane / 4;
                    mask_columns<BK / 8>(s[m], key, spans.of(r), spans.of(r + 8));
                }
            }
            bool risen = false;
            float shrink[M][2];
#pragma unroll
            for (u32 i = 0; i < 2 * M; i++) {
                float& known = most[i / 2][i % 2];
                float high = known;
#pragma unroll
                for (u32 n = 0; n < BK / 8; n++) {
                    const float* pair = s[i / 2][n] + i % 2 * 2;
                    high = fmaxf(high, fmaxf(pair[0], pair[1]));
                }
                high = reduce_quad<Max>(high);
                risen = risen || high > known;
                shrink[i / 2][i % 2] = fast_exp2((known - high) * scale);
                known = high;
                float shift = high * scale;
                float total = 0.0f;
#pragma unroll
                for (u32 n = 0; n < BK / 8; n++) {
                    float* pair = s[i / 2][n] + i % 2 * 2;
                    pair[0] = fast_exp2(pair[0] * scale - shift);
                    pair[1] = fast_exp2(pair[1] * scale - shift);
                    total += pair[0] + pair[1];
                }
                sum[i / 2][i % 2] = sum[i / 2][i % 2] * shrink[i / 2][i % 2] + total;
            }
            bool somewhere = __any_sync(FULL_MASK, risen);
            if (somewhere) {  // After the first tiles of keys maxima seldom rise.
#pragma unroll
                for (u32 i = 0; i < M * D / 2; i++) {
                    out[i / (D / 2)][i / 4 % (D / 8)][i % 4] *= shrink[i / (D / 2)][i % 4 / 2];
                }
            }
#pragma unroll
            for (u32 i = 0; i < M * BK / 16; i++) {
                u32 m = i / (BK / 16);
                u32 j = i % (BK / 16);
                left_of_sums(weights[m][j], s[m][2 * j], s[m][2 * j + 1]);
            }
        }
        copy_async_wait<0>();
        __syncthreads();  // The values are here, and nobody needs the keys any more.
        key = spans.skip(key + BK);
        if (key < stop) {
            load.keys(keys, k, key);
        }
        if (some) {
            multiply_add<D>(out, weights, values);
        }
    }
    copy_async_wait<0>();
    __syncthreads();  // Without a key nobody has waited for the queries that other warps copy.
#pragma unroll
    for (u32 m = 0; m < M; m++) {
        float share[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float total = reduce_quad<Sum>(sum[m][half]);
            share[half] = total > 0.0f ? 1.0f / total : 0.0f;
            u32 r = start + row + 16 * m + 8 * half + lane / 4;
            if (lane % 4 == 0 && r < rows.count) {
                lse[rows.at(r)] = total > 0.0f ? most[m][half] * p.scale + logf(total) : NOTHING;
            }
        }
        queries.store(row + 16 * m, out[m], share[0], share[1]);
    }
    __syncwarp();
    queries.template write<16 * M>(row, p.d, [&](u32 r) {
        u32 at = start + row + r;
        return at < rows.count ? o + rows.at(at) * p.d : (bf16*)nullptr;
    });
}
