// Planted faults of global memory, of indices and of shifts. x has 128 + 4 elements, y 128.
#include "tritter.cuh"

struct Planted {
    u32 n;
};

// Reads one element too many.
extern "C" __global__ void __launch_bounds__(128) beyond_bad(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x + 5];  // FAULT beyond
}

extern "C" __global__ void __launch_bounds__(128) beyond_good(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x + 4];
}

// Reads the element before the first.
extern "C" __global__ void __launch_bounds__(128) before_bad(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[(i32)threadIdx.x - 1];  // FAULT before
}

extern "C" __global__ void __launch_bounds__(128) before_good(Planted p, const float* x, float* y) {
    y[threadIdx.x] = threadIdx.x > 0 ? x[(i32)threadIdx.x - 1] : 0.0f;
}

// Writes one half word too many: a row of 16-bit elements without its padding.
extern "C" __global__ void __launch_bounds__(128) half_bad(Planted p, const float* x, float* y) {
    u16* halves = (u16*)y;
    halves[2 * threadIdx.x] = 0;
    halves[2 * threadIdx.x + 1] = (u16)x[threadIdx.x];
    if (threadIdx.x == p.n - 1) {
        halves[2 * p.n] = 0;  // FAULT half
    }
}

extern "C" __global__ void __launch_bounds__(128) half_good(Planted p, const float* x, float* y) {
    u16* halves = (u16*)y;
    halves[2 * threadIdx.x] = 0;
    halves[2 * threadIdx.x + 1] = (u16)x[threadIdx.x];
}

// Loads 16 bytes at a multiple of 4.
extern "C" __global__ void __launch_bounds__(128) vector_bad(Planted p, const float* x, float* y) {
    float4 v = *(const float4*)(x + threadIdx.x / 4 * 4 + p.n % 127);  // FAULT vector
    y[threadIdx.x] = v.x + v.w;
}

extern "C" __global__ void __launch_bounds__(128) vector_good(Planted p, const float* x, float* y) {
    float4 v = *(const float4*)(x + threadIdx.x / 4 * 4 + p.n % 126 * 2);
    y[threadIdx.x] = v.x + v.w;
}

// Copies 16 bytes at once to a multiple of 4.
extern "C" __global__ void __launch_bounds__(128) store_bad(Planted p, const float* x, float* y) {
    if (threadIdx.x < 31) {
        ((float4*)(y + p.n % 127))[threadIdx.x] = ((const float4*)x)[threadIdx.x];  // FAULT store
    }
}

extern "C" __global__ void __launch_bounds__(128) store_good(Planted p, const float* x, float* y) {
    if (threadIdx.x < 32) {
        ((float4*)y)[threadIdx.x] = ((const float4*)x)[threadIdx.x];
    }
}

// All blocks write the same element.
extern "C" __global__ void __launch_bounds__(128) blocks_bad(Planted p, const float* x, float* y) {
    if (blockIdx.x == 0) {
        y[threadIdx.x] = x[threadIdx.x];  // FAULT blocks
    }
    if (threadIdx.x == 0) {
        y[p.n - 1 - blockIdx.x / 8] = 1.0f;  // FAULT blocks
    }
}

extern "C" __global__ void __launch_bounds__(128) blocks_good(Planted p, const float* x, float* y) {
    if (threadIdx.x % 3 == blockIdx.x) {
        y[threadIdx.x] = x[threadIdx.x];
    }
}

// A block reads what another one writes.
extern "C" __global__ void __launch_bounds__(128) other_block_bad(Planted p, const float* x, float* y) {
    if (threadIdx.x % 3 == blockIdx.x) {
        y[threadIdx.x] = x[threadIdx.x];
    }
    __syncthreads();
    if (threadIdx.x == 0 && y[p.n - 1] > 1e30f) {  // FAULT other_block
        y[blockIdx.x] = 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(128) other_block_good(Planted p, const float* x, float* y) {
    if (threadIdx.x % 3 == blockIdx.x) {
        y[threadIdx.x] = x[threadIdx.x];
    }
    __syncthreads();
    if (threadIdx.x == 0 && y[blockIdx.x] > 1e30f) {
        y[blockIdx.x] = 0.0f;
    }
}

// Writes to an operand that is only read.
extern "C" __global__ void __launch_bounds__(128) read_only_bad(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == p.n - 1) {
        ((float*)x)[threadIdx.x] = 0.0f;  // FAULT read_only
    }
}

extern "C" __global__ void __launch_bounds__(128) read_only_good(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == p.n - 1) {
        y[threadIdx.x] = 0.0f;
    }
}

// Adds to an output that nobody has written.
extern "C" __global__ void __launch_bounds__(128) output_bad(Planted p, const float* x, float* y) {
    y[threadIdx.x] += x[threadIdx.x];  // FAULT output
}

extern "C" __global__ void __launch_bounds__(128) output_good(Planted p, const float* x, float* y) {
    y[threadIdx.x] = 0.0f;
    y[threadIdx.x] += x[threadIdx.x];
}

// An index outside an array of known length.
extern "C" __global__ void __launch_bounds__(128) index_bad(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    __shared__ float next[128];
    tile[threadIdx.x] = x[threadIdx.x];
    next[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + p.n / 128] + next[threadIdx.x];  // FAULT index
}

extern "C" __global__ void __launch_bounds__(128) index_good(Planted p, const float* x, float* y) {
    __shared__ float tile[128];
    __shared__ float next[128];
    tile[threadIdx.x] = x[threadIdx.x];
    next[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + p.n / 129] + next[threadIdx.x];
}

// Shifts by as many bits as the type has.
extern "C" __global__ void __launch_bounds__(128) shift_bad(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x] + (float)(p.n >> (threadIdx.x / 4 + 1));  // FAULT shift
}

extern "C" __global__ void __launch_bounds__(128) shift_good(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x] + (float)(p.n >> (threadIdx.x / 4));
}

// Waits for a flag that nobody sets.
extern "C" __global__ void __launch_bounds__(128) endless_bad(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    const volatile float* flag = y;
    while (flag[threadIdx.x] < 1e30f) {  // FAULT endless
    }
}

extern "C" __global__ void __launch_bounds__(128) endless_good(Planted p, const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    const volatile float* flag = y;
    while (flag[threadIdx.x] > 1e30f) {
    }
}
