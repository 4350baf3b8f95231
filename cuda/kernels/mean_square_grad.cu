// dx[m,k] = sign * 2 (x - t) * dl / (m k). A block makes 4 KiB of dx.
#include "elementwise.cuh"

struct MeanSquareGrad {
    u32 m, k;
    float sign;
};

extern "C" __global__ void __launch_bounds__(256)
    mean_square_grad_f32(MeanSquareGrad p, const float* x, const float* t, const float* dl, float* dx) {
    float factor = 2.0f * p.sign * dl[0] / (float)((u64)p.m * p.k);
    const float* const in[] = {x, t};
    float* const out[] = {dx};
    map(p.m, p.k, in, out, [&](const float (&v)[2], float (&d)[1]) { d[0] = factor * (v[0] - v[1]); });
}
