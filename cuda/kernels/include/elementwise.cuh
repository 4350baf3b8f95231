// What elementwise kernels share: which part of the output a block makes, and moves of several
// elements.
//
// A block of 256 threads makes 4 KiB of the output, a thread one 16-byte vector of it where
// addresses and rows allow that, else a few single units. One vector a thread saturates memory
// as long as the blocks of a processor have 16 KiB of loads under way, and leaves nothing to
// loop over; the grid covers the output.
#pragma once

#include "tritter.cuh"

#define TILE_THREADS 256u

// Elements of type T in a 16-byte vector and in a word.
template <typename T>
struct Per {
    static constexpr u32 VECTOR = 16 / sizeof(T);
    static constexpr u32 WORD = 4 / sizeof(T);
};

// Words of `rows` stored rows of k elements of type T.
template <typename T>
__device__ __forceinline__ u64 words_of(u32 rows, u32 k) {
    return (u64)rows * (row_stride<T>(k) / Per<T>::WORD);
}

// Calls `vector(i)` and `unit(i)` for the vectors and units of this block: vectors of N units as
// far as they go if `vectors` holds, which must be the same for all threads, and single units for
// the rest.
template <u32 N, typename Vector, typename Unit>
__device__ __forceinline__ void tile(u64 units, bool vectors, const Vector& vector, const Unit& unit) {
    u64 whole = vectors ? units / N : 0;
    u64 at = (u64)blockIdx.x * TILE_THREADS + threadIdx.x;
    if (at < whole) {
        vector(at);
    }
    u64 first = (u64)blockIdx.x * (TILE_THREADS * N);
    u64 end = first + TILE_THREADS * N < units ? first + TILE_THREADS * N : units;
    first = first > whole * N ? first : whole * N;
#pragma unroll 1
    for (u64 i = first + threadIdx.x; i < end; i += TILE_THREADS) {
        unit(i);
    }
}

struct Place {
    u32 row, at;
};

// Row of an item and its place in the row. The division is in 32 bits where it can be; in 64
// bits it is a subroutine of about a hundred instructions.
__device__ __forceinline__ Place place(u64 item, u32 per_row) {
    Place place;
    if (item >> 32 == 0) {
        place.row = (u32)item / per_row;
    } else {
        place.row = (u32)(item / per_row);
    }
    place.at = (u32)(item - (u64)place.row * per_row);
    return place;
}

// ---- moves of N neighbouring elements ------------------------------------------------
//
// N f32 with N a multiple of 4, and N 16-bit floats with N a multiple of 8, must start at a
// multiple of 16 bytes; 4 and 2 16-bit floats at a multiple of their size.

template <u32 N>
__device__ __forceinline__ void load(const float* from, float (&x)[N]) {
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (u32 i = 0; i < N; i += 4) {
            float4 v = *(const float4*)(from + i);
            x[i] = v.x;
            x[i + 1] = v.y;
            x[i + 2] = v.z;
            x[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            x[i] = from[i];
        }
    }
}

template <u32 N>
__device__ __forceinline__ void store(float* to, const float (&x)[N]) {
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (u32 i = 0; i < N; i += 4) {
            store16(to + i, make_uint4(f32_bits(x[i]), f32_bits(x[i + 1]), f32_bits(x[i + 2]), f32_bits(x[i + 3])));
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            to[i] = x[i];
        }
    }
}

// The two bf16 of a word.
__device__ __forceinline__ void unpack_bf16(u32 word, float& low, float& high) {
    low = bits_f32(word << 16);
    high = bits_f32(word & 0xffff0000u);
}

template <u32 N>
__device__ __forceinline__ void load(const bf16* from, float (&x)[N]) {
    if constexpr (N == 1) {
        x[0] = to_f32(*from);
    } else if constexpr (N == 2) {
        unpack_bf16(*(const u32*)from, x[0], x[1]);
    } else if constexpr (N == 4) {
        uint2 v = *(const uint2*)from;
        unpack_bf16(v.x, x[0], x[1]);
        unpack_bf16(v.y, x[2], x[3]);
    } else {
        static_assert(N % 8 == 0, "1, 2, 4 or whole vectors");
#pragma unroll
        for (u32 i = 0; i < N; i += 8) {
            uint4 v = *(const uint4*)(from + i);
            unpack_bf16(v.x, x[i], x[i + 1]);
            unpack_bf16(v.y, x[i + 2], x[i + 3]);
            unpack_bf16(v.z, x[i + 4], x[i + 5]);
            unpack_bf16(v.w, x[i + 6], x[i + 7]);
        }
    }
}

