// y[m,k] += scale * x[m,k]. A block makes 4 KiB of y.
#include "elementwise.cuh"

struct Accumulate {
    u32 m, k;
    float scale;
};

extern "C" __global__ void __launch_bounds__(256) accumulate_f32(Accumulate p, const float* x, float* y) {
    const float* const in[] = {x, y};
    float* const out[] = {y};
    map(p.m, p.k, in, out, [&](const float (&v)[2], float (&sum)[1]) { sum[0] = v[1] + p.scale * v[0]; });
}
