// Attention of few query rows over many keys: the keys of a row are split into parts, which attention_join.cu
// joins (Flash-Decoding, Dao et al. 2023).
//
// A block takes one part of one row's keys for up to ROWS heads that share a key-value head, so that keys and
// values are read once. `lanes` threads share a key, 8 elements each (16 bytes of a 16-bit cache), and keep their
// own online softmax over the keys that come by; 128 / lanes such groups are joined at the end.
#pragma once
#include "attention.cuh"

#define DECODE_THREADS 128u

// Steps of keys that a thread has under way or in use, each DECODE_STEP bytes of keys and values, which wait in
// shared memory. They also stand in runtime/src/ops/paged/cuda.rs.
#define DECODE_STAGES 3u
#define DECODE_STEP 128u

// Eight elements of a row, c .. c+7; those past the row's d elements are 0. With `wide` the row begins at a multiple
// of 16 bytes and d is a multiple of 8.
__device__ __forceinline__ void load8(const float* row, u32 c, u32 d, bool wide, float (&x)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; i += 4) {
        if (wide) {
            float4 four = *(const float4*)(row + c + i);
            x[i] = four.x;
            x[i + 1] = four.y;
            x[i + 2] = four.z;
            x[i + 3] = four.w;
        } else {
#pragma unroll
            for (u32 l = i; l < i + 4; l++) {
                x[l] = c + l < d ? row[c + l] : 0.0f;
            }
        }
    }
}

// Eight elements that wait in shared memory, 16 bytes of every thread side by side.
__device__ __forceinline__ void unpack8(const uint4* slot, float, float (&x)[8]) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        uint4 four = slot[i * DECODE_THREADS];
        x[4 * i] = bits_f32(four.x);
        x[4 * i + 1] = bits_f32(four.y);
        x[4 * i + 2] = bits_f32(four.z);
        x[4 * i + 3] = bits_f32(four.w);
    }
}

__device__ __forceinline__ void unpack8(const uint4* slot, f16, float (&x)[8]) {
    uint4 four = *slot;
    unpack(four.x, f16{}, x[0], x[1]);
    unpack(four.y, f16{}, x[2], x[3]);
    unpack(four.z, f16{}, x[4], x[5]);
    unpack(four.w, f16{}, x[6], x[7]);
}

// The softmax of a row over some of its keys: largest score, sum of weights, weighted values.
template <u32 ROWS>
struct Softmax {
    float most[ROWS], sum[ROWS], out[ROWS][8];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            most[r] = NOTHING;
            sum[r] = 0.0f;
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                out[r][i] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void rise(u32 r, float high) {
        float shrink = fast_exp2(most[r] - high);
        most[r] = high;
        sum[r] *= shrink;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            out[r][i] *= shrink;
        }
    }

    // Joins with the lane whose number differs in the bit `stride`.
    __device__ __forceinline__ void join(u32 stride) {
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            float other = __shfl_xor_sync(FULL_MASK, most[r], stride);
            rise(r, fmaxf(most[r], other));
            other = __shfl_xor_sync(FULL_MASK, sum[r], stride);
            sum[r] += other;
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                other = __shfl_xor_sync(FULL_MASK, out[r][i], stride);
                out[r][i] += other;
            }
        }
    }
};

// A block's place and threads. Grid: parts, key-value heads times groups of sharing heads (ROWS, if `of` does not
// say how many), rows.
template <u32 ROWS>
struct DecodeBlock {
    u32 token, kv, head, rows;                  // Query row, key-value head, first head and heads of the block.
    u32 lanes, groups, group, column, columns;  // Threads that share a key, keys at a time, this thread's key and elements.

    template <typename P>
    __device__ __forceinline__ DecodeBlock(const P& p, u32 of = ROWS)
        : token(blockIdx.z), kv(blockIdx.y % p.g), lanes(1) {
        u32 shared = p.h / p.g;
        u32 first = blockIdx.y / p.g * of;
        head = kv * shared + first;
        rows = shared - first < ROWS ? shared - first : ROWS;
        while (lanes * 8 < p.d) {
            lanes *= 2;
        }
        groups = DECODE_THREADS / lanes;
        group = threadIdx.x / lanes;
        column = threadIdx.x % lanes * 8;
        columns = lanes * 8;
    }

