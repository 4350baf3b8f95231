// Gradient of RMSNorm with respect to its input. With g = w * dy:
// dx_ij = r_i (g_ij - x_ij r_i^2 mean_l(g_il x_il)).
// x[m,k], w[k], r[m], dy[m,k] -> dx[m,k]
//
// Rows are divided as in rms_norm.cu: short ones take a part of a warp, others a block, and a
// thread keeps x and g of its elements in registers between the sum and the result.
#include "rows.cuh"

struct RmsNormGrad {
    u32 m, k;
};

// g = w * dy of a pack; returns sum + its inner product with x.
template <u32 N>
__device__ __forceinline__ float scaled_dot(float (&g)[N], const float (&w)[N], const float (&x)[N], float sum) {
#pragma unroll
    for (u32 l = 0; l < N; l++) {
        g[l] *= w[l];
        sum += g[l] * x[l];
    }
    return sum;
}

template <typename T, bool WIDE>
__device__ __forceinline__ void rms_norm_grad(
    const RmsNormGrad& p,
    const T* __restrict__ x,
    const float* __restrict__ w,
    const float* __restrict__ r,
    const T* __restrict__ dy,
    T* __restrict__ dx) {
    constexpr u32 N = PACK<T>;
    __shared__ float scratch[WARP];
    RowShare share = share_rows<N>(p.k);
    bool live = share.row < p.m;
    u32 k = live ? p.k : 0;
    u64 first = (u64)share.row * row_stride<T>(p.k);
    u32 step = share.threads * N;
    u32 held = share.threads * HELD;

    float v[HELD / N][N], g[HELD / N][N];
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        load_pack<WIDE>(v[i], x + first, share.thread * N + i * step, k);
        load_pack<WIDE>(g[i], dy + first, share.thread * N + i * step, k);
    }
    float factor = live ? r[share.row] : 0.0f;
    float dot = 0.0f;
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        float weight[N];
        load_pack<WIDE>(weight, w, share.thread * N + i * step, k);
        dot = scaled_dot(g[i], weight, v[i], dot);
    }
    for (u32 j = held + share.thread * N; j < k; j += step) {
        float more[N], upstream[N], weight[N];
        load_pack<WIDE>(more, x + first, j, k);
        load_pack<WIDE>(upstream, dy + first, j, k);
        load_pack<WIDE>(weight, w, j, k);
        dot = scaled_dot(upstream, weight, more, dot);
    }
    dot = row_reduce<Sum>(share, dot, 0.0f, scratch);
    float shrink = factor * factor * (dot / (float)p.k);

#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            g[i][l] = factor * (g[i][l] - v[i][l] * shrink);
        }
        store_pack<WIDE>(dx + first, share.thread * N + i * step, k, g[i]);
    }
    for (u32 j = held + share.thread * N; j < k; j += step) {
        float more[N], upstream[N], weight[N];
        load_pack<WIDE>(more, x + first, j, k);
        load_pack<WIDE>(upstream, dy + first, j, k);
        load_pack<WIDE>(weight, w, j, k);
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            upstream[l] = factor * (weight[l] * upstream[l] - more[l] * shrink);
        }
        store_pack<WIDE>(dx + first, j, k, upstream);
    }
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_grad_f32(
    RmsNormGrad p, const float* x, const float* w, const float* r, const float* dy, float* dx) {
    rms_norm_grad<float, false>(p, x, w, r, dy, dx);
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_grad_bf16(
    RmsNormGrad p, const bf16* x, const float* w, const float* r, const bf16* dy, bf16* dx) {
    rms_norm_grad<bf16, false>(p, x, w, r, dy, dx);
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_grad_vector_f32(
    RmsNormGrad p, const float* x, const float* w, const float* r, const float* dy, float* dx) {
    rms_norm_grad<float, true>(p, x, w, r, dy, dx);
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_grad_vector_bf16(
    RmsNormGrad p, const bf16* x, const float* w, const float* r, const bf16* dy, bf16* dx) {
    rms_norm_grad<bf16, true>(p, x, w, r, dy, dx);
}
