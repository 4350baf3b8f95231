// AdamW (Loshchilov and Hutter 2019) with clipping by the global norm, over g[m,k] and, in
// place, p, m1, m2[m,k]:
//     g  <- c g, where c = max_norm / norm if max_norm > 0 and norm > max_norm, else 1
//     m1 <- beta1 m1 + (1 - beta1) g
//     m2 <- beta2 m2 + (1 - beta2) g^2
//     p  <- p (1 - lr weight_decay) - lr / (1 - beta1^t) m1 / (sqrt(m2) / sqrt(1 - beta2^t) + eps)
// hyper = [lr, beta1, beta2, eps, weight_decay, 1 - beta1^t, 1 - beta2^t, max_norm]. Where the
// norm is not finite, nothing changes. A block updates 4 KiB of each operand.
#include "elementwise.cuh"

struct Adamw {
    u32 m, k;
};

extern "C" __global__ void __launch_bounds__(256) adamw_f32(
    Adamw p, const float* g, const float* hyper, const float* norm, float* weight, float* m1, float* m2) {
    const u32 EXPONENT = 0x7f800000u;
    float length = norm[0], max_norm = hyper[7];
    if ((f32_bits(length) & EXPONENT) == EXPONENT) {
        return;
    }
    float clip = max_norm > 0.0f && length > max_norm ? max_norm / length : 1.0f;
    float beta1 = hyper[1], beta2 = hyper[2], eps = hyper[3];
    float keep = 1.0f - hyper[0] * hyper[4], rate = hyper[0] / hyper[5], root = sqrtf(hyper[6]);

    const float* const in[] = {g, weight, m1, m2};
    float* const out[] = {weight, m1, m2};
    map(p.m, p.k, in, out, [&](const float (&x)[4], float (&y)[3]) {
        float d = clip * x[0];
        y[1] = beta1 * x[2] + (1.0f - beta1) * d;
        y[2] = beta2 * x[3] + (1.0f - beta2) * d * d;
        y[0] = x[1] * keep - rate * y[1] / (sqrtf(y[2]) / root + eps);
    });
}
