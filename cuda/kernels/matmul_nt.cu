// y[m,n] = x[m,k] w[n,k]^T: dense product with a transposed weight, columns n0..n0+n of y of l columns.
//
// Entries: matmul_nt_<type of x and w>[_<type of y>]_<way>, where the way is 256, 128, 64: tiles of 128x256, 128x128,
// 64x128 (16 bit, tensor cores) or 128x128, 64x64 (f32), rows of multiples of 16 bytes; `ragged`: any rows;
// `few`: up to 16 rows of x (f32: 1 or 4); `sum`: adds what blocks that share a tile's depth have left.
// matmul_nt_f32_<type of w>_<way> with w kept in 16 bits: gemv1, 4, 8: up to so many rows of x, rows of w of multiples
// of 32 bytes (widened_gemv.cuh); tiled: any (widened_tile.cuh).
//
// With 16-bit types a window of columns begins at an even n0.
#include "dense_few.cuh"
#include "dense_mma.cuh"
#include "dense_simt.cuh"
#include "widened_gemv.cuh"
#include "widened_tile.cuh"

struct MatmulNt {
    u32 m, n, k, n0, l;
};

// The window of y that is written.
template <typename Y>
__device__ __forceinline__ Output<Y> output(const MatmulNt& p, Y* y) {
    u32 padded = p.n0 + p.n == p.l ? row_stride<Y>(p.l) - p.n0 : p.n;
    return {y + p.n0, row_stride<Y>(p.l), p.m, p.n, padded, false};
}

template <typename Tile, typename T, typename Y>
__device__ __forceinline__ void matmul_nt(const MatmulNt& p, const T* x, const T* w, Y* y, float* scratch) {
    Factor<T> a = {x, row_stride<T>(p.k), p.m, p.k};
    Factor<T> b = {w, row_stride<T>(p.k), p.n, p.k};
    product<Tile>(a, b, output(p, y), scratch);
}

// ---- f32 -----------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256)
    matmul_nt_f32_few1(MatmulNt p, const float* x, const float* w, float* y) {
    gemv<1>(output(p, y), x, w, p.k);
}

extern "C" __global__ void __launch_bounds__(256)
    matmul_nt_f32_few4(MatmulNt p, const float* x, const float* w, float* y) {
    gemv<4>(output(p, y), x, w, p.k);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    matmul_nt_f32_128(MatmulNt p, const float* x, const float* w, float* y, float* scratch) {
    matmul_nt<Simt128<true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(64, 4)
    matmul_nt_f32_64(MatmulNt p, const float* x, const float* w, float* y, float* scratch) {
    matmul_nt<Simt64<true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(64, 4)
    matmul_nt_f32_ragged(MatmulNt p, const float* x, const float* w, float* y, float* scratch) {
    matmul_nt<SimtRagged<true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    matmul_nt_f32_sum(MatmulNt p, const float* x, const float* w, float* y, const float* scratch) {
    sum_splits(output(p, y), scratch);
}

// ---- bf16 to bf16 --------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256)
    matmul_nt_bf16_few(MatmulNt p, const bf16* x, const bf16* w, bf16* y) {
    few(output(p, y), x, w, p.k);
}

extern "C" __global__ void __launch_bounds__(256)
    matmul_nt_bf16_256(MatmulNt p, const bf16* x, const bf16* w, bf16* y, float* scratch) {
    matmul_nt<Mma256<bf16, true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nt_bf16_128(MatmulNt p, const bf16* x, const bf16* w, bf16* y, float* scratch) {
    matmul_nt<Mma128<bf16, true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nt_bf16_64(MatmulNt p, const bf16* x, const bf16* w, bf16* y, float* scratch) {
    matmul_nt<Mma64<bf16, true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nt_bf16_ragged(MatmulNt p, const bf16* x, const bf16* w, bf16* y, float* scratch) {
    matmul_nt<MmaRagged<bf16, true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    matmul_nt_bf16_sum(MatmulNt p, const bf16* x, const bf16* w, bf16* y, const float* scratch) {
    sum_splits(output(p, y), scratch);
}

// ---- bf16 to f32 ---------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256)
    matmul_nt_bf16_f32_few(MatmulNt p, const bf16* x, const bf16* w, float* y) {
    few(output(p, y), x, w, p.k);
}

extern "C" __global__ void __launch_bounds__(256)
    matmul_nt_bf16_f32_256(MatmulNt p, const bf16* x, const bf16* w, float* y, float* scratch) {
    matmul_nt<Mma256<bf16, true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nt_bf16_f32_128(MatmulNt p, const bf16* x, const bf16* w, float* y, float* scratch) {
    matmul_nt<Mma128<bf16, true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nt_bf16_f32_ragged(MatmulNt p, const bf16* x, const bf16* w, float* y, float* scratch) {
    matmul_nt<MmaRagged<bf16, true, true>>(p, x, w, y, scratch);
}

// ---- f16 to f32 ----------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256)
    matmul_nt_f16_few(MatmulNt p, const f16* x, const f16* w, float* y) {
    few(output(p, y), x, w, p.k);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nt_f16_128(MatmulNt p, const f16* x, const f16* w, float* y, float* scratch) {
    matmul_nt<Mma128<f16, true, true>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nt_f16_ragged(MatmulNt p, const f16* x, const f16* w, float* y, float* scratch) {
    matmul_nt<MmaRagged<f16, true, true>>(p, x, w, y, scratch);
}

// ---- f32 with weights in 16 bits -----------------------------------------------------

__device__ __forceinline__ Widened widened(const MatmulNt& p) {
    return {p.m, p.n, p.k, p.l, p.n0, 0};
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 3)
    matmul_nt_f32_f16_gemv1(MatmulNt p, const float* x, const uint4* w, float* y) {
    widened_gemv<Half<f16>, 1>(widened(p), x, w, nullptr, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 2)
    matmul_nt_f32_f16_gemv4(MatmulNt p, const float* x, const uint4* w, float* y) {
    widened_gemv<Half<f16>, 4>(widened(p), x, w, nullptr, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS)
    matmul_nt_f32_f16_gemv8(MatmulNt p, const float* x, const uint4* w, float* y) {
    widened_gemv<Half<f16>, 8>(widened(p), x, w, nullptr, y);
}

extern "C" __global__ void __launch_bounds__(WIDENED_THREADS, 2)
    matmul_nt_f32_f16_tiled(MatmulNt p, const float* x, const u32* w, float* y) {
    widened_tile<Half<f16>>(widened(p), x, w, nullptr, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 3)
    matmul_nt_f32_bf16_gemv1(MatmulNt p, const float* x, const uint4* w, float* y) {
    widened_gemv<Half<bf16>, 1>(widened(p), x, w, nullptr, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 2)
    matmul_nt_f32_bf16_gemv4(MatmulNt p, const float* x, const uint4* w, float* y) {
    widened_gemv<Half<bf16>, 4>(widened(p), x, w, nullptr, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS)
    matmul_nt_f32_bf16_gemv8(MatmulNt p, const float* x, const uint4* w, float* y) {
    widened_gemv<Half<bf16>, 8>(widened(p), x, w, nullptr, y);
}

extern "C" __global__ void __launch_bounds__(WIDENED_THREADS, 2)
    matmul_nt_f32_bf16_tiled(MatmulNt p, const float* x, const u32* w, float* y) {
    widened_tile<Half<bf16>>(widened(p), x, w, nullptr, y);
}
