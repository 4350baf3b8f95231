// cache[pos[i]] = x[i] for the rows of x[m,c] and cache[t,c]; positions past the end are ignored,
// and no two are equal. An f16 cache gets values rounded to the nearest, ties to even. A block
// makes 4 KiB of the rows that are written.
#include "elementwise.cuh"

struct CacheAppend {
    u32 m, c, t;
};

template <typename T>
__device__ __forceinline__ void cache_append(const CacheAppend& p, const float* x, const u32* pos, T* cache) {
    const u32 VECTOR = Per<T>::VECTOR, WORD = Per<T>::WORD;
    u32 stride = row_stride<T>(p.c);
    auto vector = [&](u64 item) {
        Place at = place(item, p.c / VECTOR);
        u32 row = pos[at.row];
        if (row < p.t) {
            float v[VECTOR];
            load<VECTOR>(x + item * VECTOR, v);
            store<VECTOR>(cache + (u64)row * stride + VECTOR * at.at, v);
        }
    };
    auto word = [&](u64 item) {
        Place at = place(item, stride / WORD);
        u32 row = pos[at.row], column = WORD * at.at;
        if (row < p.t) {
            float v[WORD];
#pragma unroll
            for (u32 j = 0; j < WORD; j++) {
                v[j] = column + j < p.c ? x[(u64)at.row * p.c + column + j] : 0.0f;
            }
            store<WORD>(cache + (u64)row * stride + column, v);
        }
    };
    bool vectors = p.c % VECTOR == 0 && aligned16(x) && aligned16(cache);
    tile<4>(words_of<T>(p.m, p.c), vectors, vector, word);
}

extern "C" __global__ void __launch_bounds__(256)
    cache_append_f32(CacheAppend p, const float* x, const u32* pos, float* cache) {
    cache_append(p, x, pos, cache);
}

extern "C" __global__ void __launch_bounds__(256)
    cache_append_f16(CacheAppend p, const float* x, const u32* pos, f16* cache) {
    cache_append(p, x, pos, cache);
}
