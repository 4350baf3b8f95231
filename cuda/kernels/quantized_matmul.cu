// y[m, n0 + j] = sum_k x_ik q_jk s_jg: x[m,k] f32, q[n,k] integers of 8, 6 or 4 bits with a scale s[n,g] in f16 for
// each group of k; y f32 in rows of l.
//
// gemv: up to 8 rows of x, rows of q of whole 16 bytes (widened_gemv.cuh). tiled: any (widened_tile.cuh).
#include "widened_gemv.cuh"
#include "widened_tile.cuh"

struct QuantizedMatmul {
    u32 m, n, k, group, l, n0;
};

__device__ __forceinline__ Widened widened(const QuantizedMatmul& p) {
    return {p.m, p.n, p.k, p.l, p.n0, p.group};
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 3) quantized_matmul_gemv1_i8(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int8, 1>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 2) quantized_matmul_gemv4_i8(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int8, 4>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS) quantized_matmul_gemv8_i8(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int8, 8>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(WIDENED_THREADS, 2) quantized_matmul_tiled_i8(
    QuantizedMatmul p, const float* x, const u32* w, const f16* s, float* y) {
    widened_tile<Int8>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 3) quantized_matmul_gemv1_i6(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int6, 1>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS) quantized_matmul_gemv4_i6(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int6, 4>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS) quantized_matmul_gemv8_i6(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int6, 8>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(WIDENED_THREADS, 2) quantized_matmul_tiled_i6(
    QuantizedMatmul p, const float* x, const u32* w, const f16* s, float* y) {
    widened_tile<Int6>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 3) quantized_matmul_gemv1_i4(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int4, 1>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS) quantized_matmul_gemv4_i4(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int4, 4>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS) quantized_matmul_gemv8_i4(
    QuantizedMatmul p, const float* x, const uint4* w, const f16* s, float* y) {
    widened_gemv<Int4, 8>(widened(p), x, w, s, y);
}

extern "C" __global__ void __launch_bounds__(WIDENED_THREADS, 2) quantized_matmul_tiled_i4(
    QuantizedMatmul p, const float* x, const u32* w, const f16* s, float* y) {
    widened_tile<Int4>(widened(p), x, w, s, y);
}
