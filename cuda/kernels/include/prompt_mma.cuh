// A prompt's attention over a cache on tensor cores (FlashAttention-2, Dao 2023), as exact as f32 arithmetic: what a
// cache stores is whole in f16 (f16 itself, codes) or is stored as two rows of f16 (the newest tokens, in f32), and
// the other factor, queries or weights, goes in two parts (halves.cuh), so each product is two of mma16.
//
// A block of four warps takes 64 query rows of one key-value head, a warp 16 of them with their maxima, sums and
// outputs in registers. Tiles of keys and of values have 64 rows of f16 each. A tile's part of the outputs begins at 0
// and is added in f32, rounded to nearest: tensor cores cut off what they cannot hold (Fasi et al. 2021), which over
// many thousands of keys would draw every output towards 0.
//
// Scores and maxima are powers of two: log2(e) is part of the scale. Weights are brought up by 2^WEIGHT_UP.
//
// A source brings tiles, of KEYS keys each, and multiplies with them:
//   begin(key): the first key of the tile that holds this one;
//   start(side, tile, key): asks for the keys (side 0) or values (side 1) from a key on;
//   finish(side, tile): puts them there for all threads after the next barrier;
//   scores(s, queries, keys), weigh(state, s, values): the two products of a tile.
//
// What a tile of 64 keys costs a warp for heads of 128, counted in the disassembly for 8.0 and not measured: 256 of
// mma16 among about 1300 instructions over f16 and 2550 over 4-bit codes with pages of 64 (queries are scaled and
// split for 64 keys at a time, weights for each group of channels). Where a scheduler takes an mma16 in 8 cycles (8.0)
// these are 2048 cycles, so tensor cores are busy at most all of the time over f16 and 80 % of it over codes; where
// sums in f32 have half the rate (8.6, 8.9, 12.0) they are 4096 and bind in both; at twice the rate (9.0) instructions
// bind, at 79 and 40 %.
#pragma once
#include "attention_mma.cuh"
#include "halves.cuh"
#include "paged.cuh"

#define PROMPT_ROWS 64u     // Query rows of a block.
#define PROMPT_TILE 64u     // Rows of a tile.
#define PROMPT_THREADS 128u

// Powers of two that queries (magnitudes up to 2 otherwise) and weights (up to 1) are brought up by, so that both
// parts are whole in f16.
#define QUERY_UP 12u
#define WEIGHT_UP 14u

// A warp's 16 query rows as left factors of mma16, one of each lane side by side: for every 16 elements the eight of
// a lane in f32, or (after `split`) their upper and lower parts. Every lane reads what it wrote.
template <u32 D>
struct PromptQueries {
    static const u32 STEPS = D / 16;
    static const u32 BYTES = PROMPT_ROWS * D * 4;
    float4* own;
    float unit[2];  // Of rows g and g + 8 of lane l, g = l / 4: a power of two.

    __device__ __forceinline__ PromptQueries(unsigned char* smem)
        : own((float4*)smem + threadIdx.x / WARP * (2 * STEPS * WARP) + threadIdx.x % WARP) {}

    // Elements 2 t .. (`high` 0) or 2 t + 8 .. (1) of step i, t = lane % 4: two of row g, two of row g + 8.
    __device__ __forceinline__ float4& of(u32 i, u32 high) const {
        return own[(2 * i + high) * WARP];
    }

    // Rows start .. of `rows` times a factor, the largest element of each between 1 and 2 in units of `unit`.
    __device__ __forceinline__ void load(const float* q, const Rows& rows, u32 start, float factor) {
        u32 lane = threadIdx.x % WARP;
        u32 row = start + threadIdx.x / WARP * 16 + lane / 4;
        const float* low = q + rows.at(row) * D + 2 * (lane % 4);
        const float* high = q + rows.at(row + 8) * D + 2 * (lane % 4);
        float most[2] = {0.0f, 0.0f};
#pragma unroll 4
        for (u32 i = 0; i < 2 * STEPS; i++) {
            float2 x = row < rows.count ? *(const float2*)(low + 8 * i) : make_float2(0.0f, 0.0f);
            float2 y = row + 8 < rows.count ? *(const float2*)(high + 8 * i) : make_float2(0.0f, 0.0f);
            float4 both = make_float4(x.x * factor, x.y * factor, y.x * factor, y.y * factor);
            most[0] = fmaxf(most[0], fmaxf(fabsf(both.x), fabsf(both.y)));
            most[1] = fmaxf(most[1], fmaxf(fabsf(both.z), fabsf(both.w)));
            of(i / 2, i % 2) = both;
        }
        float up[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 biased = exponent(reduce_quad<Max>(most[half]));
            up[half] = power(254 - biased);
            unit[half] = power(biased);
        }
#pragma unroll 4
        for (u32 i = 0; i < 2 * STEPS; i++) {
            float4& x = of(i / 2, i % 2);
            x = make_float4(x.x * up[0], x.y * up[0], x.z * up[1], x.w * up[1]);
        }
    }

