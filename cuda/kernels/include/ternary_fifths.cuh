// Many rows of x by weights in 1.6 bits: tensor cores, as in ternary_mma.cuh, in steps of 160 along k.
//
// A step has 8 words of a row of w, whose rows are no multiples of 16 bytes, and 160 bytes of a row of x.
// The thread (g, t) of a warp has two words of a row of w, 40 codes, that it unpacks to ten words in their
// order, and the same 40 bytes of x: five products of depth 32. Reads of shared memory take 8 bytes and
// touch each bank once, as rows of x are 160 bytes apart.
#pragma once
#include "ternary_codes.cuh"
#include "ternary_mma.cuh"

#define FIFTH_STAGES 2u
#define FIFTH_WORDS 8u      // of w in a step
#define FIFTH_VECTORS 10u   // of x in a step

template <u32 TI, u32 CI>
struct FifthLoader {
    static constexpr u32 ROWS = 16 * TI, COLUMNS = 32 * CI;
    const uint4* x;
    const u32* w;
    u32 i0, j0, m, n, words, vectors;

    __device__ __forceinline__ void start(u32 step, uint4* x_tile, u32* w_tile) const {
        for (u32 c = threadIdx.x; c < ROWS * FIFTH_VECTORS; c += MMA_THREADS) {
            u32 row = min(i0 + c / FIFTH_VECTORS, m - 1), at = step * FIFTH_VECTORS + c % FIFTH_VECTORS;
            bool inside = at < vectors;
            copy_async16(x_tile + c, x + (u64)row * vectors + (inside ? at : 0), inside);
        }
#pragma unroll
        for (u32 c = threadIdx.x; c < COLUMNS * FIFTH_WORDS; c += MMA_THREADS) {
            u32 row = min(j0 + column_at(c / FIFTH_WORDS), n - 1), at = step * FIFTH_WORDS + c % FIFTH_WORDS;
            bool inside = at < words;
            copy_async4(w_tile + c, w + (u64)row * words + (inside ? at : 0), inside);
        }
    }
};

// The ten words of codes t of two words of w.
__device__ __forceinline__ void unpack_tenths(uint2 word, u32 (&t)[10]) {
    u32 digits[5];
    unpack_fifths(word.x, digits);
#pragma unroll
    for (u32 s = 0; s < 5; s++) {
        t[s] = digits[s];
    }
    unpack_fifths(word.y, digits);
#pragma unroll
    for (u32 s = 0; s < 5; s++) {
        t[5 + s] = digits[s];
    }
}

// The signed bytes c - 1 of four codes; the sums c + 127 do not carry.
__device__ __forceinline__ u32 centred(u32 codes) {
    return (codes + 0x7f7f7f7fu) ^ 0x80808080u;
}

template <u32 TI, u32 CI>
__device__ __forceinline__ void
multiply_fifths(i32 (&acc)[CI][TI][4], const unsigned char* x_tile, const u32* w_tile, u32 lane) {
    const u32 STRIDE = 16 * FIFTH_VECTORS;
    const unsigned char* x_lane = x_tile + lane / 4 * STRIDE + lane % 4 * 40;
    u32 low[CI][10], high[CI][10];
#pragma unroll
    for (u32 c = 0; c < CI; c++) {
        const uint2* w = (const uint2*)(w_tile + c * 16 * FIFTH_WORDS) + lane;
        unpack_tenths(w[0], low[c]);
        unpack_tenths(w[8 * FIFTH_WORDS / 2], high[c]);
    }
#pragma unroll
    for (u32 s = 0; s < 5; s++) {
        u32 a[CI][4];
#pragma unroll
        for (u32 c = 0; c < CI; c++) {
            a[c][0] = centred(low[c][2 * s]);
            a[c][1] = centred(high[c][2 * s]);
            a[c][2] = centred(low[c][2 * s + 1]);
            a[c][3] = centred(high[c][2 * s + 1]);
        }
#pragma unroll
        for (u32 i = 0; i < TI; i++) {
            uint2 x = *(const uint2*)(x_lane + i * 8 * STRIDE + s * 8);
            u32 b[2] = {x.x, x.y};
#pragma unroll
            for (u32 c = 0; c < CI; c++) {
                mma32(acc[c][i], a[c], b);
            }
        }
    }
}

// A block of 2 x 2 warps makes a tile of 16 TI rows of x by 32 CI rows of w. Blocks of the same rows are
// neighbours. Dynamic shared memory: FIFTH_STAGES * (16 TI * 160 + 32 CI * 32) bytes.
template <typename T, u32 TI, u32 CI>
__device__ __forceinline__ void ternary_fifths(
    const TernaryMatmul& p, const u32* __restrict__ w, const float* __restrict__ ws, const uint4* __restrict__ x,
    const float* __restrict__ xs, T* __restrict__ y) {
    extern __shared__ __align__(16) unsigned char smem[];
    const u32 ROWS = 16 * TI, COLUMNS = 32 * CI;
    uint4* x_tile = (uint4*)smem;
    u32* w_tile = (u32*)(x_tile + FIFTH_STAGES * ROWS * FIFTH_VECTORS);
    u32 across = (p.n + COLUMNS - 1) / COLUMNS;
    u32 i0 = blockIdx.x / across * ROWS;
    u32 j0 = blockIdx.x % across * COLUMNS;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 warp_i = warp / 2 * (8 * TI), warp_j = warp % 2 * (16 * CI);
    u32 steps = (p.k + 159) / 160;

    FifthLoader<TI, CI> loader = {x, w, i0, j0, p.m, p.n, (p.k + 19) / 20, (p.k + 15) / 16};
#pragma unroll
    for (u32 s = 0; s < FIFTH_STAGES - 1; s++) {
        if (s < steps) {
            loader.start(s, x_tile + s * ROWS * FIFTH_VECTORS, w_tile + s * COLUMNS * FIFTH_WORDS);
        }
        copy_async_commit();
    }
    i32 acc[CI][TI][4] = {};
#pragma unroll 1
    for (u32 s = 0; s < steps; s++) {
        copy_async_wait<FIFTH_STAGES - 2>();
        // Step s is there for all, and all have done with step s - 1, whose place is filled next.
        __syncthreads();
        u32 next = s + FIFTH_STAGES - 1;
        if (next < steps) {
            u32 slot = next % FIFTH_STAGES;
            loader.start(next, x_tile + slot * ROWS * FIFTH_VECTORS, w_tile + slot * COLUMNS * FIFTH_WORDS);
        }
        copy_async_commit();
        u32 slot = s % FIFTH_STAGES;
        multiply_fifths<TI, CI>(acc, (const unsigned char*)(x_tile + (slot * ROWS + warp_i) * FIFTH_VECTORS),
                                w_tile + (slot * COLUMNS + warp_j) * FIFTH_WORDS, lane);
    }
    copy_async_wait<0>();
    store_tile<T, TI, CI>(p, acc, ws, xs, y, i0 + warp_i + lane % 4 * 2, j0 + warp_j + lane / 4 * 4);
}
