// y = w * x * r with r = 1 / sqrt(mean(x^2) + eps), a row a block (Zhang and Sennrich 2019).
#include "tritter.cuh"

struct RmsNorm {
    u32 m, k;
    float eps;
};

template <typename T>
__device__ __forceinline__ void rms_norm(
    const RmsNorm& p, const T* __restrict__ x, const float* __restrict__ w, T* __restrict__ y, float* __restrict__ r) {
    __shared__ float scratch[WARP];
    u32 stride = row_stride<T>(p.k);
    const T* row = x + (u64)blockIdx.x * stride;
    T* out = y + (u64)blockIdx.x * stride;
    float sum = 0.0f;
    for (u32 j = threadIdx.x; j < p.k; j += blockDim.x) {
        float v = to_f32(row[j]);
        sum += v * v;
    }
    sum = block_reduce<Sum>(sum, 0.0f, scratch);
    float factor = 1.0f / sqrtf(sum / (float)p.k + p.eps);
    if (threadIdx.x == 0) {
        r[blockIdx.x] = factor;
    }
    for (u32 j = threadIdx.x; j < stride; j += blockDim.x) {
        out[j] = Convert<T>::from(j < p.k ? w[j] * (to_f32(row[j]) * factor) : 0.0f);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    rms_norm_f32(RmsNorm p, const float* x, const float* w, float* y, float* r) {
    rms_norm<float>(p, x, w, y, r);
}

extern "C" __global__ void __launch_bounds__(256)
    rms_norm_bf16(RmsNorm p, const bf16* x, const float* w, bf16* y, float* r) {
    rms_norm<bf16>(p, x, w, y, r);
}
