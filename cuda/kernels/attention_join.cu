// Joins the parts of attention rows by log-sum-exp: with L = ln sum_j exp(lse[j,i]), y[i] = sum_j exp(lse[j,i] - L) o[j,i]
// for i in (row, head), in the order of the parts; 0 where all are empty (lse = -1e30). o[n,m,h,d] lse[n,m,h] y[m,h,d].
//
// A warp takes 32 neighbouring elements of a head's d; grid: rows times heads, and 128 elements a block.
#include "attention.cuh"

struct AttentionJoin {
    u32 n, m, h, d;
};

extern "C" __global__ void __launch_bounds__(128)
    attention_join(AttentionJoin p, const float* __restrict__ o, const float* __restrict__ lse, float* __restrict__ y) {
    u32 lane = threadIdx.x % WARP;
    u32 c = blockIdx.y * 128 + threadIdx.x;
    u64 rows = (u64)p.m * p.h;
    u64 at = blockIdx.x;
    float high = NOTHING;
    for (u32 j = lane; j < p.n; j += WARP) {
        high = fmaxf(high, lse[j * rows + at]);
    }
    high = warp_reduce<Max>(high);
    float x = 0.0f;
    float total = 0.0f;
#pragma unroll 1
    for (u32 first = 0; first < p.n; first += WARP) {
        u32 j = first + lane;
        float part = j < p.n ? lse[j * rows + at] : NOTHING;
        float mine = part > NOTHING ? fast_exp2((part - high) * LOG2E) : 0.0f;
        u32 count = p.n - first < WARP ? p.n - first : WARP;
#pragma unroll 8
        for (u32 i = 0; i < count; i++) {
            float weight = __shfl_sync(FULL_MASK, mine, i);
            total += weight;
            if (c < p.d) {
                x += weight * o[((first + i) * rows + at) * p.d + c];
            }
        }
    }
    if (c < p.d) {
        y[at * p.d + c] = total > 0.0f ? x / total : 0.0f;
    }
}
