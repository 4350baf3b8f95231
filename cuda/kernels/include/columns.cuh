// Sums over the rows of a matrix, added to a vector, in two kernels and a fixed order.
//
// First, rows are cut into column_splits(m) runs, and a block sums the terms of one run for
// 32 packs of columns: a warp takes every 8th row, lanes lie side by side over the columns, and
// the warps' sums are added in order. Then the runs' sums, partial[splits,n] in scratch memory,
// are added up in order. How rows are cut depends on m alone, so every card gives the same order.
#pragma once
#include "rows.cuh"

constexpr u32 COLUMN_WARPS = 8;

// How many runs m rows are cut into: at least 16 rows a run. `cuda_rows.rs` has the same.
__device__ __forceinline__ u32 column_splits(u32 m) {
    u32 splits = m / 16u + (m % 16u != 0);
    return splits < 128u ? splits : 128u;
}

// Rows that a thread has under way at a time.
constexpr u32 COLUMN_ROWS = 4;

// Sums of one run. term.load<WIDE>(i, j, take) gives the N terms of columns j..j+N in row i, with
// zeros beyond the last column and, reading nothing, everywhere if `take` is false.
template <bool WIDE, u32 N, typename Term>
__device__ __forceinline__ void sum_columns(const Term& term, u32 m, u32 n, float* __restrict__ partial) {
    __shared__ float sums[COLUMN_WARPS][WARP * N];
    u32 lane = threadIdx.x % WARP;
    u32 warp = threadIdx.x / WARP;
    u32 first = blockIdx.x * WARP * N;
    u32 j = first + lane * N;
    u32 rows = m / gridDim.y + (m % gridDim.y != 0);
    u32 begin = blockIdx.y * rows;
    u32 end = begin + rows < m ? begin + rows : m;

    float sum[N];
#pragma unroll
    for (u32 l = 0; l < N; l++) {
        sum[l] = 0.0f;
    }
    for (u32 i = begin + warp; i < end; i += COLUMN_ROWS * COLUMN_WARPS) {
        float v[COLUMN_ROWS][N];
#pragma unroll
        for (u32 t = 0; t < COLUMN_ROWS; t++) {
            u32 row = i + t * COLUMN_WARPS;
            term.template load<WIDE>(v[t], row, j, row < end);
        }
#pragma unroll
        for (u32 t = 0; t < COLUMN_ROWS; t++) {
#pragma unroll
            for (u32 l = 0; l < N; l++) {
                sum[l] += v[t][l];
            }
        }
    }
#pragma unroll
    for (u32 l = 0; l < N; l++) {
        sums[warp][lane * N + l] = sum[l];
    }
    __syncthreads();
    for (u32 c = threadIdx.x; c < WARP * N && first + c < n; c += COLUMN_WARPS * WARP) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < COLUMN_WARPS; w++) {
            total += sums[w][c];
        }
        partial[(u64)blockIdx.y * n + first + c] = total;
    }
}

// y[n] += sum of partial[splits,n]: a block takes 32 columns, a warp every 8th run.
__device__ __forceinline__ void add_columns(u32 splits, u32 n, const float* __restrict__ partial, float* y) {
    __shared__ float sums[COLUMN_WARPS][WARP];
    u32 lane = threadIdx.x % WARP;
    u32 warp = threadIdx.x / WARP;
    u32 j = blockIdx.x * WARP + lane;
    u32 end = j < n ? splits : 0;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = warp; i < end; i += COLUMN_WARPS) {
        sum += partial[(u64)i * n + j];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && j < n) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < COLUMN_WARPS; w++) {
            total += sums[w][lane];
        }
        y[j] += total;
    }
}
