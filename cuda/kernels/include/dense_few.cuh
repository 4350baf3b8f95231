// Dense products with a transposed weight for few rows of x (decoding), bound by reading w once:
// y[m,n] = x[m,k] w[n,k]^T, each weight read by 16-byte loads straight into registers.
#pragma once
#include "dense_tile.cuh"

// ---- 16-bit weights, up to 16 rows of x ----------------------------------------------

#define FEW_WARPS 8u
#define FEW_BATCH 4u  // loads of w under way in a warp

// Eight elements of a row from `at` on, zeros beyond the row. Elements come in whole words; WORD: bytes of one load.
template <u32 WORD, typename T>
__device__ __forceinline__ uint4 eight(const T* row, u32 at, u32 k) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (WORD == 16) {
        if (at < k) {
            v = *(const uint4*)(row + at);
        }
    } else {
        const u32* words = (const u32*)row;
        v.x = at < k ? words[at / 2] : 0;
        v.y = at + 2 < k ? words[at / 2 + 1] : 0;
        v.z = at + 4 < k ? words[at / 2 + 2] : 0;
        v.w = at + 6 < k ? words[at / 2 + 3] : 0;
    }
    return v;
}

// A block computes eight columns of y for up to 16 rows on tensor cores, its warps sharing k in turns of
// 32. Lane (g, t) loads elements 8t..8t+7 of a turn from row g of w and of x: the order of k within a
// mma is free as long as both factors agree, so the words of a 16-byte load are fragments as they are.
template <u32 WORD, typename T>
__device__ __forceinline__ void
few_sum(float (&sum)[4], const T* __restrict__ x, const T* __restrict__ w, u32 m, u32 n, u32 k) {
    u32 lane = threadIdx.x % WARP;
    u32 g = lane / 4;
    u64 stride = row_stride<T>(k);
    const T* weight = w + min(blockIdx.x * 8 + g, n - 1) * stride;
    const T* low = x + g * stride;
    const T* high = x + (g + 8) * stride;
    for (u32 turn = threadIdx.x / WARP * 32; turn < k; turn += FEW_WARPS * FEW_BATCH * 32) {
        u32 at = turn + lane % 4 * 8;
        uint4 b[FEW_BATCH];
#pragma unroll
        for (u32 i = 0; i < FEW_BATCH; i++) {
            b[i] = eight<WORD>(weight, at + i * FEW_WARPS * 32, k);
        }
#pragma unroll
        for (u32 i = 0; i < FEW_BATCH; i++) {
            uint4 c = eight<WORD>(low, at + i * FEW_WARPS * 32, g < m ? k : 0);
            uint4 d = eight<WORD>(high, at + i * FEW_WARPS * 32, g + 8 < m ? k : 0);
            u32 first[4] = {c.x, d.x, c.y, d.y};
            u32 second[4] = {c.z, d.z, c.w, d.w};
            u32 third[2] = {b[i].x, b[i].y};
            u32 fourth[2] = {b[i].z, b[i].w};
            mma16<T>(sum, first, third);
            mma16<T>(sum, second, fourth);
        }
    }
}

// Blocks of FEW_WARPS warps, one for eight columns of y.
template <typename T, typename Y>
__device__ __forceinline__ void few(const Output<Y>& y, const T* __restrict__ x, const T* __restrict__ w, u32 k) {
    __shared__ float part[FEW_WARPS][16][8];
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (row_stride<T>(k) % 8 == 0 && aligned16(x) && aligned16(w)) {
        few_sum<16>(sum, x, w, y.rows, y.cols, k);
    } else {
        few_sum<4>(sum, x, w, y.rows, y.cols, k);
    }
    u32 lane = threadIdx.x % WARP;
    u32 warp = threadIdx.x / WARP;
    part[warp][lane / 4][lane % 4 * 2] = sum[0];
    part[warp][lane / 4][lane % 4 * 2 + 1] = sum[1];
    part[warp][lane / 4 + 8][lane % 4 * 2] = sum[2];
    part[warp][lane / 4 + 8][lane % 4 * 2 + 1] = sum[3];
    __syncthreads();
    if (threadIdx.x < 32) {
        u32 row = threadIdx.x / 2;
        u32 col = threadIdx.x % 2 * 4;
        float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (u32 i = 0; i < FEW_WARPS; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                total[e] += part[i][row][col + e];
            }
        }
        store4(y, whole_quads(y), row, blockIdx.x * 8 + col, total);
    }
}

// ---- f32, up to ROWS rows of x -------------------------------------------------------

// A warp computes one column of y: its lanes share k in turns of four elements (WORD 16) or one (WORD 4).
template <u32 ROWS, u32 WORD>
__device__ __forceinline__ void
gemv_sum(float (&sum)[ROWS], const float* __restrict__ x, const float* __restrict__ w, u32 m, u32 k) {
    constexpr u32 ELEMENTS = WORD / 4;
    for (u32 at = threadIdx.x % WARP * ELEMENTS; at < k; at += FEW_BATCH * WARP * ELEMENTS) {
        float b[FEW_BATCH][ELEMENTS];
#pragma unroll
        for (u32 i = 0; i < FEW_BATCH; i++) {
            u32 from = at + i * WARP * ELEMENTS;
            if (WORD == 16) {
                float4 v = from < k ? *(const float4*)(w + from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                b[i][0] = v.x, b[i][1 % ELEMENTS] = v.y, b[i][2 % ELEMENTS] = v.z, b[i][3 % ELEMENTS] = v.w;
            } else {
                b[i][0] = from < k ? w[from] : 0.0f;
            }
        }
#pragma unroll
        for (u32 i = 0; i < FEW_BATCH; i++) {
            u32 from = at + i * WARP * ELEMENTS;
#pragma unroll
            for (u32 row = 0; row < ROWS; row++) {
                const float* a = x + (u64)min(row, m - 1) * k + from;
                if (WORD == 16) {
                    float4 v = from < k ? *(const float4*)a : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    sum[row] += b[i][0] * v.x;
                    sum[row] += b[i][1 % ELEMENTS] * v.y;
                    sum[row] += b[i][2 % ELEMENTS] * v.z;
                    sum[row] += b[i][3 % ELEMENTS] * v.w;
                } else {
                    sum[row] += b[i][0] * (from < k ? a[0] : 0.0f);
                }
            }
        }
    }
}

// Blocks of FEW_WARPS warps, one for as many columns of y.
template <u32 ROWS>
__device__ __forceinline__ void
gemv(const Output<float>& y, const float* __restrict__ x, const float* __restrict__ w, u32 k) {
    u32 col = blockIdx.x * FEW_WARPS + threadIdx.x / WARP;
    const float* weight = w + (u64)min(col, y.cols - 1) * k;
    float sum[ROWS];
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        sum[i] = 0.0f;
    }
    if (k % 4 == 0 && aligned16(x) && aligned16(w)) {
        gemv_sum<ROWS, 16>(sum, x, weight, y.rows, k);
    } else {
        gemv_sum<ROWS, 4>(sum, x, weight, y.rows, k);
    }
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        sum[i] = warp_reduce<Sum>(sum[i]);
    }
    if (threadIdx.x % WARP == 0 && col < y.cols) {
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            if (i < y.rows) {
                y.data[(u64)i * y.stride + col] = sum[i];
            }
        }
    }
}
