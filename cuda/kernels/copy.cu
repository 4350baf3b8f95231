// y[m,k] = x[m,k], in words whatever they hold. A block makes 4 KiB of y.
#include "elementwise.cuh"

struct Copy {
    u32 m, k;
};

template <typename T>
__device__ __forceinline__ void copy(const Copy& p, const T* x, T* y) {
    auto vector = [&](u64 at) { store16((uint4*)y + at, ((const uint4*)x)[at]); };
    auto word = [&](u64 at) { ((u32*)y)[at] = ((const u32*)x)[at]; };
    tile<4>(words_of<T>(p.m, p.k), aligned16(x) && aligned16(y), vector, word);
}

extern "C" __global__ void __launch_bounds__(256) copy_f32(Copy p, const float* x, float* y) {
    copy(p, x, y);
}

extern "C" __global__ void __launch_bounds__(256) copy_bf16(Copy p, const bf16* x, bf16* y) {
    copy(p, x, y);
}