    // The thread's elements of the queries, with the scale of powers of two.
    template <typename P>
    __device__ __forceinline__ void load_queries(const P& p, const float* q, float (&queries)[ROWS][8]) const {
        float scale = p.scale * LOG2E;
        bool wide = p.d % 8 == 0 && aligned16(q);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            u64 from = ((u64)token * p.h + head + (r < rows ? r : 0)) * p.d;
            if (column < p.d) {
                load8(q + from, column, p.d, wide, queries[r]);
            }
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                queries[r][i] = r < rows && column < p.d ? queries[r][i] * scale : 0.0f;
            }
        }
    }

    // Calls take(queries, from, to) for the sinks and for the other keys of a span, or once where they are
    // neighbours with one query.
    template <typename P, typename Take>
    __device__ __forceinline__ void each_span(const P& p, const float* q, const float* qs, Span s, Take take) const {
        bool together = q == qs && s.sink == s.recent;
        u32 middle = together ? s.first : s.recent;
#pragma unroll 1
        for (u32 turn = 0; turn < 2; turn++) {
            u32 from = turn == 0 ? s.first : middle;
            u32 to = turn == 1 ? s.end : together ? s.first : s.sink;
            if (from < to) {
                float queries[ROWS][8];
                load_queries(p, turn == 0 ? qs : q, queries);
                take(queries, from, to);
            }
        }
    }

    // Joins the groups of each warp and keeps the result of warp w in slot w, which nobody needs any more.
    __device__ __forceinline__ void keep(Softmax<ROWS>& state, float* slots) const {
        for (u32 bit = lanes; bit < WARP; bit *= 2) {
            state.join(bit);
        }
        __syncthreads();
        float* outs = slots + threadIdx.x / WARP * slot_size();
        if (threadIdx.x % WARP < lanes) {
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    outs[r * (columns + 2) + column + i] = state.out[r][i];
                }
                if (column == 0) {
                    outs[r * (columns + 2) + columns] = state.most[r];
                    outs[r * (columns + 2) + columns + 1] = state.sum[r];
                }
            }
        }
    }

    // Floats of a slot: for each row `columns` sums of weighted values, the largest score and the sum of weights.
    __device__ __forceinline__ u32 slot_size() const {
        return ROWS * (columns + 2);
    }

    // Joins `count` slots in their order, slot(w) is the address of one, and writes the part's results. All threads
    // call.
    template <typename P, typename Slot>
    __device__ __forceinline__ void finish(const P& p, u32 count, Slot slot, float* o, float* lse) const {
        __syncthreads();
#pragma unroll 1
        for (u32 r = 0; r < rows; r++) {
            u32 row = r * (columns + 2);
            float high = NOTHING;
            float total = 0.0f;
            for (u32 w = 0; w < count; w++) {
                high = fmaxf(high, slot(w)[row + columns]);
            }
            for (u32 w = 0; w < count; w++) {
                const float* facts = slot(w) + row + columns;
                total += fast_exp2(facts[0] - high) * facts[1];
            }
            float share = total > 0.0f ? 1.0f / total : 0.0f;
            u64 at = ((u64)blockIdx.x * p.m + token) * p.h + head + r;
            for (u32 c = threadIdx.x; c < p.d; c += DECODE_THREADS) {
                float x = 0.0f;
                for (u32 w = 0; w < count; w++) {
                    const float* outs = slot(w) + row;
                    x += fast_exp2(outs[columns] - high) * outs[c];
                }
                o[at * p.d + c] = x * share;
            }
            if (threadIdx.x == 0) {
                lse[at] = total > 0.0f ? high * LN2 + logf(total) : NOTHING;
            }
        }
    }
};