template <u32 N>
__device__ __forceinline__ void store(bf16* to, const float (&x)[N]) {
    if constexpr (N == 1) {
        *to = to_bf16(x[0]);
    } else if constexpr (N == 2) {
        *(u32*)to = pack_bf16(x[0], x[1]);
    } else {
        static_assert(N % 8 == 0, "1, 2 or whole vectors");
#pragma unroll
        for (u32 i = 0; i < N; i += 8) {
            store16(to + i, make_uint4(pack_bf16(x[i], x[i + 1]), pack_bf16(x[i + 2], x[i + 3]),
                                pack_bf16(x[i + 4], x[i + 5]), pack_bf16(x[i + 6], x[i + 7])));
        }
    }
}

template <u32 N>
__device__ __forceinline__ void load(const f16* from, float (&x)[N]) {
    static_assert(N == 4, "as many as a vector of f32 has");
    uint2 v = *(const uint2*)from;
    x[0] = to_f32(f16{(u16)v.x});
    x[1] = to_f32(f16{(u16)(v.x >> 16)});
    x[2] = to_f32(f16{(u16)v.y});
    x[3] = to_f32(f16{(u16)(v.y >> 16)});
}

template <u32 N>
__device__ __forceinline__ void store(f16* to, const float (&x)[N]) {
    if constexpr (N == 2) {
        *(u32*)to = pack_f16(x[0], x[1]);
    } else {
        static_assert(N == 8, "2 or a whole vector");
        store16(to, make_uint4(pack_f16(x[0], x[1]), pack_f16(x[2], x[3]), pack_f16(x[4], x[5]),
                        pack_f16(x[6], x[7])));
    }
}

// ---- maps ----------------------------------------------------------------------------

template <u32 N, typename T, u32 IN, u32 OUT, typename F>
__device__ __forceinline__ void map_elements(
    u64 first, const T* const (&in)[IN], T* const (&out)[OUT], const F& f) {
    float x[IN][N], y[OUT][N];
#pragma unroll
    for (u32 i = 0; i < IN; i++) {
        load<N>(in[i] + first, x[i]);
    }
#pragma unroll
    for (u32 j = 0; j < N; j++) {
        float a[IN], b[OUT];
#pragma unroll
        for (u32 i = 0; i < IN; i++) {
            a[i] = x[i][j];
        }
        f(a, b);
#pragma unroll
        for (u32 i = 0; i < OUT; i++) {
            y[i][j] = b[i];
        }
    }
#pragma unroll
    for (u32 i = 0; i < OUT; i++) {
        store<N>(out[i] + first, y[i]);
    }
}

// out = f(in), element by element, over operands of m rows of k elements. An operand may be in
// both lists. Padding is mapped like elements, so f must make zeros of zeros.
template <typename T, u32 IN, u32 OUT, typename F>
__device__ __forceinline__ void map(u32 m, u32 k, const T* const (&in)[IN], T* const (&out)[OUT], const F& f) {
    bool vectors = true;
#pragma unroll
    for (u32 i = 0; i < IN; i++) {
        vectors = vectors && aligned16(in[i]);
    }
#pragma unroll
    for (u32 i = 0; i < OUT; i++) {
        vectors = vectors && aligned16(out[i]);
    }
    auto vector = [&](u64 at) { map_elements<Per<T>::VECTOR>(at * Per<T>::VECTOR, in, out, f); };
    auto word = [&](u64 at) { map_elements<Per<T>::WORD>(at * Per<T>::WORD, in, out, f); };
    tile<4>(words_of<T>(m, k), vectors, vector, word);
}
