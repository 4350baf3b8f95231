// Rotary position embedding (Su et al. 2021), half-split: pairs (j, j + d/2) of x[m,h,d] turn by
// sign * pos[m] * w_j into y[m,h,d].
//
// The angle is composed of a row of coarse[c,d] and one of fine[f,d], each [cosines | sines]:
// pos = hi * f + lo. Positions from c * f on count as c * f - 1. A thread turns as many
// neighbouring pairs of one head as fill a 16-byte vector, else one pair at a time; the tables'
// rows of a token serve all its heads and stay in the first-level cache.
#include "elementwise.cuh"

struct Rope {
    u32 m, h, d, c, f;
    float sign;
};

// Turns the N pairs from j on of a head: row = token * h + head.
template <u32 N, typename T>
__device__ __forceinline__ void turn(
    const Rope& p, const T* x, const u32* pos, const float* coarse, const float* fine, T* y, u32 row, u32 j) {
    u32 half = p.d / 2;
    u64 at = (u64)row * p.d + j;
    float a[N], b[N];
    load<N>(x + at, a);
    load<N>(x + at + half, b);

    u64 last = (u64)p.c * p.f - 1;
    u32 position = pos[row / p.h];
    position = position < last ? position : (u32)last;
    const float* hi = coarse + (u64)(position / p.f) * p.d + j;
    const float* lo = fine + (u64)(position % p.f) * p.d + j;
    float cos_hi[N], sin_hi[N], cos_lo[N], sin_lo[N];
    load<N>(hi, cos_hi);
    load<N>(hi + half, sin_hi);
    load<N>(lo, cos_lo);
    load<N>(lo + half, sin_lo);
#pragma unroll
    for (u32 i = 0; i < N; i++) {
        float cosine = cos_hi[i] * cos_lo[i] - sin_hi[i] * sin_lo[i];
        float sine = p.sign * (sin_hi[i] * cos_lo[i] + cos_hi[i] * sin_lo[i]);
        float turned = a[i] * cosine - b[i] * sine;
        b[i] = b[i] * cosine + a[i] * sine;
        a[i] = turned;
    }
    store<N>(y + at, a);
    store<N>(y + at + half, b);
}

template <typename T>
__device__ __forceinline__ void rope(
    const Rope& p, const T* x, const u32* pos, const float* coarse, const float* fine, T* y) {
    const u32 VECTOR = Per<T>::VECTOR;
    u32 half = p.d / 2;
    bool vectors = half % VECTOR == 0 && aligned16(x) && aligned16(coarse) && aligned16(fine) && aligned16(y);
    auto vector = [&](u64 item) {
        Place at = place(item, half / VECTOR);
        turn<VECTOR>(p, x, pos, coarse, fine, y, at.row, VECTOR * at.at);
    };
    auto pair = [&](u64 item) {
        Place at = place(item, half);
        turn<1>(p, x, pos, coarse, fine, y, at.row, at.at);
    };
    tile<VECTOR>((u64)p.m * p.h * half, vectors, vector, pair);
}

extern "C" __global__ void __launch_bounds__(256)
    rope_f32(Rope p, const float* x, const u32* pos, const float* coarse, const float* fine, float* y) {
    rope(p, x, pos, coarse, fine, y);
}

extern "C" __global__ void __launch_bounds__(256)
    rope_bf16(Rope p, const bf16* x, const u32* pos, const float* coarse, const float* fine, bf16* y) {
    rope(p, x, pos, coarse, fine, y);
}
