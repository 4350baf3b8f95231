// y[m,k] = a[m,k] + b[m,k]. A block makes 4 KiB of y.
#include "elementwise.cuh"

struct Add {
    u32 m, k;
};

template <typename T>
__device__ __forceinline__ void add(const Add& p, const T* a, const T* b, T* y) {
    const T* const in[] = {a, b};
    T* const out[] = {y};
    map(p.m, p.k, in, out, [](const float (&x)[2], float (&sum)[1]) { sum[0] = x[0] + x[1]; });
}

extern "C" __global__ void __launch_bounds__(256) add_f32(Add p, const float* a, const float* b, float* y) {
    add(p, a, b, y);
}

extern "C" __global__ void __launch_bounds__(256) add_bf16(Add p, const bf16* a, const bf16* b, bf16* y) {
    add(p, a, b, y);
}
