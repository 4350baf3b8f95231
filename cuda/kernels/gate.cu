// y[m,k] = act(gate[m,k]) * up[m,k] (Shazeer 2020). Kind 0 is squared ReLU, max(0, g)^2 (So et
// al. 2021), kind 1 is SiLU, g / (1 + exp(-g)). A block makes 4 KiB of y.
#include "elementwise.cuh"
#include "sigmoid.cuh"

struct Gate {
    u32 m, k, kind;
};

template <typename T>
__device__ __forceinline__ void gate(const Gate& p, const T* gate, const T* up, T* y) {
    const T* const in[] = {gate, up};
    T* const out[] = {y};
    if (p.kind == 0) {
        map(p.m, p.k, in, out, [](const float (&x)[2], float (&product)[1]) {
            float positive = fmaxf(x[0], 0.0f);
            product[0] = positive * positive * x[1];
        });
    } else {
        map(p.m, p.k, in, out, [](const float (&x)[2], float (&product)[1]) {
            product[0] = x[0] * sigmoid(x[0]) * x[1];
        });
    }
}

extern "C" __global__ void __launch_bounds__(256) gate_f32(Gate p, const float* g, const float* up, float* y) {
    gate(p, g, up, y);
}

extern "C" __global__ void __launch_bounds__(256) gate_bf16(Gate p, const bf16* g, const bf16* up, bf16* y) {
    gate(p, g, up, y);
}
