// y[n,k] += x[m,n]^T z[m,k] in f32: dense product with a transposed left side, the gradient of a weight.
// Reads columns n0..n0+n of x of l columns.
//
// Entries: matmul_tn_<type of x and z>_<way>, where the way is 256, 128, 64: tiles of 128x256, 128x128, 64x128 (bf16,
// tensor cores) or 128x128, 64x64 (f32), rows of multiples of 16 bytes; `ragged`: any rows; `sum`: adds what
// blocks that share a tile's depth have left (m is long and tiles are few, so mostly they do).
//
// With bf16 a window of columns begins at an even n0.
#include "dense_mma.cuh"
#include "dense_simt.cuh"

struct MatmulTn {
    u32 m, n, k, n0, l;
};

__device__ __forceinline__ Output<float> output(const MatmulTn& p, float* y) {
    return {y, p.k, p.n, p.k, p.k, true};
}

template <typename Tile, typename T>
__device__ __forceinline__ void matmul_tn(const MatmulTn& p, const T* x, const T* z, float* y, float* scratch) {
    Factor<T> a = {x + p.n0, row_stride<T>(p.l), p.n, p.m};
    Factor<T> b = {z, row_stride<T>(p.k), p.k, p.m};
    product<Tile>(a, b, output(p, y), scratch);
}

// ---- f32 -----------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256, 2)
    matmul_tn_f32_128(MatmulTn p, const float* x, const float* z, float* y, float* scratch) {
    matmul_tn<Simt128<false, false>>(p, x, z, y, scratch);
}

extern "C" __global__ void __launch_bounds__(64, 4)
    matmul_tn_f32_64(MatmulTn p, const float* x, const float* z, float* y, float* scratch) {
    matmul_tn<Simt64<false, false>>(p, x, z, y, scratch);
}

extern "C" __global__ void __launch_bounds__(64, 4)
    matmul_tn_f32_ragged(MatmulTn p, const float* x, const float* z, float* y, float* scratch) {
    matmul_tn<SimtRagged<false, false>>(p, x, z, y, scratch);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    matmul_tn_f32_sum(MatmulTn p, const float* x, const float* z, float* y, const float* scratch) {
    sum_splits(output(p, y), scratch);
}

// ---- bf16 ----------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256)
    matmul_tn_bf16_256(MatmulTn p, const bf16* x, const bf16* z, float* y, float* scratch) {
    matmul_tn<Mma256<bf16, false, false>>(p, x, z, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_tn_bf16_128(MatmulTn p, const bf16* x, const bf16* z, float* y, float* scratch) {
    matmul_tn<Mma128<bf16, false, false>>(p, x, z, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_tn_bf16_64(MatmulTn p, const bf16* x, const bf16* z, float* y, float* scratch) {
    matmul_tn<Mma64<bf16, false, false>>(p, x, z, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_tn_bf16_ragged(MatmulTn p, const bf16* x, const bf16* z, float* y, float* scratch) {
    matmul_tn<MmaRagged<bf16, false, false>>(p, x, z, y, scratch);
}
