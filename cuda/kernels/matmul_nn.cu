// y[m,k] = x[m,n] w[n,k]: dense product, the gradient of matmul_nt's input. Reads columns n0..n0+n of x
// of l columns; adds to y if `add` is set.
//
// Entries: matmul_nn_<type of x and w>[_<type of y>]_<way>, where the way is 256, 128, 64: tiles of 128x256, 128x128,
// 64x128 (bf16, tensor cores) or 128x128, 64x64 (f32), rows of multiples of 16 bytes; `ragged`: any rows;
// `sum`: adds what blocks that share a tile's depth have left.
//
// With bf16 a window of columns begins at an even n0.
#include "dense_mma.cuh"
#include "dense_simt.cuh"

struct MatmulNn {
    u32 m, n, k, n0, l, add;
};

template <typename Y>
__device__ __forceinline__ Output<Y> output(const MatmulNn& p, Y* y) {
    return {y, row_stride<Y>(p.k), p.m, p.k, row_stride<Y>(p.k), p.add != 0};
}

template <typename Tile, typename T, typename Y>
__device__ __forceinline__ void matmul_nn(const MatmulNn& p, const T* x, const T* w, Y* y, float* scratch) {
    Factor<T> a = {x + p.n0, row_stride<T>(p.l), p.m, p.n};
    Factor<T> b = {w, row_stride<T>(p.k), p.k, p.n};
    product<Tile>(a, b, output(p, y), scratch);
}

// ---- f32 -----------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256, 2)
    matmul_nn_f32_128(MatmulNn p, const float* x, const float* w, float* y, float* scratch) {
    matmul_nn<Simt128<true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(64, 4)
    matmul_nn_f32_64(MatmulNn p, const float* x, const float* w, float* y, float* scratch) {
    matmul_nn<Simt64<true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(64, 4)
    matmul_nn_f32_ragged(MatmulNn p, const float* x, const float* w, float* y, float* scratch) {
    matmul_nn<SimtRagged<true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    matmul_nn_f32_sum(MatmulNn p, const float* x, const float* w, float* y, const float* scratch) {
    sum_splits(output(p, y), scratch);
}

// ---- bf16 to bf16 --------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256)
    matmul_nn_bf16_256(MatmulNn p, const bf16* x, const bf16* w, bf16* y, float* scratch) {
    matmul_nn<Mma256<bf16, true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nn_bf16_128(MatmulNn p, const bf16* x, const bf16* w, bf16* y, float* scratch) {
    matmul_nn<Mma128<bf16, true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nn_bf16_64(MatmulNn p, const bf16* x, const bf16* w, bf16* y, float* scratch) {
    matmul_nn<Mma64<bf16, true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nn_bf16_ragged(MatmulNn p, const bf16* x, const bf16* w, bf16* y, float* scratch) {
    matmul_nn<MmaRagged<bf16, true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    matmul_nn_bf16_sum(MatmulNn p, const bf16* x, const bf16* w, bf16* y, const float* scratch) {
    sum_splits(output(p, y), scratch);
}

// ---- bf16 to f32 ---------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256)
    matmul_nn_bf16_f32_256(MatmulNn p, const bf16* x, const bf16* w, float* y, float* scratch) {
    matmul_nn<Mma256<bf16, true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nn_bf16_f32_128(MatmulNn p, const bf16* x, const bf16* w, float* y, float* scratch) {
    matmul_nn<Mma128<bf16, true, false>>(p, x, w, y, scratch);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    matmul_nn_bf16_f32_ragged(MatmulNn p, const bf16* x, const bf16* w, float* y, float* scratch) {
    matmul_nn<MmaRagged<bf16, true, false>>(p, x, w, y, scratch);
}
