// Attention of few tokens over many keys: the keys of a token are split over blocks, and a second
// kernel joins the parts by their maxima and sums (Flash-Decoding, Dao et al. 2023).
//
// A block takes one part of one token's keys for up to ROWS heads that share a key-value head, so
// that K and V are read once. `lanes` threads share a key, 8 elements each (16 bytes of a 16-bit
// cache), and keep their own online softmax over the keys that come by; 128 / lanes such groups
// are joined at the end. A part's size follows from the span on the device, not from the capacity
// of the cache: blocks past the last part leave at once.
#pragma once
#include "attention.cuh"

#define DECODE_THREADS 128u

// Most parts, and floats of scratch memory before them (the first says how many parts there are).
// Both also stand in runtime/src/ops/attention/cuda.rs.
#define DECODE_PARTS 512u
#define DECODE_HEADER 4u

struct Decode {
    u32 lanes, groups, part, parts;

    // How n keys of d elements are split over at most `splits` parts.
    __device__ __forceinline__ Decode(u32 d, u32 n, u32 splits) : lanes(1) {
        while (lanes * 8 < d) {
            lanes *= 2;
        }
        groups = DECODE_THREADS / lanes;
        u32 step = 4 * groups;
        part = ((n + splits - 1) / splits + step - 1) / step * step;
        parts = n == 0 ? 0 : (n + part - 1) / part;
    }
};

// Eight elements as they lie in memory.
template <typename T>
struct Eight {
    static const u32 WORDS = 2 * sizeof(T);
    u32 word[WORDS];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < WORDS; i++) {
            word[i] = 0;
        }
    }

    // Elements c .. c+7 of a row of d; what lies past the row is 0. With `wide` the row begins at
    // a multiple of 16 bytes and d is a multiple of 8.
    __device__ __forceinline__ void load(const T* row, u32 c, u32 d, bool wide) {
        const u32* from = (const u32*)(row + c);
#pragma unroll
        for (u32 i = 0; i < WORDS; i += 4) {
            if (wide) {
                uint4 four = *(const uint4*)(from + i);
                word[i] = four.x;
                word[i + 1] = four.y;
                word[i + 2] = four.z;
                word[i + 3] = four.w;
            } else {
#pragma unroll
                for (u32 l = i; l < i + 4; l++) {
                    word[l] = c + l * (4 / sizeof(T)) < d ? from[l] : 0;
                }
            }
        }
    }

    __device__ __forceinline__ void unpack_to(float (&x)[8]) const {
#pragma unroll
        for (u32 i = 0; i < 8; i += 2) {
            unpack_pair(T{}, i, x[i], x[i + 1]);
        }
    }

  private:
    __device__ __forceinline__ void unpack_pair(float, u32 i, float& low, float& high) const {
        low = bits_f32(word[i]);
        high = bits_f32(word[i + 1]);
    }

    template <typename H>
    __device__ __forceinline__ void unpack_pair(H, u32 i, float& low, float& high) const {
        unpack(word[i / 2], H{}, low, high);
    }
};

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

__device__ __forceinline__ void store2(float* row, u32 c, float x, float y) {
    row[c] = x;
    row[c + 1] = y;
}

__device__ __forceinline__ void store2(bf16* row, u32 c, float x, float y) {
    *(u32*)(row + c) = pack_bf16(x, y);
}

// Grid: parts, key-value heads times groups of ROWS sharing heads, tokens. Scratch: the header, for
// each (token, head, part) d floats of weighted values, then for each its maximum and sum. A single
// part is the result.
template <typename T, typename C, u32 ROWS, u32 KEYS>
__device__ __forceinline__ void attention_decode(
    const Attention& p, const T* __restrict__ q, const C* __restrict__ k, const C* __restrict__ v,
    const u32* __restrict__ span, T* __restrict__ o, float* __restrict__ lse, float* __restrict__ scratch) {
    extern __shared__ __align__(16) unsigned char smem[];
    const u32 WARPS = DECODE_THREADS / WARP;
    u32 token = blockIdx.z;
    u32 kv = blockIdx.y % p.g;
    u32 shared = p.h / p.g;
    u32 first_row = blockIdx.y / p.g * ROWS;
    u32 head = kv * shared + first_row;
    u32 rows = shared - first_row < ROWS ? shared - first_row : ROWS;
    Span seen = span_of(p, span, token);
    Decode split(p.d, seen.end - seen.first, gridDim.x);
    if (blockIdx.x >= split.parts && blockIdx.x > 0) {
        return;
    }
    if (threadIdx.x == 0 && blockIdx.x == 0 && blockIdx.y == 0 && token == 0) {
        scratch[0] = bits_f32(gridDim.x);
    }
    u32 start = seen.first + blockIdx.x * split.part;
    u32 stop = seen.end - start < split.part ? seen.end : start + split.part;

    u32 group = threadIdx.x / split.lanes;
    u32 column = threadIdx.x % split.lanes * 8;
    float scale = p.scale * LOG2E;
    float queries[ROWS][8];
    bool wide_q = p.d % 8 == 0 && aligned16(q);
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        Eight<T> x;
        x.clear();
        if (r < rows && column < p.d) {
            x.load(q + ((u64)token * p.h + head + r) * p.d, column, p.d, wide_q);
        }
        x.unpack_to(queries[r]);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            queries[r][i] *= scale;
        }
    }

    bool wide = p.d % 8 == 0 && aligned16(k) && aligned16(v);
    u64 stride = (u64)p.g * p.d;
    const C* k_head = k + (u64)kv * p.d;
    const C* v_head = v + (u64)kv * p.d;
    Softmax<ROWS> state;
    state.clear();
    for (u32 base = start; base < stop; base += KEYS * split.groups) {
        Eight<C> keys[KEYS], values[KEYS];
#pragma unroll
        for (u32 n = 0; n < KEYS; n++) {
            u32 key = base + n * split.groups + group;
            keys[n].clear();
            values[n].clear();
            if (key < stop && column < p.d) {
                keys[n].load(k_head + key * stride, column, p.d, wide);
                values[n].load(v_head + key * stride, column, p.d, wide);
            }
        }
        float s[ROWS][KEYS];
#pragma unroll
        for (u32 n = 0; n < KEYS; n++) {
            float x[8];
            keys[n].unpack_to(x);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                s[r][n] = 0.0f;
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    s[r][n] += queries[r][i] * x[i];
                }
            }
        }
        for (u32 bit = split.lanes / 2; bit > 0; bit /= 2) {
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
                s[r][n] = base + n * split.groups + group < stop ? s[r][n] : NEGATIVE_INFINITY;
                high = fmaxf(high, s[r][n]);
            }
            state.rise(r, high);
        }
