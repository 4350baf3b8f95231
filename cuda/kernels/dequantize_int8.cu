// y[m,k] = q[m,k] * s[m] for int8 codes, whose rows are padded to 16. A block makes 4 KiB of y,
// a thread 16 bytes from the codes' one or two words.
#include "elementwise.cuh"

struct DequantizeInt8 {
    u32 m, k;
};

// Byte i of a word as a signed number.
__device__ __forceinline__ float code_at(u32 word, u32 i) {
    return (float)(i8)(word >> (8 * i));
}

template <typename T>
__device__ __forceinline__ void dequantize_int8(const DequantizeInt8& p, const u32* q, const float* s, T* y) {
    const u32 VECTOR = Per<T>::VECTOR, WORD = Per<T>::WORD;
    u32 row_words = (p.k + 15) / 16 * 4;
    auto vector = [&](u64 item) {
        Place at = place(item, p.k / VECTOR);
        const u32* codes = q + (u64)at.row * row_words + at.at * (VECTOR / 4);
        float scale = s[at.row];
        float v[VECTOR];
#pragma unroll
        for (u32 i = 0; i < VECTOR; i += 4) {
            u32 word = codes[i / 4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                v[i + j] = code_at(word, j) * scale;
            }
        }
        store<VECTOR>(y + item * VECTOR, v);
    };
    // The codes' padding is 0, and so becomes that of y.
    auto word = [&](u64 item) {
        Place at = place(item, row_stride<T>(p.k) / WORD);
        u32 column = WORD * at.at;
        u32 codes = q[(u64)at.row * row_words + column / 4];
        float v[WORD];
#pragma unroll
        for (u32 j = 0; j < WORD; j++) {
            v[j] = code_at(codes, column % 4 + j) * s[at.row];
        }
        store<WORD>(y + item * WORD, v);
    };
    tile<4>(words_of<T>(p.m, p.k), p.k % VECTOR == 0 && aligned16(y), vector, word);
}

extern "C" __global__ void __launch_bounds__(256)
    dequantize_int8_f32(DequantizeInt8 p, const u32* q, const float* s, float* y) {
    dequantize_int8(p, q, s, y);
}

extern "C" __global__ void __launch_bounds__(256)
    dequantize_int8_bf16(DequantizeInt8 p, const u32* q, const float* s, bf16* y) {
    dequantize_int8(p, q, s, y);
}
