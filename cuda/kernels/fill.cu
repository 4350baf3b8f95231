// y[m,k] = value. A block makes 4 KiB of y.
#include "elementwise.cuh"

struct Fill {
    u32 m, k;
    float value;
};

extern "C" __global__ void __launch_bounds__(256) fill_f32(Fill p, float* y) {
    float four[4] = {p.value, p.value, p.value, p.value};
    auto vector = [&](u64 at) { store<4>(y + 4 * at, four); };
    auto word = [&](u64 at) { y[at] = p.value; };
    tile<4>(words_of<float>(p.m, p.k), aligned16(y), vector, word);
}
