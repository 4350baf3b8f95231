// Planted faults of barriers in shared memory; each `*_good` is what the `*_bad` before it should be.
#include "tritter.cuh"

struct Planted {
    u32 n;
};

// The barrier between writing and reading is missing.
extern "C" __global__ void __launch_bounds__(128) missing_bad(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[(threadIdx.x + 37) % p.n];  // FAULT missing
}

extern "C" __global__ void __launch_bounds__(128) missing_good(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[(threadIdx.x + 37) % p.n];
}

// A buffer is filled again while others still read it.
template <bool GOOD>
__device__ __forceinline__ void reuse(const Planted& p, const float* x, float* y) {
    __shared__ float tile[128];
    float sum = 0.0f;
    for (u32 step = 0; step < 3; step++) {
        tile[threadIdx.x] = x[threadIdx.x] + (float)step;  // FAULT reuse
        __syncthreads();
        sum += tile[(threadIdx.x + 37) % p.n];  // FAULT reuse
        if (GOOD) {
            __syncthreads();
        }
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(128) reuse_bad(Planted p, const float* x, float* y) {
    reuse<false>(p, x, y);
}

extern "C" __global__ void __launch_bounds__(128) reuse_good(Planted p, const float* x, float* y) {
    reuse<true>(p, x, y);
}

// Half of the block waits at another barrier.
extern "C" __global__ void __launch_bounds__(128) divergent_bad(Planted p, const float* x, float* y) {
    float v = x[threadIdx.x];
    if (threadIdx.x < p.n / 2) {
        v += 1.0f;
        __syncthreads();  // FAULT divergent
    } else {
        v += 2.0f;
        __syncthreads();  // FAULT divergent
    }
    y[threadIdx.x] = v;
}

extern "C" __global__ void __launch_bounds__(128) divergent_good(Planted p, const float* x, float* y) {
    float v = x[threadIdx.x];
    v += threadIdx.x < p.n / 2 ? 1.0f : 2.0f;
    __syncthreads();
    y[threadIdx.x] = v;
}

// A thread returns before the barrier.
extern "C" __global__ void __launch_bounds__(128) early_bad(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x + 1 == p.n) {
        return;
    }
    __syncthreads();  // FAULT early
}

extern "C" __global__ void __launch_bounds__(128) early_good(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    if (p.n == 1) {
        return;
    }
    __syncthreads();
}

// The last quarter of the tile is written by nobody.
extern "C" __global__ void __launch_bounds__(128) unwritten_bad(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    if (threadIdx.x < p.n - 32) {
        tile[threadIdx.x] = x[threadIdx.x];
    }
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];  // FAULT unwritten
}

extern "C" __global__ void __launch_bounds__(128) unwritten_good(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    tile[threadIdx.x] = threadIdx.x < p.n - 32 ? x[threadIdx.x] : 0.0f;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

// Halves of a word by two threads are no race; the same half is.
extern "C" __global__ void __launch_bounds__(128) halves_bad(Planted p, const float* x, float* y) {
    __shared__ u16 tile[128];
    tile[threadIdx.x] = 0;
    __syncthreads();
    tile[threadIdx.x / 64] = (u16)threadIdx.x;  // FAULT halves
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x] + (float)tile[threadIdx.x % p.n];
}

extern "C" __global__ void __launch_bounds__(128) halves_good(Planted p, const float* x, float* y) {
    __shared__ u16 tile[128];
    tile[threadIdx.x] = (u16)threadIdx.x;
    __syncthreads();
    tile[127 - threadIdx.x] = (u16)(tile[127 - threadIdx.x] + 1);
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x] + (float)tile[threadIdx.x % p.n];
}

// An atomic and a plain read of one counter, in no order.
extern "C" __global__ void __launch_bounds__(128) atomic_bad(Planted p, const float* x, float* y) {
    __shared__ u32 counter;
    if (threadIdx.x == 0) {
        counter = 0;
    }
    __syncthreads();
    atomicAdd(&counter, p.n);  // FAULT atomic
    y[threadIdx.x] = x[threadIdx.x] + (float)counter;  // FAULT atomic
}

extern "C" __global__ void __launch_bounds__(128) atomic_good(Planted p, const float* x, float* y) {
    __shared__ u32 counter;
    if (threadIdx.x == 0) {
        counter = 0;
    }
    __syncthreads();
    atomicAdd(&counter, p.n);
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x] + (float)counter;
}

// Dynamic shared memory past what the launch asked for (512 bytes).
extern "C" __global__ void __launch_bounds__(128) dynamic_bad(Planted p, const float* x, float* y) {
    extern __shared__ __align__(16) unsigned char smem[];
    float* tile = (float*)smem;
    tile[threadIdx.x + p.n / 128] = x[threadIdx.x];  // FAULT dynamic
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + p.n / 128];
}

extern "C" __global__ void __launch_bounds__(128) dynamic_good(Planted p, const float* x, float* y) {
    extern __shared__ __align__(16) unsigned char smem[];
    float* tile = (float*)smem;
    tile[threadIdx.x + p.n / 128 - 1] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