    // The two parts of eight elements.
    static __device__ __forceinline__ void parts(float4 x, float4 y, float by, u32 (&upper)[4], u32 (&lower)[4]) {
        split_f16(x.x * by, x.y * by, upper[0], lower[0]);
        split_f16(x.z * by, x.w * by, upper[1], lower[1]);
        split_f16(y.x * by, y.y * by, upper[2], lower[2]);
        split_f16(y.z * by, y.w * by, upper[3], lower[3]);
    }

    // Replaces all elements, times 2^QUERY_UP, by their parts.
    __device__ __forceinline__ void split() const {
#pragma unroll 4
        for (u32 i = 0; i < STEPS; i++) {
            u32 upper[4], lower[4];
            parts(of(i, 0), of(i, 1), (float)(1u << QUERY_UP), upper, lower);
            *(uint4*)&of(i, 0) = make_uint4(upper[0], upper[1], upper[2], upper[3]);
            *(uint4*)&of(i, 1) = make_uint4(lower[0], lower[1], lower[2], lower[3]);
        }
    }

    __device__ __forceinline__ void get_split(u32 i, u32 (&upper)[4], u32 (&lower)[4]) const {
        uint4 x = *(const uint4*)&of(i, 0);
        uint4 y = *(const uint4*)&of(i, 1);
        upper[0] = x.x, upper[1] = x.y, upper[2] = x.z, upper[3] = x.w;
        lower[0] = y.x, lower[1] = y.y, lower[2] = y.z, lower[3] = y.w;
    }
};

__device__ __forceinline__ void clear_scores(float (&s)[PROMPT_TILE / 8][4]) {
#pragma unroll
    for (u32 i = 0; i < PROMPT_TILE / 2; i++) {
        s[i / 4][i % 4] = 0.0f;
    }
}

// Times a factor for rows g and one for rows g + 8.
__device__ __forceinline__ void scale_scores(float (&s)[PROMPT_TILE / 8][4], float low, float high) {
#pragma unroll
    for (u32 i = 0; i < PROMPT_TILE / 2; i++) {
        s[i / 4][i % 4] *= i % 4 < 2 ? low : high;
    }
}

// s[16, 32] += left right^T for rows 8 n .. of a tile and step i of 16 elements; n and the sums count by 8.
template <u32 D>
__device__ __forceinline__ void score_tiles(
    float (&s)[PROMPT_TILE / 8][4], u32 n, const Chunks<D>& keys, u32 i, const u32 (&upper)[4], const u32 (&lower)[4]) {
    u32 b[2][2][2];
    keys.right_transposed(b[0], 8 * n, 2 * i);
    keys.right_transposed(b[1], 8 * n + 16, 2 * i);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        mma16<f16>(s[n + j], lower, b[j / 2][j % 2]);
    }
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        mma16<f16>(s[n + j], upper, b[j / 2][j % 2]);
    }
}

// The weights of a warp's 16 rows and 64 keys in two parts, as left factors of mma16 for 16 keys each.
struct PromptWeights {
    u32 upper[PROMPT_TILE / 16][4], lower[PROMPT_TILE / 16][4];

    // Of sums j = 2 k and 2 k + 1, times a factor for the keys 2 t, 2 t + 1 of either.
    __device__ __forceinline__ void
    set(u32 k, const float (&x)[4], const float (&y)[4], float2 low, float2 high) {
        split_f16(x[0] * low.x, x[1] * low.y, upper[k][0], lower[k][0]);
        split_f16(x[2] * low.x, x[3] * low.y, upper[k][1], lower[k][1]);
        split_f16(y[0] * high.x, y[1] * high.y, upper[k][2], lower[k][2]);
        split_f16(y[2] * high.x, y[3] * high.y, upper[k][3], lower[k][3]);
    }

