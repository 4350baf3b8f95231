// y[m, n0 + j] = f32(sum_k t_jk * x_ik) * (xs_i * ws): t from w[n,k] in two bits (t + 1, 16 in a
// word, lowest bits first, rows of whole words), x[m,k] int8 in rows padded with zeros to 16 bytes,
// y in rows of l. Sums are exact integers, so their order does not matter.
//
// matvec: few rows of x, bound by reading w (ternary_matvec.cuh). mma: many rows, bound by the
// tensor cores (ternary_mma.cuh), in tiles of 128 x 128 or 64 x 64. plain: any size and address, a
// warp for a row of w and four rows of x at a time.
#include "ternary_matvec.cuh"
#include "ternary_mma.cuh"

#define PLAIN_TOKENS 4u

template <typename T>
__device__ __forceinline__ void plain(
    const TernaryMatmul& p, const u32* __restrict__ w, const float* __restrict__ ws, const u32* __restrict__ x,
    const float* __restrict__ xs, T* __restrict__ y) {
    u32 lane = threadIdx.x % WARP;
    u32 j = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    u32 words = (p.k + 15) / 16;
    const u32* codes = w + (u64)(j < p.n ? j : p.n - 1) * words;
    for (u32 i0 = blockIdx.y * PLAIN_TOKENS; i0 < p.m; i0 += gridDim.y * PLAIN_TOKENS) {
        i32 sums[PLAIN_TOKENS] = {};
        for (u32 at = lane; at < words; at += WARP) {
            u32 t[4];
            unpack_ternary(codes[at], t);
#pragma unroll
            for (u32 i = 0; i < PLAIN_TOKENS; i++) {
                // Past the last row the last one again; its sums are not stored.
                u32 token = i0 + i < p.m ? i0 + i : p.m - 1;
                const u32* v = x + ((u64)token * words + at) * 4;
                sums[i] = dot4(t[0], v[0], dot4(t[1], v[1], dot4(t[2], v[2], dot4(t[3], v[3], sums[i]))));
            }
        }
#pragma unroll
        for (u32 i = 0; i < PLAIN_TOKENS; i++) {
            i32 sum = warp_sum(sums[i]);
            if (lane == 0 && j < stored_columns<T>(p) && i0 + i < p.m) {
                float v = scaled(sum, row_scale(xs[i0 + i], ws[0]));
                store_one(y + (u64)(i0 + i) * row_stride<T>(p.l) + p.n0 + j, j < p.n ? v : 0.0f);
            }
        }
    }
}

// ---- entry points ----------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(MATVEC_THREADS, 2) ternary_matmul_matvec_f32(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_matvec<float, 1>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MATVEC_THREADS, 2) ternary_matmul_matvec_bf16(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_matvec<bf16, 1>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MATVEC_THREADS, 2) ternary_matmul_matvec8_f32(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_matvec<float, 8>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MATVEC_THREADS, 2) ternary_matmul_matvec8_bf16(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_matvec<bf16, 8>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS) ternary_matmul_mma128_f32(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_mma<float, 8, 4, true>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS) ternary_matmul_mma128_bf16(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_mma<bf16, 8, 4, true>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 4) ternary_matmul_mma64_f32(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_mma<float, 4, 2, true>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 4) ternary_matmul_mma64_bf16(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_mma<bf16, 4, 2, true>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 4) ternary_matmul_mma64_words_f32(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_mma<float, 4, 2, false>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 4) ternary_matmul_mma64_words_bf16(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_mma<bf16, 4, 2, false>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(256, 4) ternary_matmul_plain_f32(
    TernaryMatmul p, const u32* w, const float* ws, const u32* x, const float* xs, float* y) {
    plain<float>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(256, 4) ternary_matmul_plain_bf16(
    TernaryMatmul p, const u32* w, const float* ws, const u32* x, const float* xs, bf16* y) {
    plain<bf16>(p, w, ws, x, xs, y);
}
