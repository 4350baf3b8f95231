// Random programs of reads, writes and barriers: is a race reported exactly if there is one?
#include "tritter.cuh"

struct Planted {
    u32 steps;
    u32 shared;  // touch shared instead of global memory
};

// In a step each thread does what its word says: bits 0-1 nothing, read, write; bits 2-3 log2 of the
// bytes; from bit 4 on where. Then comes what `syncs` says: nothing, __syncwarp or __syncthreads.
extern "C" __global__ void __launch_bounds__(64)
    programs(Planted p, const u32* actions, const u32* syncs, u32* memory, u32* y) {
    __shared__ u32 tile[4];
    if (threadIdx.x < 4) {
        tile[threadIdx.x] = 0;
    }
    __syncthreads();
    unsigned char* target = (unsigned char*)(p.shared ? tile : memory);
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    u32 threads = gridDim.x * blockDim.x;
    u32 seen = 0;
    for (u32 step = 0; step < p.steps; step++) {
        u32 action = actions[step * threads + thread];
        unsigned char* at = target + (action >> 4);
        u32 width = action >> 2 & 3u;
        if ((action & 3u) == 1) {
            seen += width == 0 ? *at : width == 1 ? *(u16*)at : *(u32*)at;
        } else if ((action & 3u) == 2 && width == 0) {
            *at = 1;
        } else if ((action & 3u) == 2 && width == 1) {
            *(u16*)at = 1;
        } else if ((action & 3u) == 2) {
            *(u32*)at = 1;
        }
        if (syncs[step] == 1) {
            __syncwarp();
        } else if (syncs[step] == 2) {
            __syncthreads();
        }
    }
    y[thread] = seen;
}