    __device__ __forceinline__ void set_all(const float (&s)[PROMPT_TILE / 8][4]) {
        float2 one = make_float2(1.0f, 1.0f);
#pragma unroll
        for (u32 k = 0; k < PROMPT_TILE / 16; k++) {
            set(k, s[2 * k], s[2 * k + 1], one, one);
        }
    }
};

// The softmax of a warp's rows; lane l has elements 8 n + 2 (l % 4) .. of rows l / 4 and l / 4 + 8. All weights that
// went into sums and outputs are 2^(score - shift).
template <u32 D, bool ZEROS>
struct PromptState {
    float shift[2], sum[2];    // `sum` over the keys of this lane alone.
    float out[D / 8][4];
    float zeros[2];            // What is added to the outputs 32 (l % 4) .. of both rows, if ZEROS.

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            shift[i] = NOTHING;
            sum[i] = 0.0f;
            zeros[i] = 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < D / 2; i++) {
            out[i / 4][i % 4] = 0.0f;
        }
    }

    // The first N tiles of scores become weights.
    template <u32 N>
    __device__ __forceinline__ void soften(float (&s)[PROMPT_TILE / 8][4]) {
        bool risen = false;
        float shrink[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float high = NEGATIVE_INFINITY;
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                high = fmaxf(high, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            }
            high = fmaxf(shift[half], reduce_quad<Max>(high) - (float)WEIGHT_UP);
            risen = risen || high > shift[half];
            shrink[half] = fast_exp2(shift[half] - high);
            shift[half] = high;
            float total = 0.0f;
#pragma unroll
            for (u32 n = 0; n < N; n++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    float& x = s[n][2 * half + i];
                    x = fast_exp2(x - high);
                    total += x;
                }
            }
            sum[half] = sum[half] * shrink[half] + total;
        }
        bool somewhere = __any_sync(FULL_MASK, risen);
        if (somewhere) {  // After the first tiles of keys maxima seldom rise.
#pragma unroll
            for (u32 i = 0; i < D / 2; i++) {
                out[i / 4][i % 4] *= shrink[i % 4 / 2];
            }
            zeros[0] *= shrink[0];
            zeros[1] *= shrink[1];
        }
    }

    // Adds to the zeros of columns 32 j .. what each lane has of both rows.
    __device__ __forceinline__ void add_zeros(u32 j, const float (&own)[2]) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float whole = reduce_quad<Sum>(own[half]);
            zeros[half] += threadIdx.x % 4 == j ? whole : 0.0f;
        }
    }

    // out += weights times values, in units of `unit`, for the columns 8 n .. + 31.
    __device__ __forceinline__ void
    add(u32 n, const PromptWeights& weights, const Chunks<D>& values, float unit) {
        float part[4][4];
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            part[i / 4][i % 4] = 0.0f;
        }
#pragma unroll
        for (u32 k = 0; k < PROMPT_TILE / 16; k++) {
            u32 b[2][2][2];
            values.right(b[0], 16 * k, n);
            values.right(b[1], 16 * k, n + 2);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                mma16<f16>(part[j], weights.lower[k], b[j / 2][j % 2]);
            }
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                mma16<f16>(part[j], weights.upper[k], b[j / 2][j % 2]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            out[n + i / 4][i % 4] += part[i / 4][i % 4] * unit;
        }
    }

    // Writes the results of rows start .. of `rows`. Zeros are shared by groups of `group` columns.
    __device__ __forceinline__ void
    store(float* o, float* lse, const Rows& rows, u32 start, u32 group) const {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float total = reduce_quad<Sum>(sum[half]);
            float share = total > 0.0f ? 1.0f / total : 0.0f;
            u32 row = start + threadIdx.x / WARP * 16 + lane / 4 + 8 * half;
            float* to = o + rows.at(row) * D + 2 * (lane % 4);
            float zero = 0.0f;
#pragma unroll
            for (u32 n = 0; n < D / 8; n++) {
                if (ZEROS && n % 4 == 0) {
                    float own = __shfl_sync(FULL_MASK, zeros[half], lane / 4 * 4 + n / 4);
                    zero = (n * 8 & (group - 1)) == 0 ? own : zero;
                }
                if (row < rows.count) {
                    const float* x = out[n] + 2 * half;
                    *(float2*)(to + 8 * n) = make_float2((x[0] + zero) * share, (x[1] + zero) * share);
                }
            }
            if (lane % 4 == 0 && row < rows.count) {
                lse[rows.at(row)] = total > 0.0f ? shift[half] * LN2 + logf(total) : NOTHING;
            }
        }
    }
};

