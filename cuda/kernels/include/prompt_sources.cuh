// Where a prompt's tiles on tensor cores come from (prompt_mma.cuh): rows of f16, or rows of f32 as two of f16.
// `row(side, key)` is the address of a head's key or value. Rows that no query row sees become 0: they may hold NaN.
#pragma once
#include "prompt_mma.cuh"

// Tiles are copied asynchronously. Queries have been split.
template <u32 D, typename Row>
struct HalfSource {
    static const u32 KEYS = PROMPT_TILE;
    const PagedSpans<PROMPT_ROWS>& spans;
    const f16* base;
    Row row;

    static __device__ __forceinline__ u32 begin(u32 key) {
        return key;
    }

    __device__ __forceinline__ void start(u32 side, const Chunks<D>& tile, u32 key) const {
        if (spans.one_sees(key, key + KEYS)) {
            tile.template load<KEYS, PROMPT_THREADS, 4>(base, D, [&](u32 r) { return row(side, key + r); });
        } else {
            tile.template load<KEYS, PROMPT_THREADS, 1>(base, D, [&](u32 r) {
                return spans.somebody_sees(key + r) ? row(side, key + r) : (const f16*)nullptr;
            });
        }
        copy_async_commit();
    }

    __device__ __forceinline__ void finish(u32, const Chunks<D>&) const {
        copy_async_wait<0>();
    }

    __device__ __forceinline__ void
    scores(float (&s)[PROMPT_TILE / 8][4], const PromptQueries<D>& queries, const Chunks<D>& keys) const {
        clear_scores(s);
#pragma unroll 2
        for (u32 i = 0; i < D / 16; i++) {
            u32 upper[4], lower[4];
            queries.get_split(i, upper, lower);
            score_tiles(s, 0, keys, i, upper, lower);
            score_tiles(s, 4, keys, i, upper, lower);
        }
        float unit = power(127 - QUERY_UP);
        scale_scores(s, queries.unit[0] * unit, queries.unit[1] * unit);
    }

    template <typename State>
    __device__ __forceinline__ void weigh(State& state, float (&s)[PROMPT_TILE / 8][4], const Chunks<D>& values) const {
        PromptWeights weights;
        weights.set_all(s);
#pragma unroll
        for (u32 n = 0; n < D / 8; n += 4) {
            state.add(n, weights, values, 1.0f);
        }
    }
};

template <u32 D, typename Row>
__device__ __forceinline__ HalfSource<D, Row>
half_source(const PagedSpans<PROMPT_ROWS>& spans, const f16* base, Row row) {
    HalfSource<D, Row> source = {spans, base, row};
    return source;
}

// Row r of a tile is the upper part of a key or value, row r + 32 the lower one; a tile has one factor for all of
// them. Few of a prompt's keys are in f32, so nothing is under way while others are multiplied, and each is
// read twice.
template <u32 D, typename Row>
struct SingleSource {
    static const u32 KEYS = PROMPT_TILE / 2;
    static const u32 CHUNKS = KEYS * D / 4;  // Of four elements.
    static const u32 UP = 13;
    const PagedSpans<PROMPT_ROWS>& spans;
    float* scratch;  // For block_reduce.
    Row row;
    u32 key;
    float unit[2];   // Of the tiles of keys and of values: a power of two.

    static __device__ __forceinline__ u32 begin(u32 key) {
        return key;
    }

    __device__ __forceinline__ void start(u32, const Chunks<D>&, u32 of) {
        key = of;
    }

    __device__ __forceinline__ void finish(u32 side, const Chunks<D>& tile) {
        bool all = spans.one_sees(key, key + KEYS);
        auto chunk = [&](u32 at) {
            u32 r = at / (D / 4);
            return all || spans.somebody_sees(key + r) ? *(const float4*)(row(side, key + r) + at % (D / 4) * 4)
                                                       : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        };
        float most = 0.0f;
#pragma unroll 1
        for (u32 at = threadIdx.x; at < CHUNKS; at += PROMPT_THREADS) {
            float4 x = chunk(at);
            most = fmaxf(most, fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))));
        }
        u32 biased = exponent(block_reduce<Max>(most, 0.0f, scratch));
        float up = power(254 + UP - biased);
        unit[side] = power(biased - UP);
#pragma unroll 1
        for (u32 at = threadIdx.x; at < CHUNKS; at += PROMPT_THREADS) {
            float4 x = chunk(at);
            u32 r = at / (D / 4);
            u32 c = at % (D / 4);
            uint2 upper, lower;
            split_f16(x.x * up, x.y * up, upper.x, lower.x);
            split_f16(x.z * up, x.w * up, upper.y, lower.y);
            *(uint2*)(tile.at(r, c / 2) + c % 2 * 8) = upper;
            *(uint2*)(tile.at(r + KEYS, c / 2) + c % 2 * 8) = lower;
        }
    }

    __device__ __forceinline__ void
    scores(float (&s)[PROMPT_TILE / 8][4], const PromptQueries<D>& queries, const Chunks<D>& keys) const {
        clear_scores(s);
#pragma unroll 2
        for (u32 i = 0; i < D / 16; i++) {
            u32 upper[4], lower[4];
            queries.parts(queries.of(i, 0), queries.of(i, 1), (float)(1u << QUERY_UP), upper, lower);
            score_tiles(s, 0, keys, i, upper, lower);
            score_tiles(s, 4, keys, i, upper, lower);
        }
#pragma unroll
        for (u32 i = 0; i < PROMPT_TILE / 4; i++) {
            s[i / 4][i % 4] += s[i / 4 + KEYS / 8][i % 4];
        }
        float down = unit[0] * power(127 - QUERY_UP);
        scale_scores(s, queries.unit[0] * down, queries.unit[1] * down);
    }

    template <typename State>
    __device__ __forceinline__ void weigh(State& state, float (&s)[PROMPT_TILE / 8][4], const Chunks<D>& values) const {
#pragma unroll
        for (u32 i = 0; i < PROMPT_TILE / 4; i++) {
            s[i / 4 + KEYS / 8][i % 4] = s[i / 4][i % 4];
        }
        PromptWeights weights;
        weights.set_all(s);
#pragma unroll
        for (u32 n = 0; n < D / 8; n += 4) {
            state.add(n, weights, values, unit[1]);
        }
    }
};

template <u32 D, typename Row>
__device__ __forceinline__ SingleSource<D, Row>
single_source(const PagedSpans<PROMPT_ROWS>& spans, float* scratch, Row row) {
    SingleSource<D, Row> source = {spans, scratch, row, 0, {0.0f, 0.0f}};
    return source;
}
