// Attention with online softmax over tiles of keys (FlashAttention-2, Dao 2023) in f32 arithmetic, whatever
// keys and values are stored as.
//
// A block takes BQ query rows of one key-value head (rows are (token, sharing head), see Rows) and goes through
// the keys that any of them sees, BK at a time. Values arrive while the scores are taken, the next keys while
// values are weighed. Row r is shared by 16 neighbouring threads, each of which has R rows.
//
// A source brings rows of a tile to shared memory: start(tile, side, key, take) asks for the rows key .. of the
// keys (side 0) or values (side 1), those for which take(r) does not hold become 0; finish(tile) puts them there
// for all threads after the next barrier.
#pragma once
#include "attention_tiles.cuh"

template <typename T, u32 D, u32 BQ, u32 BK>
struct Tiled {
    static const u32 R = 4;
    static const u32 KEYS = BK / LANES;
    static const u32 THREADS = BQ / R * LANES;
    float* queries;
    float* keys;
    float* values;
    float* weights;
    u32 d, lane, row;
    float most[R], sum[R];
    Part<D, R> out;

    __device__ __forceinline__ Tiled(unsigned char* smem, u32 d)
        : queries((float*)smem), d(d), lane(threadIdx.x % LANES), row(threadIdx.x / LANES * R) {
        keys = queries + BQ * (D + 4);
        values = keys + BK * (D + 4);
        weights = values + BK * (D + 4);
        out.clear();
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            most[r] = NOTHING;
            sum[r] = 0.0f;
        }
    }

    // Brings the tile's queries, rows start .. of `rows`; a barrier must follow.
    __device__ __forceinline__ void load_queries(const T* q, const Rows& rows, u32 start) const {
        Incoming<T, D, BQ, THREADS> own;
        own.start(queries, q, d, wide_rows(q, d), [&](u32 r) {
            return start + r < rows.count ? q + rows.at(start + r) * d : (const T*)nullptr;
        });
        own.finish(queries, d);
    }

    // Takes in the keys that `spans` (Sees) leaves. All threads call; queries and spans are there.
    template <typename S, typename Source>
    __device__ __forceinline__ void pass(const S& spans, Source source, float scale) {
        auto begin = [&](float* tile, u32 side, u32 key) {
            bool all = spans.one_sees(key, key + BK);
            source.start(tile, side, key, [&](u32 r) { return all || spans.somebody_sees(key + r); });
        };
        u32 key = spans.start();
        u32 stop = spans.stop();
        if (key < stop) {
            begin(keys, 0, key);
        }
        while (key < stop) {
            source.finish(keys);
            __syncthreads();  // The keys are here, and nobody needs the last values any more.
            begin(values, 1, key);
            float s[R][KEYS];
            multiply_rows<D>(s, queries + row * (D + 4), keys + lane * (D + 4), d);
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
            source.finish(values);
            __syncthreads();  // The values are here, and nobody needs the keys any more.
            key = spans.skip(key + BK);
            if (key < stop) {
                begin(keys, 0, key);
            }
            out.template add<BK>(weights + row * (BK + 4), values, d);
        }
    }

    // Writes the tile's results, rows start .. of `rows`.
    __device__ __forceinline__ void store(T* o, float* lse, const Rows& rows, u32 start) const {
        bool wide = wide_rows(o, d);
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            float total = reduce_lanes<Sum>(sum[r]);
            if (start + row + r < rows.count) {
                u64 at = rows.at(start + row + r);
                out.store(o + at * d, r, total > 0.0f ? 1.0f / total : 0.0f, d, wide);
                if (lane == 0) {
                    lse[at] = total > 0.0f ? most[r] * LN2 + logf(total) : NOTHING;
                }
            }
        }
    }
};

// Rows of C elements somewhere in memory: `row(side, key)` is the address of a head's key or value.
template <typename C, u32 D, u32 BK, u32 THREADS, typename Row>
struct RowSource {
    const C* base;
    Row row;
    u32 d;
    bool wide;
    Incoming<C, D, BK, THREADS> incoming;

    __device__ __forceinline__ RowSource(const C* base, Row row, u32 d, bool wide)
        : base(base), row(row), d(d), wide(wide) {}

    template <typename Take>
    __device__ __forceinline__ void start(float* tile, u32 side, u32 key, Take take) {
        incoming.start(tile, base, d, wide, [&](u32 r) { return take(r) ? row(side, key + r) : (const C*)nullptr; });
    }

    __device__ __forceinline__ void finish(float* tile) const {
        incoming.finish(tile, d);
    }
};

template <typename C, u32 D, u32 BK, u32 THREADS, typename Row>
__device__ __forceinline__ RowSource<C, D, BK, THREADS, Row> row_source(const C* base, Row row, u32 d, bool wide) {
    return RowSource<C, D, BK, THREADS, Row>(base, row, d, wide);
}
