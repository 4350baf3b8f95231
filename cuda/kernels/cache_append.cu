// cache[slot[i]] = (k[i], v[i]) for the rows of k[m,c], v[m,c] and cache[t,2c]; slots past the end are ignored, and
// no two are equal. An f16 cache gets values rounded to the nearest, ties to even. A block makes 4 KiB of the rows
// that are written.
#include "elementwise.cuh"

struct CacheAppend {
    u32 m, c, t;
};

// Unit `item` of N elements; c is a multiple of N.
template <u32 N, typename T>
__device__ __forceinline__ void append(
    const CacheAppend& p, const float* k, const float* v, const u32* slot, T* cache, u64 item) {
    Place at = place(item, 2 * p.c / N);
    u32 row = slot[at.row], column = at.at * N;
    if (row < p.t) {
        const float* from = column < p.c ? k + column : v + (column - p.c);
        float x[N];
        load<N>(from + (u64)at.row * p.c, x);
        store<N>(cache + (u64)row * 2 * p.c + column, x);
    }
}

template <typename T>
__device__ __forceinline__ void cache_append(
    const CacheAppend& p, const float* k, const float* v, const u32* slot, T* cache) {
    const u32 VECTOR = Per<T>::VECTOR, WORD = Per<T>::WORD;
    bool vectors = p.c % VECTOR == 0 && aligned16(k) && aligned16(v) && aligned16(cache);
    auto vector = [&](u64 item) { append<VECTOR>(p, k, v, slot, cache, item); };
    auto word = [&](u64 item) { append<WORD>(p, k, v, slot, cache, item); };
    tile<4>(words_of<T>(p.m, 2 * p.c), vectors, vector, word);
}

extern "C" __global__ void __launch_bounds__(256)
    cache_append_f32(CacheAppend p, const float* k, const float* v, const u32* slot, float* cache) {
    cache_append(p, k, v, slot, cache);
}

extern "C" __global__ void __launch_bounds__(256)
    cache_append_f16(CacheAppend p, const float* k, const float* v, const u32* slot, f16* cache) {
    cache_append(p, k, v, slot, cache);
}
