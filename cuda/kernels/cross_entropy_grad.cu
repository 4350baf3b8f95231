// Gradient of the cross entropy with z-loss with respect to the logits.
// logits[m,v], target[m], lse[m], dl[m] -> dlogits[m,v]
// dlogits = dl (exp(x - lse) (1 + 2 z lse) - [j = target]), or 0 where target >= v.
//
// A block covers 16 elements a thread of one row; blocks of a row are neighbours in the grid.
#include "rows.cuh"

struct CrossEntropyGrad {
    u32 m, v;
    float z;
};

template <typename T, bool WIDE>
__device__ __forceinline__ void cross_entropy_grad(
    const CrossEntropyGrad& p,
    const T* __restrict__ logits,
    const u32* __restrict__ target,
    const float* __restrict__ lse,
    const float* __restrict__ dl,
    T* __restrict__ dlogits) {
    constexpr u32 N = PACK<T>;
    u32 span = blockDim.x * HELD;
    u32 spans = (p.v - 1u) / span + 1u;
    u32 row = blockIdx.x / spans;
    u32 first = blockIdx.x % spans * span + threadIdx.x * N;
    u64 base = (u64)row * row_stride<T>(p.v);
    u32 picked = target[row];
    bool counts = picked < p.v;
    float shift = lse[row];
    float upstream = dl[row];
    float shrink = 1.0f + 2.0f * p.z * shift;

    float x[HELD / N][N];
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        load_pack<WIDE>(x[i], logits + base, first + i * blockDim.x * N, p.v);
    }
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        u32 j = first + i * blockDim.x * N;
#pragma unroll
        for (u32 l = 0; l < N; l++) {
            float hit = j + l == picked ? 1.0f : 0.0f;
            x[i][l] = counts ? upstream * (expf(x[i][l] - shift) * shrink - hit) : 0.0f;
        }
        store_pack<WIDE>(dlogits + base, j, p.v, x[i]);
    }
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_grad_f32(
    CrossEntropyGrad p, const float* logits, const u32* target, const float* lse, const float* dl, float* dlogits) {
    cross_entropy_grad<float, false>(p, logits, target, lse, dl, dlogits);
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_grad_bf16(
    CrossEntropyGrad p, const bf16* logits, const u32* target, const float* lse, const float* dl, bf16* dlogits) {
    cross_entropy_grad<bf16, false>(p, logits, target, lse, dl, dlogits);
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_grad_vector_f32(
    CrossEntropyGrad p, const float* logits, const u32* target, const float* lse, const float* dl, float* dlogits) {
    cross_entropy_grad<float, true>(p, logits, target, lse, dl, dlogits);
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy_grad_vector_bf16(
    CrossEntropyGrad p, const bf16* logits, const u32* target, const float* lse, const float* dl, bf16* dlogits) {
    cross_entropy_grad<bf16, true>(p, logits, target, lse, dl, dlogits);
}
