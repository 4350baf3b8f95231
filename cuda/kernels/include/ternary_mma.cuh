// Many rows of x: the time is that of the tensor cores.
//
// A block of 2 x 2 warps makes a tile of y in steps of 64 along k, each warp 8 TI rows (tokens) and
// 16 CI columns of it. x (64 bytes a row) and packed w (16 bytes a row) arrive in shared memory by
// asynchronous copies, STAGES steps in a ring. w is the left operand, x the right one, and the
// order along k within a step is chosen so that nothing has to be brought into order: the thread
// (g, t) of a warp has codes 16 t .. 16 t + 15 of a row of w, one word that it unpacks for two
// products of depth 32, and the same 16 bytes of x, one vector. Rows of w are placed so that a
// thread ends up with four columns of y side by side. Reads of shared memory touch each bank once.
#pragma once
#include "ternary.cuh"

#define STAGES 4u
#define MMA_THREADS 128u

// Column of a tile whose codes lie at a place of its w. Of 32 places, g, g + 8, g + 16 and g + 24
// are what one thread reads: rows g and g + 8 of two left operands.
__device__ __forceinline__ u32 column_at(u32 place) {
    return place / 32 * 32 + place % 8 * 4 + place % 32 / 8;
}

// Copies that a thread starts in a step. Rows past the end repeat the last one, their results are
// dropped; past the end of k there are zeros of x, which any code may meet.
template <u32 TI, u32 CI, bool WIDE>
struct Loader {
    static constexpr u32 ROWS = 16 * TI, COLUMNS = 32 * CI;
    static constexpr u32 X_COPIES = ROWS * 4 / MMA_THREADS;
    static constexpr u32 W_COPIES = WIDE ? 1 : COLUMNS * 4 / MMA_THREADS;

    const uint4* x_row[X_COPIES];
    const u32* w_row[W_COPIES];
    u32 words;

    __device__ __forceinline__ Loader(const TernaryMatmul& p, const u32* w, const uint4* x, u32 i0, u32 j0) {
        words = (p.k + 15) / 16;
#pragma unroll
        for (u32 c = 0; c < X_COPIES; c++) {
            u32 row = i0 + (threadIdx.x + c * MMA_THREADS) / 4;
            x_row[c] = x + (u64)(row < p.m ? row : p.m - 1) * words;
        }
#pragma unroll
        for (u32 c = 0; c < W_COPIES; c++) {
            u32 row = j0 + column_at(WIDE ? threadIdx.x : (threadIdx.x + c * MMA_THREADS) / 4);
            w_row[c] = w + (u64)(row < p.n ? row : p.n - 1) * words;
        }
    }

    __device__ __forceinline__ void start(u32 step, uint4* x_tile, uint4* w_tile) const {
        u32 at = step * 4 + threadIdx.x % 4;
        bool inside = at < words;
        u32 place = inside ? at : 0;
#pragma unroll
        for (u32 c = 0; c < X_COPIES; c++) {
            copy_async16(x_tile + threadIdx.x + c * MMA_THREADS, x_row[c] + place, inside);
        }
        if (WIDE) {
            if (threadIdx.x < COLUMNS) {
                copy_async16(w_tile + threadIdx.x, w_row[0] + step * 4, true);
            }
        } else {
#pragma unroll
            for (u32 c = 0; c < W_COPIES; c++) {
                copy_async4((u32*)w_tile + threadIdx.x + c * MMA_THREADS, w_row[c] + place, inside);
            }
        }
    }
};

