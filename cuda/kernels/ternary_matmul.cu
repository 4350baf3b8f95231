// y[m, n0 + j] = f32(sum_k t_jk * x_ik) * (xs_i * ws[scale]): t from w[n,k] in codes t + 1 of two bits (t2: 16
// in a word, lowest bits first) or of 1.6 bits (t1: 20 in a word, five a byte), in rows of whole words; x[m,k]
// int8 in rows padded with zeros to 16 bytes, y in rows of l. Sums are exact integers, so their order does
// not matter.
//
// matvec: few rows of x, bound by reading w (ternary_matvec.cuh). mma, fifths: many rows, bound by the
// tensor cores (ternary_mma.cuh, ternary_fifths.cuh). plain: any size and address, a warp for a row of w
// and four rows of x at a time.
#include "ternary_fifths.cuh"
#include "ternary_matvec.cuh"

#define PLAIN_TOKENS 4u

// Adds the products of a word of w with its elements of rows of x, `count` words from x[i] on.
__device__ __forceinline__ void add_word(T2, i32 (&sums)[PLAIN_TOKENS], u32 word, const u32* const (&x)[PLAIN_TOKENS], u32) {
    u32 t[4];
    unpack_ternary(word, t);
#pragma unroll
    for (u32 i = 0; i < PLAIN_TOKENS; i++) {
        const u32* v = x[i];
        sums[i] = dot4(t[0], v[0], dot4(t[1], v[1], dot4(t[2], v[2], dot4(t[3], v[3], sums[i]))));
    }
}

__device__ __forceinline__ void
add_word(T1, i32 (&sums)[PLAIN_TOKENS], u32 word, const u32* const (&x)[PLAIN_TOKENS], u32 count) {
    u32 t[5];
    unpack_fifths(word, t);
#pragma unroll
    for (u32 s = 0; s < 5; s++) {
        t[s] = centred(t[s]);
        if (s < count) {
#pragma unroll
            for (u32 i = 0; i < PLAIN_TOKENS; i++) {
                sums[i] = dot4(t[s], x[i][s], sums[i]);
            }
        }
    }
}

template <typename T, typename Codes>
__device__ __forceinline__ void plain(
    const TernaryMatmul& p, const u32* __restrict__ w, const float* __restrict__ ws, const u32* __restrict__ x,
    const float* __restrict__ xs, T* __restrict__ y) {
    const u32 FOURS = Codes::WORD / 4;
    u32 lane = threadIdx.x % WARP;
    u32 j = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    u32 words = (p.k + Codes::WORD - 1) / Codes::WORD;
    u32 stride = (p.k + 15) / 16 * 4;
    const u32* codes = w + (u64)(j < p.n ? j : p.n - 1) * words;
    for (u32 i0 = blockIdx.y * PLAIN_TOKENS; i0 < p.m; i0 += gridDim.y * PLAIN_TOKENS) {
        i32 sums[PLAIN_TOKENS] = {};
        for (u32 at = lane; at < words; at += WARP) {
            const u32* v[PLAIN_TOKENS];
#pragma unroll
            for (u32 i = 0; i < PLAIN_TOKENS; i++) {
                // Past the last row the last one again; its sums are not stored.
                v[i] = x + (u64)min(i0 + i, p.m - 1) * stride + at * FOURS;
            }
            add_word(Codes{}, sums, codes[at], v, stride - at * FOURS);
        }
#pragma unroll
        for (u32 i = 0; i < PLAIN_TOKENS; i++) {
            i32 sum = warp_sum(sums[i]);
            if (lane == 0 && j < stored_columns<T>(p) && i0 + i < p.m) {
                float v = scaled(sum, row_scale(xs[i0 + i], ws[p.scale]));
                store_one(y + (u64)(i0 + i) * row_stride<T>(p.l) + p.n0 + j, j < p.n ? v : 0.0f);
            }
        }
    }
}

// ---- entry points ----------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_matmul_few1_t2_f32(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_few<T2, 1>(p.m, p.k, w, MatvecRows<float>{p, ws, x, xs, y});
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_matmul_few1_t2_bf16(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_few<T2, 1>(p.m, p.k, w, MatvecRows<bf16>{p, ws, x, xs, y});
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_matmul_few8_t2_f32(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_few<T2, 8>(p.m, p.k, w, MatvecRows<float>{p, ws, x, xs, y});
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_matmul_few8_t2_bf16(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_few<T2, 8>(p.m, p.k, w, MatvecRows<bf16>{p, ws, x, xs, y});
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_matmul_few1_t1_f32(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_few<T1, 1>(p.m, p.k, w, MatvecRows<float>{p, ws, x, xs, y});
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_matmul_few1_t1_bf16(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_few<T1, 1>(p.m, p.k, w, MatvecRows<bf16>{p, ws, x, xs, y});
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_matmul_few8_t1_f32(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_few<T1, 8>(p.m, p.k, w, MatvecRows<float>{p, ws, x, xs, y});
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_matmul_few8_t1_bf16(
    TernaryMatmul p, const uint4* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_few<T1, 8>(p.m, p.k, w, MatvecRows<bf16>{p, ws, x, xs, y});
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

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 2) ternary_matmul_fifths128_f32(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_fifths<float, 8, 2>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 3) ternary_matmul_fifths64_f32(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, float* y) {
    ternary_fifths<float, 4, 2>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 2) ternary_matmul_fifths128_bf16(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_fifths<bf16, 8, 2>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 3) ternary_matmul_fifths64_bf16(
    TernaryMatmul p, const u32* w, const float* ws, const uint4* x, const float* xs, bf16* y) {
    ternary_fifths<bf16, 4, 2>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(256, 4) ternary_matmul_plain_t2_f32(
    TernaryMatmul p, const u32* w, const float* ws, const u32* x, const float* xs, float* y) {
    plain<float, T2>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(256, 4) ternary_matmul_plain_t2_bf16(
    TernaryMatmul p, const u32* w, const float* ws, const u32* x, const float* xs, bf16* y) {
    plain<bf16, T2>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(256, 4) ternary_matmul_plain_t1_f32(
    TernaryMatmul p, const u32* w, const float* ws, const u32* x, const float* xs, float* y) {
    plain<float, T1>(p, w, ws, x, xs, y);
}

extern "C" __global__ void __launch_bounds__(256, 4) ternary_matmul_plain_t1_bf16(
    TernaryMatmul p, const u32* w, const float* ws, const u32* x, const float* xs, bf16* y) {
    plain<bf16, T1>(p, w, ws, x, xs, y);
}
