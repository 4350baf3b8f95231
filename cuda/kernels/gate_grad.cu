// Gradients of y = act(gate) * up, all [m,k]: dgate = act'(gate) * up * dy, dup = act(gate) * dy.
// Kind 0 is max(0, g)^2; kind 1 is g * s with s = 1 / (1 + exp(-g)), whose slope is
// s * (1 + g * (1 - s)). A block makes 4 KiB of each output.
#include "elementwise.cuh"
#include "sigmoid.cuh"

struct GateGrad {
    u32 m, k, kind;
};

template <typename T>
__device__ __forceinline__ void gate_grad(
    const GateGrad& p, const T* gate, const T* up, const T* dy, T* dgate, T* dup) {
    const T* const in[] = {gate, up, dy};
    T* const out[] = {dgate, dup};
    if (p.kind == 0) {
        map(p.m, p.k, in, out, [](const float (&x)[3], float (&d)[2]) {
            float positive = fmaxf(x[0], 0.0f);
            d[0] = 2.0f * positive * x[1] * x[2];
            d[1] = positive * positive * x[2];
        });
    } else {
        map(p.m, p.k, in, out, [](const float (&x)[3], float (&d)[2]) {
            float s = sigmoid(x[0]);
            d[0] = s * (1.0f + x[0] * (1.0f - s)) * x[1] * x[2];
            d[1] = x[0] * s * x[2];
        });
    }
}

extern "C" __global__ void __launch_bounds__(256) gate_grad_f32(
    GateGrad p, const float* gate, const float* up, const float* dy, float* dgate, float* dup) {
    gate_grad(p, gate, up, dy, dgate, dup);
}

extern "C" __global__ void __launch_bounds__(256) gate_grad_bf16(
    GateGrad p, const bf16* gate, const bf16* up, const bf16* dy, bf16* dgate, bf16* dup) {
    gate_grad(p, gate, up, dy, dgate, dup);
}