// acc[c][i] += 16 columns c by 8 tokens i, for one step.
template <u32 TI, u32 CI>
__device__ __forceinline__ void multiply_step(i32 (&acc)[CI][TI][4], const uint4* x_tile, const u32* w_tile, u32 lane) {
    uint4 x[TI];
#pragma unroll
    for (u32 i = 0; i < TI; i++) {
        x[i] = x_tile[i * 32 + lane];
    }
#pragma unroll
    for (u32 c = 0; c < CI; c++) {
        u32 low[4], high[4];
        unpack_ternary(w_tile[c * 64 + lane], low);
        unpack_ternary(w_tile[c * 64 + 32 + lane], high);
        u32 first[4] = {low[0], high[0], low[1], high[1]};
        u32 second[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
        for (u32 i = 0; i < TI; i++) {
            u32 b[2] = {x[i].x, x[i].y};
            mma32(acc[c][i], first, b);
        }
#pragma unroll
        for (u32 i = 0; i < TI; i++) {
            u32 b[2] = {x[i].z, x[i].w};
            mma32(acc[c][i], second, b);
        }
    }
}

// i0: the thread's first token, i0 + 1 the second, the next ones follow at distance 8. j0: its first
// four columns, the next ones follow at distance 32.
template <typename T, u32 TI, u32 CI>
__device__ __forceinline__ void store_tile(
    const TernaryMatmul& p, const i32 (&acc)[CI][TI][4], const float* ws, const float* xs, T* y, u32 i0, u32 j0) {
    u32 stride = row_stride<T>(p.l);
    u32 stored = stored_columns<T>(p);
    bool vectors = (p.n0 | stride) % 4 == 0;
#pragma unroll
    for (u32 i = 0; i < 2 * TI; i++) {
        u32 row = i0 + i / 2 * 8 + i % 2;
        if (row < p.m) {
            float scale = row_scale(xs[row], ws[p.scale]);
            T* out = y + (u64)row * stride + p.n0;
#pragma unroll
            for (u32 c = 0; c < CI; c += 2) {
                u32 column = j0 + c * 16;
                float v[4];
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    v[e] = scaled(acc[c + e / 2][i / 2][e % 2 * 2 + i % 2], scale);
                }
                if (vectors && column + 3 < p.n) {
                    store_four(out + column, v);
                } else {
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        if (column + e < stored) {
                            store_one(out + column + e, column + e < p.n ? v[e] : 0.0f);
                        }
                    }
                }
            }
        }
    }
}

// Blocks of the same rows are neighbours. WIDE: rows of w are multiples of 16 bytes (k of 64).
template <typename T, u32 TI, u32 CI, bool WIDE>
__device__ __forceinline__ void ternary_mma(
    const TernaryMatmul& p, const u32* __restrict__ w, const float* __restrict__ ws, const uint4* __restrict__ x,
    const float* __restrict__ xs, T* __restrict__ y) {
    const u32 ROWS = 16 * TI, COLUMNS = 32 * CI;
    __shared__ uint4 x_tile[STAGES * ROWS * 4];
    __shared__ uint4 w_tile[STAGES * COLUMNS];
    u32 across = (p.n + COLUMNS - 1) / COLUMNS;
    u32 i0 = blockIdx.x / across * ROWS;
    u32 j0 = blockIdx.x % across * COLUMNS;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 warp_i = warp / 2 * (8 * TI), warp_j = warp % 2 * (16 * CI);
    u32 steps = (p.k + 63) / 64;

    Loader<TI, CI, WIDE> loader(p, w, x, i0, j0);
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            loader.start(s, x_tile + s * ROWS * 4, w_tile + s * COLUMNS);
        }
        copy_async_commit();
    }
    i32 acc[CI][TI][4] = {};
    for (u32 s = 0; s < steps; s++) {
        copy_async_wait<STAGES - 2>();
        // Step s is there for all, and all have done with step s - 1, whose place is filled next.
        __syncthreads();
        u32 next = s + STAGES - 1;
        if (next < steps) {
            u32 slot = next % STAGES;
            loader.start(next, x_tile + slot * ROWS * 4, w_tile + slot * COLUMNS);
        }
        copy_async_commit();
        u32 slot = s % STAGES;
        multiply_step<TI, CI>(acc, x_tile + (slot * ROWS + warp_i) * 4,
                              (const u32*)(w_tile + slot * COLUMNS + warp_j), lane);
    }
    store_tile<T, TI, CI>(p, acc, ws, xs, y, i0 + warp_i + lane % 4 * 2, j0 + warp_j + lane / 4 * 4);
}
