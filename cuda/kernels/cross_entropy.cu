// Cross entropy with z-loss (Chowdhery et al. 2022, section 5), one block a row.
// logits[m,v], target[m] -> loss[m], lse[m]
// lse = log(sum exp(x)); loss = lse - x[target] + z lse^2, or 0 where target >= v.
//
// One pass over the row with a running maximum (Milakov and Gimelshein 2018): a thread takes 16
// elements at a time and rescales its sum once for all of them. Exponentials are taken to base 2,
// exp(x - c) = 2^(x log2(e) - c'), where c' = c log2(e) is rounded once: lse is c' ln(2) + log(sum)
// with the same rounded c', so that the shift cancels exactly.
#include "rows.cuh"

struct CrossEntropy {
    u32 m, v;
    float z;
};

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Below every logit that counts; times log2(e) it is still finite.
constexpr float LOWEST = -1e38f;

template <typename T, bool WIDE>
__device__ __forceinline__ void cross_entropy(
    const CrossEntropy& p,
    const T* __restrict__ logits,
    const u32* __restrict__ target,
    float* __restrict__ loss,
    float* __restrict__ lse) {
    constexpr u32 N = PACK<T>;
    __shared__ float scratch[WARP];
    const T* row = logits + (u64)blockIdx.x * row_stride<T>(p.v);
    u32 picked = target[blockIdx.x];
    float picked_logit = picked < p.v ? to_f32(row[picked]) : 0.0f;

    float shift = LOWEST * LOG2_E;
    float sum = 0.0f;
    u32 step = blockDim.x * N;
    for (u32 first = threadIdx.x * N; first < p.v; first += blockDim.x * HELD) {
        float x[HELD / N][N];
        float most = LOWEST;
#pragma unroll
        for (u32 i = 0; i < HELD / N; i++) {
            load_pack<WIDE>(x[i], row, first + i * step, p.v, -bits_f32(0x7f800000u));
        }
#pragma unroll
        for (u32 i = 0; i < HELD / N; i++) {
#pragma unroll
            for (u32 l = 0; l < N; l++) {
                most = fmaxf(most, x[i][l]);
            }
        }
        // The product must be rounded before anything is subtracted: sums are relative to it.
        float higher = fmaxf(shift, __fmul_rn(most, LOG2_E));
        sum *= fast_exp2(shift - higher);
        shift = higher;
#pragma unroll
        for (u32 i = 0; i < HELD / N; i++) {
#pragma unroll
            for (u32 l = 0; l < N; l++) {
                sum += fast_exp2(fmaf(x[i][l], LOG2_E, -shift));
            }
        }
    }
    float highest = block_reduce<Max>(shift, LOWEST * LOG2_E, scratch);
    sum *= fast_exp2(shift - highest);
    sum = block_reduce<Sum>(sum, 0.0f, scratch);
    if (threadIdx.x == 0) {
        float value = fmaf(highest, LN_2, logf(sum));
        lse[blockIdx.x] = value;
        loss[blockIdx.x] = picked < p.v ? value - picked_logit + p.z * value * value : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(512)
    cross_entropy_f32(CrossEntropy p, const float* logits, const u32* target, float* loss, float* lse) {
    cross_entropy<float, false>(p, logits, target, loss, lse);
}

extern "C" __global__ void __launch_bounds__(512)
    cross_entropy_bf16(CrossEntropy p, const bf16* logits, const u32* target, float* loss, float* lse) {
    cross_entropy<bf16, false>(p, logits, target, loss, lse);
}

extern "C" __global__ void __launch_bounds__(512)
    cross_entropy_vector_f32(CrossEntropy p, const float* logits, const u32* target, float* loss, float* lse) {
    cross_entropy<float, true>(p, logits, target, loss, lse);
}

extern "C" __global__ void __launch_bounds__(512)
    cross_entropy_vector_bf16(CrossEntropy p, const bf16* logits, const u32* target, float* loss, float* lse) {
    cross_entropy<bf16, true>(p, logits, target, loss, lse);
}
