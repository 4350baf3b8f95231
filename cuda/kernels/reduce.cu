// y[first + b] = max(scale * sum of f(x), floor) over the flat elements b c .. min((b + 1) c, m k)
// of x[m,k], for b < blocks; f by kind: 0 the value, 1 its magnitude, 2 its square.
//
// A block of 256 threads an element of y; each thread has eight packs of x under way at a time, and
// the four elements of a pack have sums of their own.
#include "rows.cuh"

struct Reduce {
    u32 m, k, p, c, first, blocks, kind;
    float scale, floor;
};

constexpr u32 UNROLL = 8;

template <u32 KIND>
__device__ __forceinline__ float term(float x) {
    return KIND == 0 ? x : KIND == 1 ? fabsf(x) : x * x;
}

template <u32 KIND, bool WIDE>
__device__ __forceinline__ float thread_sum(const float* __restrict__ x, u32 count) {
    constexpr u32 N = PACK<float>;
    float sum[N] = {0.0f, 0.0f, 0.0f, 0.0f};
    u32 step = blockDim.x * N;
    for (u64 first = threadIdx.x * N; first < count; first += UNROLL * step) {
        float v[UNROLL][N];
#pragma unroll
        for (u32 i = 0; i < UNROLL; i++) {
            u64 j = first + i * step;
            load_pack<WIDE>(v[i], x, j < count ? (u32)j : count, count);
        }
#pragma unroll
        for (u32 i = 0; i < UNROLL; i++) {
#pragma unroll
            for (u32 l = 0; l < N; l++) {
                sum[l] += term<KIND>(v[i][l]);
            }
        }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <bool WIDE>
__device__ __forceinline__ void reduce(const Reduce& p, const float* __restrict__ x, float* __restrict__ y) {
    __shared__ float scratch[WARP];
    u64 first = (u64)blockIdx.x * p.c;
    u64 left = (u64)p.m * p.k - first;
    u32 count = left < p.c ? (u32)left : p.c;
    float sum;
    if (p.kind == 0) {
        sum = thread_sum<0, WIDE>(x + first, count);
    } else if (p.kind == 1) {
        sum = thread_sum<1, WIDE>(x + first, count);
    } else {
        sum = thread_sum<2, WIDE>(x + first, count);
    }
    sum = block_reduce<Sum>(sum, 0.0f, scratch);
    if (threadIdx.x == 0) {
        // Unlike fmaxf, this keeps a NaN.
        float value = p.scale * sum;
        y[p.first + blockIdx.x] = value < p.floor ? p.floor : value;
    }
}

extern "C" __global__ void __launch_bounds__(256) reduce_f32(Reduce p, const float* x, float* y) {
    reduce<false>(p, x, y);
}

extern "C" __global__ void __launch_bounds__(256) reduce_vector_f32(Reduce p, const float* x, float* y) {
    reduce<true>(p, x, y);
}