// Takes in the keys from .. to-1: place(key) is the address of a key, its value lies `to_value` elements further
// on. Each thread brings its own elements to shared memory (`staging`, DECODE_STAGES * DECODE_STEP bytes a thread),
// several steps ahead, and is alone to read them: no barrier is needed.
template <typename C, u32 ROWS, typename Place>
__device__ __forceinline__ void decode_keys(
    const DecodeBlock<ROWS>& block, Softmax<ROWS>& state, const float (&queries)[ROWS][8], unsigned char* staging,
    u32 to_value, u32 d, bool wide, u32 from, u32 to, Place place) {
    const u32 CHUNKS = sizeof(C) / 2;  // Of 16 bytes in eight elements.
    const u32 KEYS = DECODE_STEP / (ROWS > 4 ? 2 : 1) / (2 * CHUNKS * 16);  // Scores of eight rows take registers.
    u32 step = KEYS * block.groups;
    uint4* slots = (uint4*)staging + threadIdx.x;
    auto slot = [&](u32 stage, u32 n, u32 side) {
        return slots + ((stage * KEYS + n) * 2 + side) * CHUNKS * DECODE_THREADS;
    };
    auto fetch = [&](u32 stage, u32 base) {
#pragma unroll
        for (u32 n = 0; n < KEYS; n++) {
            u32 ahead = n * block.groups + block.group;
            bool take = base < to && ahead < to - base && block.column < d;
            const C* key = place(take ? base + ahead : from) + (take ? block.column : 0);
            uint4* to_key = slot(stage, n, 0);
            if (wide) {
#pragma unroll
                for (u32 i = 0; i < 2 * CHUNKS; i++) {
                    const C* four = key + i % CHUNKS * (16 / sizeof(C)) + (i < CHUNKS ? 0 : to_value);
                    copy_async16(to_key + i * DECODE_THREADS, four, take);
                }
            } else {
#pragma unroll 1
                for (u32 i = 0; i < 8 * CHUNKS; i++) {
                    u32 c = i % (4 * CHUNKS) * (4 / sizeof(C));
                    bool inside = take && block.column + c < d;
                    const C* word = key + (inside ? c : 0) + (i < 4 * CHUNKS ? 0 : to_value);
                    copy_async4((u32*)(to_key + i / 4 * DECODE_THREADS) + i % 4, word, inside);
                }
            }
        }
        copy_async_commit();
    };
#pragma unroll
    for (u32 i = 0; i + 1 < DECODE_STAGES; i++) {
        fetch(i, to - from > i * step ? from + i * step : to);
    }
    u32 stage = 0;
#pragma unroll 1
    for (u32 base = from; base < to;) {
        u32 last = (DECODE_STAGES - 1) * step;
        fetch(stage == 0 ? DECODE_STAGES - 1 : stage - 1, to - base > last ? base + last : to);
        copy_async_wait<DECODE_STAGES - 1>();
        float s[ROWS][KEYS];
#pragma unroll
        for (u32 n = 0; n < KEYS; n++) {
            float x[8];
            unpack8(slot(stage, n, 0), C{}, x);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                s[r][n] = 0.0f;
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    s[r][n] += queries[r][i] * x[i];
                }
            }
        }
        for (u32 bit = block.lanes / 2; bit > 0; bit /= 2) {
#pragma unroll
            for (u32 i = 0; i < ROWS * KEYS; i++) {
                float other = __shfl_xor_sync(FULL_MASK, s[i / KEYS][i % KEYS], bit);
                s[i / KEYS][i % KEYS] += other;
            }
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            float high = state.most[r];
#pragma unroll
            for (u32 n = 0; n < KEYS; n++) {
                u32 ahead = n * block.groups + block.group;
                s[r][n] = ahead < to - base ? s[r][n] : NEGATIVE_INFINITY;
                high = fmaxf(high, s[r][n]);
            }
            state.rise(r, high);
        }
#pragma unroll
        for (u32 n = 0; n < KEYS; n++) {
            float x[8];
            unpack8(slot(stage, n, 1), C{}, x);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                float weight = fast_exp2(s[r][n] - state.most[r]);
                state.sum[r] += weight;
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    state.out[r][i] += weight * x[i];
                }
            }
        }
        stage = stage + 1 < DECODE_STAGES ? stage + 1 : 0;
        base = to - base > step ? base + step : to;
    }
    copy_async_wait<0>();
}