// A prompt's block. Grid: tiles times key-value heads. Dynamic shared memory: queries, keys, values, then what
// `pass(block, spans, pages, kv, rest)` needs, which takes in the keys of `spans`.
//
// Registers are scarce: what can be had again is not kept. `zero` is a word of shared memory that the compiler must take
// for any number, so that it does not keep addresses from tile to tile, or for both passes of a kernel, in registers.
template <u32 D, bool ZEROS>
struct PromptBlock {
    unsigned char* smem;
    const volatile u32* zero;
    PromptQueries<D> queries;
    PromptState<D, ZEROS> state;

    __device__ __forceinline__ PromptBlock(unsigned char* smem, const u32* zero)
        : smem(smem), zero(zero), queries(smem) {
        state.clear();
    }

    // The tile of keys (0) or values (1), and what follows both (2).
    __device__ __forceinline__ Chunks<D> tile(u32 i) const {
        u32 at = *zero;
        Chunks<D> it = {smem + PromptQueries<D>::BYTES + i * PROMPT_TILE * Chunks<D>::ROW + at};
        return it;
    }

    // Takes in the keys that `spans` leaves. All threads call; spans are there.
    template <typename Source>
    __device__ __forceinline__ void pass(const PagedSpans<PROMPT_ROWS>& spans, Source& source) {
        u32 row = threadIdx.x / WARP * 16;
        u32 stop = spans.stop();
        u32 key = source.begin(spans.start());
        if (key < stop) {
            source.start(0, tile(0), key);
        }
        while (key < stop) {
            source.finish(0, tile(0));
            __syncthreads();  // The keys are here, and nobody needs the last values any more.
            source.start(1, tile(1), key);
            Sight sight = {spans.of(row), spans.of(row + 15)};
            bool some = sight.some(key, key + Source::KEYS);
            float s[PROMPT_TILE / 8][4];
            if (some) {
                source.scores(s, queries, tile(0));
                if (!sight.all(key, key + Source::KEYS)) {
                    u32 r = row + threadIdx.x % WARP / 4;
                    mask_columns<PROMPT_TILE / 8>(s, key, spans.of(r), spans.of(r + 8));
                }
                state.template soften<Source::KEYS / 8>(s);
            }
            source.finish(1, tile(1));
            __syncthreads();  // The values are here, and nobody needs the keys any more.
            key = source.begin(spans.skip(key + Source::KEYS));
            if (key < stop) {
                source.start(0, tile(0), key);
            }
            if (some) {
                source.weigh(state, s, tile(1));
            }
        }
    }
};

template <u32 D, bool ZEROS, typename P, typename Pass>
__device__ __forceinline__ void prompt_mma(
    const P& p, const float* __restrict__ q, const float* __restrict__ qs, const u32* __restrict__ rows_of,
    const u32* __restrict__ table, float* __restrict__ o, float* __restrict__ lse, u32 group, Pass pass) {
    extern __shared__ __align__(16) unsigned char smem[];
    __shared__ u32 bounds[5][PROMPT_ROWS];
    __shared__ u32 zero;
    Place place(p);
    Rows rows(p, place.kv);
    u32 start = place.tile * PROMPT_ROWS;
    PagedSpans<PROMPT_ROWS> spans(p, rows, rows_of, start, bounds);
    Pages pages(p, rows_of, 0, table);
    PromptBlock<D, ZEROS> block(smem, &zero);
    if (threadIdx.x == 0) {
        zero = 0;
    }
    __syncthreads();
    bool apart = p.sinks > 0 && q != qs;
#pragma unroll 1
    for (u32 turn = apart ? 0 : 1; turn < 2; turn++) {
        u32 at = *block.zero;
        block.queries.load(turn == 0 ? qs : q, Rows(p, place.kv + at), start + at, p.scale * LOG2E);
        spans.which = turn == 0 ? SINKS : apart ? OTHERS : SINKS | OTHERS;
        pass(block, spans, pages, place.kv, block.tile(2).tile);
    }
    u32 at = *block.zero;
    block.state.store(o, lse, Rows(p, place.kv + at), start + at, group);
}