#pragma unroll
        for (u32 n = 0; n < KEYS; n++) {
            float x[8];
            values[n].unpack_to(x);
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
    }

    for (u32 bit = split.lanes; bit < WARP; bit *= 2) {
        state.join(bit);
    }
    u32 wide_d = split.lanes * 8;
    float* outs = (float*)smem;                   // [WARPS][ROWS][wide_d]
    float* facts = outs + WARPS * ROWS * wide_d;  // [WARPS][ROWS][2]
    u32 warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP < split.lanes) {
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                outs[(warp * ROWS + r) * wide_d + column + i] = state.out[r][i];
            }
            if (column == 0) {
                facts[2 * (warp * ROWS + r)] = state.most[r];
                facts[2 * (warp * ROWS + r) + 1] = state.sum[r];
            }
        }
    }
    __syncthreads();
    for (u32 r = 0; r < rows; r++) {
        float high = NOTHING;
        for (u32 w = 0; w < WARPS; w++) {
            high = fmaxf(high, facts[2 * (w * ROWS + r)]);
        }
        float total = 0.0f;
        float factor[WARPS];
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) {
            factor[w] = fast_exp2(facts[2 * (w * ROWS + r)] - high);
            total += factor[w] * facts[2 * (w * ROWS + r) + 1];
        }
        bool whole = gridDim.x == 1;
        u64 at = (u64)token * p.h + head + r;
        u64 part = at * gridDim.x + blockIdx.x;
        for (u32 c = 2 * threadIdx.x; c < p.d; c += 2 * DECODE_THREADS) {
            float x = 0.0f;
            float y = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) {
                x += factor[w] * outs[(w * ROWS + r) * wide_d + c];
                y += factor[w] * outs[(w * ROWS + r) * wide_d + c + 1];
            }
            if (whole) {
                float share = total > 0.0f ? 1.0f / total : 0.0f;
                store2(o + at * p.d, c, x * share, y * share);
            } else {
                store2(scratch + DECODE_HEADER + part * p.d, c, x, y);
            }
        }
        if (threadIdx.x == 0 && whole) {
            lse[at] = total > 0.0f ? high * LN2 + logf(total) : NOTHING;
        } else if (threadIdx.x == 0) {
            store2(scratch + DECODE_HEADER + (u64)p.m * p.h * gridDim.x * p.d, 2 * part, high, total);
        }
    }
}

// Joins the parts of a row in their order. Grid: tokens times heads.
template <typename T>
__device__ __forceinline__ void attention_join(
    const Attention& p, const u32* __restrict__ span, T* __restrict__ o, float* __restrict__ lse,
    const float* __restrict__ scratch) {
    __shared__ float factor[DECODE_PARTS];
    __shared__ float partial[WARP];
    u32 splits = f32_bits(scratch[0]);
    u64 at = blockIdx.x;
    const float* out = scratch + DECODE_HEADER + at * splits * p.d;
    const float* facts = scratch + DECODE_HEADER + ((u64)p.m * p.h * p.d + 2 * at) * splits;
    Span seen = span_of(p, span, blockIdx.x / p.h);
    Decode split(p.d, seen.end - seen.first, splits);

    float high = NOTHING;
    for (u32 i = threadIdx.x; i < split.parts; i += DECODE_THREADS) {
        high = fmaxf(high, facts[2 * i]);
    }
    high = block_reduce<Max>(high, NOTHING, partial);
    float total = 0.0f;
    for (u32 i = threadIdx.x; i < split.parts; i += DECODE_THREADS) {
        factor[i] = fast_exp2(facts[2 * i] - high);
        total += factor[i] * facts[2 * i + 1];
    }
    total = block_reduce<Sum>(total, 0.0f, partial);  // Its barriers make the factors visible, too.
    float share = total > 0.0f ? 1.0f / total : 0.0f;
    for (u32 c = 2 * threadIdx.x; c < p.d; c += 2 * DECODE_THREADS) {
        float x = 0.0f;
        float y = 0.0f;
#pragma unroll 8
        for (u32 i = 0; i < split.parts; i++) {
            float2 pair = *(const float2*)(out + (u64)i * p.d + c);
            x += factor[i] * pair.x;
            y += factor[i] * pair.y;
        }
        store2(o + at * p.d, c, x * share, y * share);
    }
    if (threadIdx.x == 0) {
        lse[at] = total > 0.0f ? high * LN2 + logf(total) : NOTHING;
    }
}
