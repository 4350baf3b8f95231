// y[m,n] = x[m,n] + b[n]. A block makes 4 KiB of y; b stays in the caches.
#include "elementwise.cuh"

struct AddBias {
    u32 m, n;
};

template <typename T>
__device__ __forceinline__ void add_bias(const AddBias& p, const T* x, const float* b, T* y) {
    const u32 VECTOR = Per<T>::VECTOR, WORD = Per<T>::WORD;
    bool vectors = p.n % VECTOR == 0 && aligned16(x) && aligned16(b) && aligned16(y);
    auto vector = [&](u64 at) {
        u32 column = VECTOR * place(at, p.n / VECTOR).at;
        float v[VECTOR], bias[VECTOR];
        load<VECTOR>(x + at * VECTOR, v);
        load<VECTOR>(b + column, bias);
#pragma unroll
        for (u32 j = 0; j < VECTOR; j++) {
            v[j] += bias[j];
        }
        store<VECTOR>(y + at * VECTOR, v);
    };
    auto word = [&](u64 at) {
        u32 column = WORD * place(at, row_stride<T>(p.n) / WORD).at;
        float v[WORD];
        load<WORD>(x + at * WORD, v);
#pragma unroll
        for (u32 j = 0; j < WORD; j++) {
            v[j] += column + j < p.n ? b[column + j] : 0.0f;
        }
        store<WORD>(y + at * WORD, v);
    };
    tile<4>(words_of<T>(p.m, p.n), vectors, vector, word);
}

extern "C" __global__ void __launch_bounds__(256) add_bias_f32(AddBias p, const float* x, const float* b, float* y) {
    add_bias(p, x, b, y);
}

extern "C" __global__ void __launch_bounds__(256) add_bias_bf16(AddBias p, const bf16* x, const float* b, bf16* y) {
    add_bias(p, x, b, y);
}
