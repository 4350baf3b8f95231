// Dense products of f32 rows x[m,k] with weights w[n,k] that are stored in fewer bits and widened to f32 on the way:
// y[m, n0 + j] = sum_k x_ik w_jk, y in rows of l.
//
// gemv: few rows of x, bound by reading w. tiles: any size and address, in f32 arithmetic.
//
// How weights are stored (a *block* is 16 elements):
//   Int8, Int6, Int4: integers with a scale s[n,g] in f16 for each group of `group` elements (a multiple of 16);
//   Half<T>: f16 or bf16.
// An integer is widened by way of its byte: 2^23 + byte is an f32 with that byte as its lowest.
#pragma once
#include "tritter.cuh"

struct Widened {
    u32 m, n, k, l, n0, group;
};

// The four bytes of a word, less `offset`.
__device__ __forceinline__ void widen4(u32 bytes, float offset, float& a, float& b, float& c, float& d) {
    const u32 EXPONENT = 0x4b000000u;  // 2^23
    a = bits_f32(__byte_perm(bytes, EXPONENT, 0x7540)) - (8388608.0f + offset);
    b = bits_f32(__byte_perm(bytes, EXPONENT, 0x7541)) - (8388608.0f + offset);
    c = bits_f32(__byte_perm(bytes, EXPONENT, 0x7542)) - (8388608.0f + offset);
    d = bits_f32(__byte_perm(bytes, EXPONENT, 0x7543)) - (8388608.0f + offset);
}

// Codecs. CHUNK elements lie in VECTORS vectors of 16 bytes, a thread reads BATCH chunks at a time. `words` are
// those of a row; `block(v, b, x)` widens block b of a chunk, `eight(row, e, words, x)` the elements e..e+7 of a row,
// both without the scale.

struct Int8 {
    static constexpr u32 CHUNK = 16, VECTORS = 1, BATCH = 4;
    static constexpr bool SCALED = true;

    static __device__ __forceinline__ u32 words(u32 k) {
        return (k + 15) / 16 * 4;
    }

    static __device__ __forceinline__ void four(u32 word, float* x) {
        widen4(word ^ 0x80808080u, 128.0f, x[0], x[1], x[2], x[3]);
    }

    static __device__ __forceinline__ void block(const uint4 (&v)[VECTORS], u32, float (&x)[16]) {
        four(v[0].x, x);
        four(v[0].y, x + 4);
        four(v[0].z, x + 8);
        four(v[0].w, x + 12);
    }

    static __device__ __forceinline__ void eight(const u32* row, u32 e, u32, float (&x)[8]) {
        four(row[e / 4], x);
        four(row[e / 4 + 1], x + 4);
    }
};

// Eight elements with their low four bits in a word and two high ones in the low half of another: the latter,
// as selectors, pick their value at its place.
__device__ __forceinline__ void widen_sixes(u32 low, u32 high, float* x) {
    const u32 NIBBLES = 0x0f0f0f0fu, PAIRS = 0x3333u, TIMES16 = 0x30201000u;
    u32 even = (low & NIBBLES) | __byte_perm(TIMES16, 0, high & PAIRS);
    u32 odd = (low >> 4 & NIBBLES) | __byte_perm(TIMES16, 0, high >> 2 & PAIRS);
    widen4(even, 32.0f, x[0], x[2], x[4], x[6]);
    widen4(odd, 32.0f, x[1], x[3], x[5], x[7]);
}

struct Int6 {
    static constexpr u32 CHUNK = 64, VECTORS = 3, BATCH = 1;
    static constexpr bool SCALED = true;

    static __device__ __forceinline__ u32 words(u32 k) {
        return (k + 15) / 16 * 3;
    }

