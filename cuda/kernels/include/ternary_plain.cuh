// The fused rows of decoding for any size and address, in two kernels: a block a token makes its codes
// in scratch memory, then a warp takes a pair of rows of w for one token after the other.
//
// Scratch: for each token codes in bytes, in rows of multiples of 80 with zeros at the end, then for each
// its scale.
#pragma once
#include "ternary_row.cuh"

#define PLAIN_THREADS 256u

__device__ __forceinline__ u32 plain_stride(u32 k) {
    return (k + 79) / 80 * 80;
}

// Grid: tokens.
__device__ __forceinline__ void plain_codes(u32 m, const Prologue& x, u32* __restrict__ scratch) {
    __shared__ float partial[WARP];
    u32 stride = plain_stride(x.k);
    const float* row = x.x + (u64)blockIdx.x * x.k;
    float squares = 0.0f, most = 0.0f;
    for (u32 j = threadIdx.x; j < x.k; j += blockDim.x) {
        squares += row[j] * row[j];
        most = fmaxf(most, fabsf(x.normed() ? row[j] * x.norm[j] : row[j]));
    }
    squares = block_reduce<Sum>(squares, 0.0f, partial);
    most = block_reduce<Max>(most, 0.0f, partial);
    Coding coding(squares, most, x.normed(), x.k, x.eps);
    if (threadIdx.x == 0) {
        scratch[(u64)m * (stride / 4) + blockIdx.x] = f32_bits(coding.step);
    }
    for (u32 c = threadIdx.x; c < stride / 4; c += blockDim.x) {
        float v[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 j = 4 * c + i;
            v[i] = j < x.k ? (x.normed() ? row[j] * x.norm[j] : row[j]) : 0.0f;
        }
        float4 four = make_float4(v[0], v[1], v[2], v[3]);
        scratch[(u64)blockIdx.x * (stride / 4) + c] = codes_of(four, coding.factor, coding.scale);
    }
}

// The product of a word of w with as many elements of x.
__device__ __forceinline__ i32 word_product(T2, u32 word, const u32* x) {
    u32 t[4];
    unpack_ternary(word, t);
    i32 sum = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        sum = dot4(t[i], x[i], sum);
    }
    return sum;
}

__device__ __forceinline__ i32 word_product(T1, u32 word, const u32* x) {
    u32 digits[5];
    unpack_fifths(word, digits);
    i32 sum = 0, offset = 0;
#pragma unroll
    for (u32 i = 0; i < 5; i++) {
        sum = dot4(digits[i], x[i], sum);
        offset = dot4(0x01010101u, x[i], offset);
    }
    return sum - offset;
}

// The product of a row of w with a row of codes, for every lane.
template <typename Codes>
__device__ __forceinline__ i32 row_product(const u32* w, const u32* x, u32 words) {
    i32 sum = 0;
    for (u32 at = threadIdx.x % WARP; at < words; at += WARP) {
        sum += word_product(Codes{}, w[at], x + at * (Codes::WORD / 4));
    }
    return warp_sum(sum);
}

// Grid: pairs, by warps.
template <typename Codes, typename Op>
__device__ __forceinline__ void plain_rows(u32 m, u32 k, const u32* __restrict__ w, const Op& op, const u32* scratch) {
    u32 words = (k + Codes::WORD - 1) / Codes::WORD;
    u32 stride = plain_stride(k) / 4;
    u32 number = blockIdx.x * (PLAIN_THREADS / WARP) + threadIdx.x / WARP;
    u32 pair = min(number, op.pairs() - 1);
    for (u32 i = 0; i < m; i++) {
        const u32* x = scratch + (u64)i * stride;
        i32 low = row_product<Codes>(w + (u64)op.low(pair) * words, x, words);
        i32 high = row_product<Codes>(w + (u64)op.high(pair) * words, x, words);
        if (threadIdx.x % WARP == 0 && number < op.pairs()) {
            op.finish(i, pair, low, high, bits_f32(scratch[(u64)m * stride + i]), op.early(i, pair));
        }
    }
}
