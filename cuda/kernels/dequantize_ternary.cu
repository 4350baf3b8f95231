// y[n,k] = t[n,k] * s for ternary codes t + 1 in two bits, 16 in a word, rows padded to whole
// words. A block makes 4 KiB of y, a thread 16 bytes of it from part of a word.
#include "elementwise.cuh"

struct DequantizeTernary {
    u32 n, k;
};

// The lowest code of a word as a number.
__device__ __forceinline__ float lowest_code(u32 word) {
    return (float)((i32)(word & 3u) - 1);
}

template <typename T>
__device__ __forceinline__ void dequantize_ternary(
    const DequantizeTernary& p, const u32* t, const float* s, T* y) {
    const u32 VECTOR = Per<T>::VECTOR, WORD = Per<T>::WORD;
    u32 row_words = (p.k + 15) / 16;
    float scale = s[0];
    auto vector = [&](u64 item) {
        Place at = place(item, p.k / VECTOR);
        u32 column = VECTOR * at.at;
        u32 codes = t[(u64)at.row * row_words + column / 16] >> (2 * (column % 16));
        float v[VECTOR];
#pragma unroll
        for (u32 j = 0; j < VECTOR; j++) {
            v[j] = lowest_code(codes >> (2 * j)) * scale;
        }
        store<VECTOR>(y + item * VECTOR, v);
    };
    // The codes' padding means 0, and so becomes that of y.
    auto word = [&](u64 item) {
        Place at = place(item, row_stride<T>(p.k) / WORD);
        u32 column = WORD * at.at;
        u32 codes = t[(u64)at.row * row_words + column / 16] >> (2 * (column % 16));
        float v[WORD];
#pragma unroll
        for (u32 j = 0; j < WORD; j++) {
            v[j] = lowest_code(codes >> (2 * j)) * scale;
        }
        store<WORD>(y + item * WORD, v);
    };
    tile<4>(words_of<T>(p.n, p.k), p.k % VECTOR == 0 && aligned16(y), vector, word);
}

extern "C" __global__ void __launch_bounds__(256)
    dequantize_ternary_f32(DequantizeTernary p, const u32* t, const float* s, float* y) {
    dequantize_ternary(p, t, s, y);
}

extern "C" __global__ void __launch_bounds__(256)
    dequantize_ternary_bf16(DequantizeTernary p, const u32* t, const float* s, bf16* y) {
    dequantize_ternary(p, t, s, y);
}
