// y[m,k] = x[m,k] in another type; f32 to bf16 rounds to the nearest, ties to even. A block
// makes 4 KiB of y. With an even k no row is padded and the rows are one run of elements; with
// an odd k the last word of a bf16 row holds one element and a zero.
#include "elementwise.cuh"

struct Cast {
    u32 m, k;
};

extern "C" __global__ void __launch_bounds__(256) cast_f32_bf16(Cast p, const float* x, bf16* y) {
    auto vector = [&](u64 at) {
        float v[8];
        load<8>(x + 8 * at, v);
        store<8>(y + 8 * at, v);
    };
    auto word = [&](u64 at) {
        Place to = place(at, (p.k + 1) / 2);
        const float* from = x + (u64)to.row * p.k + 2 * to.at;
        float v[2] = {from[0], 2 * to.at + 1 < p.k ? from[1] : 0.0f};
        store<2>(y + 2 * at, v);
    };
    tile<4>(words_of<bf16>(p.m, p.k), p.k % 2 == 0 && aligned16(x) && aligned16(y), vector, word);
}

extern "C" __global__ void __launch_bounds__(256) cast_bf16_f32(Cast p, const bf16* x, float* y) {
    auto vector = [&](u64 at) {
        float v[4];
        load<4>(x + 4 * at, v);
        store<4>(y + 4 * at, v);
    };
    auto word = [&](u64 at) {
        Place to = place(at, p.k);
        y[at] = to_f32(x[(u64)to.row * row_stride<bf16>(p.k) + to.at]);
    };
    tile<4>(words_of<float>(p.m, p.k), p.k % 2 == 0 && aligned16(x) && aligned16(y), vector, word);
}
