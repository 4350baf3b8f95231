// y[m,k] = x[m,k] in another type; f32 to bf16 rounds to the nearest, ties to even, and keeps the
// upper bits of a NaN, as the other backends do. A block makes 4 KiB of y.
//
// With an even k no row is padded and the rows are one run of elements; with an odd k the last
// word of a bf16 row holds one element and a zero.
#include "elementwise.cuh"

struct Cast {
    u32 m, k;
};

// Not pack_bf16: the hardware's conversion makes all NaNs one.
__device__ __forceinline__ u32 pair_of(float low, float high) {
    return (u32)to_bf16(low).bits | (u32)to_bf16(high).bits << 16;
}

extern "C" __global__ void __launch_bounds__(256) cast_f32_bf16(Cast p, const float* x, bf16* y) {
    auto vector = [&](u64 at) {
        float v[8];
        load<8>(x + 8 * at, v);
        u32 low = pair_of(v[0], v[1]), high = pair_of(v[2], v[3]);
        store16(y + 8 * at, make_uint4(low, high, pair_of(v[4], v[5]), pair_of(v[6], v[7])));
    };
    auto word = [&](u64 at) {
        Place to = place(at, (p.k + 1) / 2);
        const float* from = x + (u64)to.row * p.k + 2 * to.at;
        ((u32*)y)[at] = pair_of(from[0], 2 * to.at + 1 < p.k ? from[1] : 0.0f);
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
