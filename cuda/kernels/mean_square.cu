// loss = sum of (x - t)^2 / (m k) over x[m,k] and t[m,k], in two steps: blocks write partial sums
// to scratch memory, then one block adds these. The order depends on m, k and the operands'
// alignment alone, so the bits repeat.
#include "elementwise.cuh"

struct MeanSquare {
    u32 m, k;
};

__device__ __forceinline__ float square_of_difference(float x, float t) {
    float difference = x - t;
    return difference * difference;
}

// Of at most 1,024 blocks: block b takes vectors (or elements) b * 256 .. b * 256 + 255 of every
// gridDim.x * 256.
extern "C" __global__ void __launch_bounds__(256)
    mean_square_partial(MeanSquare p, const float* x, const float* t, float* loss, float* partial) {
    __shared__ float scratch[WARP];
    u64 n = (u64)p.m * p.k;
    u64 whole = aligned16(x) && aligned16(t) ? n / 4 : 0;
    u64 first = (u64)blockIdx.x * TILE_THREADS + threadIdx.x;
    u64 stride = (u64)gridDim.x * TILE_THREADS;
    float sum = 0.0f;
#pragma unroll 4
    for (u64 at = first; at < whole; at += stride) {
        float a[4], b[4];
        load<4>(x + 4 * at, a);
        load<4>(t + 4 * at, b);
        float low = square_of_difference(a[0], b[0]) + square_of_difference(a[1], b[1]);
        float high = square_of_difference(a[2], b[2]) + square_of_difference(a[3], b[3]);
        sum += low + high;
    }
#pragma unroll 4
    for (u64 at = 4 * whole + first; at < n; at += stride) {
        sum += square_of_difference(x[at], t[at]);
    }
    sum = block_reduce<Sum>(sum, 0.0f, scratch);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

// Blocks of the first step, as the launch has it: one for each 4,096 elements, at most 1,024.
__device__ __forceinline__ u32 partials(u64 n) {
    u64 blocks = (n + 4095) / 4096;
    return blocks < 1024 ? (u32)blocks : 1024;
}

extern "C" __global__ void __launch_bounds__(256)
    mean_square_total(MeanSquare p, const float* x, const float* t, float* loss, const float* partial) {
    __shared__ float scratch[WARP];
    u64 n = (u64)p.m * p.k;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < partials(n); i += TILE_THREADS) {
        sum += partial[i];
    }
    sum = block_reduce<Sum>(sum, 0.0f, scratch);
    if (threadIdx.x == 0) {
        loss[0] = sum / (float)n;
    }
}
