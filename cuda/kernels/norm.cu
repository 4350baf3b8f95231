// Global norm: y[0] = scale * sqrt(sum of x[n]), one block, fixed order.
#include "tritter.cuh"

struct Norm {
    u32 n;
    float scale;
};

extern "C" __global__ void __launch_bounds__(1024) norm_f32(Norm p, const float* x, float* y) {
    __shared__ float scratch[WARP];
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < p.n; i += blockDim.x) {
        sum += x[i];
    }
    sum = block_reduce<Sum>(sum, 0.0f, scratch);
    if (threadIdx.x == 0) {
        y[0] = p.scale * sqrtf(sum);
    }
}