    static __device__ __forceinline__ void block(const uint4 (&v)[VECTORS], u32 b, float (&x)[16]) {
        u32 low = b == 0 ? v[0].x : b == 1 ? v[0].w : b == 2 ? v[1].z : v[2].y;
        u32 mid = b == 0 ? v[0].y : b == 1 ? v[1].x : b == 2 ? v[1].w : v[2].z;
        u32 high = b == 0 ? v[0].z : b == 1 ? v[1].y : b == 2 ? v[2].x : v[2].w;
        widen_sixes(low, high, x);
        widen_sixes(mid, high >> 16, x + 8);
    }

    static __device__ __forceinline__ void eight(const u32* row, u32 e, u32, float (&x)[8]) {
        const u32* three = row + e / 16 * 3;
        widen_sixes(three[e / 8 % 2], three[2] >> (16 * (e / 8 % 2)), x);
    }
};

struct Int4 {
    static constexpr u32 CHUNK = 32, VECTORS = 1, BATCH = 2;
    static constexpr bool SCALED = true;

    static __device__ __forceinline__ u32 words(u32 k) {
        return (k + 7) / 8;
    }

    static __device__ __forceinline__ void nibbles(u32 word, float* x) {
        const u32 NIBBLES = 0x0f0f0f0fu;
        widen4(word & NIBBLES, 8.0f, x[0], x[2], x[4], x[6]);
        widen4(word >> 4 & NIBBLES, 8.0f, x[1], x[3], x[5], x[7]);
    }

    static __device__ __forceinline__ void block(const uint4 (&v)[VECTORS], u32 b, float (&x)[16]) {
        nibbles(b == 0 ? v[0].x : v[0].z, x);
        nibbles(b == 0 ? v[0].y : v[0].w, x + 8);
    }

    static __device__ __forceinline__ void eight(const u32* row, u32 e, u32, float (&x)[8]) {
        nibbles(row[e / 8], x);
    }
};

__device__ __forceinline__ void widen_pair(u32 word, bf16, float& low, float& high) {
    low = bits_f32(word << 16);
    high = bits_f32(word & 0xffff0000u);
}

__device__ __forceinline__ void widen_pair(u32 word, f16, float& low, float& high) {
    low = to_f32(f16{(u16)word});
    high = to_f32(f16{(u16)(word >> 16)});
}

template <typename T>
struct Half {
    static constexpr u32 CHUNK = 16, VECTORS = 2, BATCH = 2;
    static constexpr bool SCALED = false;

    static __device__ __forceinline__ u32 words(u32 k) {
        return (k + 1) / 2;
    }

    static __device__ __forceinline__ void block(const uint4 (&v)[VECTORS], u32, float (&x)[16]) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            widen_pair(v[i].x, T{}, x[8 * i], x[8 * i + 1]);
            widen_pair(v[i].y, T{}, x[8 * i + 2], x[8 * i + 3]);
            widen_pair(v[i].z, T{}, x[8 * i + 4], x[8 * i + 5]);
            widen_pair(v[i].w, T{}, x[8 * i + 6], x[8 * i + 7]);
        }
    }

    static __device__ __forceinline__ void eight(const u32* row, u32 e, u32 words, float (&x)[8]) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            widen_pair(e / 2 + i < words ? row[e / 2 + i] : 0, T{}, x[2 * i], x[2 * i + 1]);
        }
    }
};

// Which group a block is in, without a division: exact while blocks times the group's blocks stay below 2^32.
struct Groups {
    u32 magic, stride;

    __device__ __forceinline__ Groups(u32 k, u32 group) {
        u32 blocks = group / 16;
        magic = blocks > 1 ? 0xffffffffu / blocks + 1 : 0;
        stride = row_stride<f16>((k + group - 1) / group);
    }

    __device__ __forceinline__ u32 of(u32 block) const {
        return magic ? __umulhi(block, magic) : block;
    }
};

template <typename Codec>
__device__ __forceinline__ float scale_of(const Groups& groups, const f16* row, u32 block) {
    if constexpr (Codec::SCALED) {
        return to_f32(row[groups.of(block)]);
    } else {
        return 1.0f;
    }
}
