// Gradient of RMSNorm with respect to its weight, added to an accumulator:
// dw[k] += sum over m of dy[m,k] * x[m,k] * r[m]. See columns.cuh.
#include "columns.cuh"

struct RmsNormWeightGrad {
    u32 m, k;
};

template <typename T>
struct Product {
    const T* __restrict__ x;
    const float* __restrict__ r;
    const T* __restrict__ dy;
    u32 k;

    template <bool WIDE, u32 N>
    __device__ __forceinline__ void load(float (&v)[N], u32 i, u32 j, bool take) const {
        float upstream[N];
        load_pack<WIDE>(v, x + (u64)i * row_stride<T>(k), j, take ? k : 0);
        load_pack<WIDE>(upstream, dy + (u64)i * row_stride<T>(k), j, take ? k : 0);
        float factor = take ? r[i] : 0.0f;
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            v[l] = upstream[l] * v[l] * factor;
        }
    }
};

template <typename T, bool WIDE>
__device__ __forceinline__ void rms_norm_weight_grad(
    const RmsNormWeightGrad& p, const T* x, const float* r, const T* dy, float* partial) {
    Product<T> product = {x, r, dy, p.k};
    sum_columns<WIDE, PACK<T>>(product, p.m, p.k, partial);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_grad_f32(
    RmsNormWeightGrad p, const float* x, const float* r, const float* dy, float* dw, float* partial) {
    rms_norm_weight_grad<float, false>(p, x, r, dy, partial);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_grad_bf16(
    RmsNormWeightGrad p, const bf16* x, const float* r, const bf16* dy, float* dw, float* partial) {
    rms_norm_weight_grad<bf16, false>(p, x, r, dy, partial);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_grad_vector_f32(
    RmsNormWeightGrad p, const float* x, const float* r, const float* dy, float* dw, float* partial) {
    rms_norm_weight_grad<float, true>(p, x, r, dy, partial);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_grad_vector_bf16(
    RmsNormWeightGrad p, const bf16* x, const float* r, const bf16* dy, float* dw, float* partial) {
    rms_norm_weight_grad<bf16, true>(p, x, r, dy, partial);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_weight_grad_add(
    RmsNormWeightGrad p, const void* x, const float* r, const void* dy, float* dw, const float* partial) {
    add_columns(column_splits(p.m), p.k, partial, dw);
}
