// Planted faults of warp operations and of asynchronous copies.
#include "tritter.cuh"

struct Planted {
    u32 n;
};

// Lanes exchange through shared memory, and nothing orders them.
extern "C" __global__ void __launch_bounds__(128) sync_bad(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[threadIdx.x ^ (p.n / 128)];  // FAULT sync
}

extern "C" __global__ void __launch_bounds__(128) sync_good(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x ^ (p.n / 128)];
}

// A shuffle brings lanes together but orders no memory.
extern "C" __global__ void __launch_bounds__(128) shuffle_order_bad(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    float other = __shfl_xor_sync(FULL_MASK, x[threadIdx.x], 1);
    y[threadIdx.x] = other + tile[threadIdx.x ^ (p.n / 128)];  // FAULT shuffle_order
}

// Half warps that sync on their own, also with each other's halves in between.
extern "C" __global__ void __launch_bounds__(128) shuffle_order_good(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) {
        __syncwarp(0x0000ffff);
    } else {
        __syncwarp(0xffff0000);
    }
    float other = __shfl_xor_sync(FULL_MASK, x[threadIdx.x], 1);
    y[threadIdx.x] = other + tile[threadIdx.x ^ (p.n / 128)];
}

// Half of the warp calls, the mask names all.
extern "C" __global__ void __launch_bounds__(128) lanes_bad(Planted p, const float* x, float* y) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < p.n / 8) {
        v += __shfl_xor_sync(FULL_MASK, v, 1);  // FAULT lanes
    }
    y[threadIdx.x] = v;
}

extern "C" __global__ void __launch_bounds__(128) lanes_good(Planted p, const float* x, float* y) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < p.n / 8) {
        v += __shfl_xor_sync(0x0000ffff, v, 1);
    }
    y[threadIdx.x] = v;
}

// A shuffle reads a lane that its mask leaves out.
extern "C" __global__ void __launch_bounds__(128) source_bad(Planted p, const float* x, float* y) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < p.n / 8) {
        v += __shfl_xor_sync(0x0000ffff, v, 16);  // FAULT source
    }
    y[threadIdx.x] = v;
}

extern "C" __global__ void __launch_bounds__(128) source_good(Planted p, const float* x, float* y) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < p.n / 8) {
        v += __shfl_sync(0x0000ffff, v, 3, 8);
        v += __shfl_down_sync(0x0000ffff, v, 1, 4);
        v += __shfl_up_sync(0x0000ffff, v, 2);
    }
    y[threadIdx.x] = v;
}

// Lanes of one warp vote at different places.
extern "C" __global__ void __launch_bounds__(128) places_bad(Planted p, const float* x, float* y) {
    u32 seen;
    if (threadIdx.x % 32 < p.n / 8) {
        seen = __ballot_sync(FULL_MASK, x[threadIdx.x] > 0.0f);  // FAULT places
    } else {
        seen = ~__ballot_sync(FULL_MASK, x[threadIdx.x] < 0.0f);  // FAULT places
    }
    y[threadIdx.x] = (float)seen;
}

extern "C" __global__ void __launch_bounds__(128) places_good(Planted p, const float* x, float* y) {
    bool half = threadIdx.x % 32 < p.n / 8;
    u32 seen = __ballot_sync(FULL_MASK, half ? x[threadIdx.x] > 0.0f : x[threadIdx.x] < 0.0f);
    y[threadIdx.x] = (float)(half ? seen : ~seen);
}

enum Fault { NONE, WAIT, COMMIT, BARRIER, SOURCE, ALIGN };

// Copies x to y by way of shared memory, in 16-byte pieces.
template <Fault FAULT>
__device__ __forceinline__ void pipeline(const Planted& p, const float* x, float* y) {
    __shared__ __align__(16) float tile[2][128];
    u32 first = threadIdx.x * 4 % 128;
    u32 half = threadIdx.x / 64;
    float* to = &tile[half][first] + (FAULT == ALIGN ? 4 * (threadIdx.x % 4 == 0) : 0);
    if (threadIdx.x % 64 < 32) {
        copy_async16(to, x + first + (FAULT == ALIGN ? p.n / 128 : 0), true);  // FAULT align
        if (FAULT != COMMIT) {
            copy_async_commit();
        }
    }
    if (FAULT != WAIT) {
        copy_async_wait<0>();
    }
    if (FAULT != BARRIER) {
        __syncthreads();
    }
    y[threadIdx.x] = tile[0][(threadIdx.x + 37) % 128] + tile[1][127 - threadIdx.x];  // FAULT wait commit barrier
}

extern "C" __global__ void __launch_bounds__(128) wait_bad(Planted p, const float* x, float* y) {
    pipeline<WAIT>(p, x, y);
}

extern "C" __global__ void __launch_bounds__(128) wait_good(Planted p, const float* x, float* y) {
    pipeline<NONE>(p, x, y);
}

extern "C" __global__ void __launch_bounds__(128) commit_bad(Planted p, const float* x, float* y) {
    pipeline<COMMIT>(p, x, y);
}

// Two groups, of which the older is waited for.
extern "C" __global__ void __launch_bounds__(128) commit_good(Planted p, const float* x, float* y) {
    __shared__ __align__(16) float tile[2][128];
    copy_async4(&tile[0][threadIdx.x], x + threadIdx.x, true);
    copy_async_commit();
    copy_async4(&tile[1][threadIdx.x], x + threadIdx.x, threadIdx.x % 2 == 0);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    float sum = tile[0][p.n - 1 - threadIdx.x];
    copy_async_wait<0>();
    __syncthreads();
    y[threadIdx.x] = sum + tile[1][p.n - 1 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(128) barrier_bad(Planted p, const float* x, float* y) {
    pipeline<BARRIER>(p, x, y);
}

extern "C" __global__ void __launch_bounds__(128) barrier_good(Planted p, const float* x, float* y) {
    pipeline<NONE>(p, x, y);
}

extern "C" __global__ void __launch_bounds__(128) align_bad(Planted p, const float* x, float* y) {
    pipeline<ALIGN>(p, x, y);
}

extern "C" __global__ void __launch_bounds__(128) align_good(Planted p, const float* x, float* y) {
    pipeline<NONE>(p, x, y);
}

// The destination of a copy is written before the copy has landed.
extern "C" __global__ void __launch_bounds__(128) target_bad(Planted p, const float* x, float* y) {
    __shared__ __align__(16) float tile[128];
    copy_async4(&tile[threadIdx.x], x + threadIdx.x, true);
    copy_async_commit();
    tile[threadIdx.x] = 0.0f;  // FAULT target
    copy_async_wait<0>();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(128) target_good(Planted p, const float* x, float* y) {
    __shared__ __align__(16) float tile[128];
    copy_async4(&tile[threadIdx.x], x + threadIdx.x, true);
    copy_async_commit();
    copy_async_wait<0>();
    tile[threadIdx.x] += 1.0f;
    y[threadIdx.x] = tile[threadIdx.x];
}

// The source of a copy changes before the copy has landed.
extern "C" __global__ void __launch_bounds__(128) changed_bad(Planted p, const float* x, float* y) {
    __shared__ __align__(16) float tile[128];
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    copy_async4(&tile[threadIdx.x], y + threadIdx.x, true);  // FAULT changed
    copy_async_commit();
    y[threadIdx.x] = 1.0f;
    copy_async_wait<0>();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(128) changed_good(Planted p, const float* x, float* y) {
    __shared__ __align__(16) float tile[128];
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    copy_async4(&tile[threadIdx.x], y + threadIdx.x, true);
    copy_async_commit();
    copy_async_wait<0>();
    y[threadIdx.x] = 1.0f;
    y[threadIdx.x] = tile[threadIdx.x];
}
