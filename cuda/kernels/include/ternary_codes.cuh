// Ternary weights in 2 bits (T2) and in 1.6 bits (T1) as operands of tensor cores, with the order
// that x must have in shared memory to meet them.
//
// A thread reads 16 bytes of a row of w, a *chunk*, and multiplies all its codes c = t + 1; four
// threads of a quad read a *unit* of 64 bytes. The order along k within a unit is free as long as
// both factors agree. Codes 0..2 are multiplied as they are: sum t x = sum c x - sum x.
#pragma once
#include "ternary.cuh"

// The four bytes of a word as they are scattered over four lanes: lane i of a quad gets byte i of the
// words of lanes 0..3.
__device__ __forceinline__ u32 transposed(u32 word) {
    u32 lane = threadIdx.x;
    u32 other = __shfl_xor_sync(FULL_MASK, word, 1);
    word = __byte_perm(word, other, lane & 1 ? 0x3715 : 0x6240);
    other = __shfl_xor_sync(FULL_MASK, word, 2);
    return __byte_perm(word, other, lane & 2 ? 0x3276 : 0x5410);
}

// 16 bytes, elements 0..15, to words of elements i, 4 + i, 8 + i, 12 + i for i = 0, 2, 1, 3, which meet
// `codes >> 2 * i & 0x03030303`.
__device__ __forceinline__ uint4 in_order_of_codes(uint4 x) {
    u32 low_a = __byte_perm(x.x, x.y, 0x5140), low_b = __byte_perm(x.z, x.w, 0x5140);
    u32 high_a = __byte_perm(x.x, x.y, 0x7362), high_b = __byte_perm(x.z, x.w, 0x7362);
    return make_uint4(__byte_perm(low_a, low_b, 0x5410), __byte_perm(high_a, high_b, 0x5410),
                      __byte_perm(low_a, low_b, 0x7632), __byte_perm(high_a, high_b, 0x7632));
}

// Two bits: a word has 16 codes, lowest bits first. Shifting and masking a word gives four codes in
// four bytes, elements i, 4 + i, 8 + i, 12 + i; x is brought into that order once instead of codes into
// the order of x for each row.
struct T2 {
    static constexpr u32 WORD = 16;   // codes of a word
    static constexpr u32 CHUNK = 64;  // codes of a chunk, bytes of x
    static constexpr u32 GRAIN = 4;   // words of x that are stored together
    i32 acc[2][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            acc[i / 4][i % 4] = 0;
        }
    }

    // acc[0] takes codes 0 and 2 of each four, acc[1] four times codes 1 and 3, which saves their shift.
    __device__ __forceinline__ void multiply_word(u32 low, u32 high, uint4 x) {
        const u32 ONCE = 0x03030303u, FOURFOLD = 0x0c0c0c0cu;
        u32 a[4] = {low & ONCE, high & ONCE, low >> 4 & ONCE, high >> 4 & ONCE};
        u32 b[2] = {x.x, x.y};
        mma32(acc[0], a, b);
        u32 c[4] = {low & FOURFOLD, high & FOURFOLD, low >> 4 & FOURFOLD, high >> 4 & FOURFOLD};
        u32 d[2] = {x.z, x.w};
        mma32(acc[1], c, d);
    }

    // Adds the products of a chunk of a low and of a high row. `unit` is where x lies for the unit.
    __device__ __forceinline__ void multiply(uint4 low, uint4 high, const unsigned char* unit) {
        const uint4* x = (const uint4*)unit + threadIdx.x % 4;
        multiply_word(low.x, high.x, x[0]);
        multiply_word(low.y, high.y, x[4]);
        multiply_word(low.z, high.z, x[8]);
        multiply_word(low.w, high.w, x[12]);
    }

    __device__ __forceinline__ i32 sum(u32 i) const {
        return acc[0][i] + acc[1][i] / 4;
    }

    // Where the 16 bytes of vector v lie: vector 4 t + j of a unit at place 4 j + t, so that a quad reads
    // 64 bytes side by side.
    static __device__ __forceinline__ u32 place(u32 v) {
        return (v & ~15u) + (v & 3) * 4 + (v / 4 & 3);
    }

    // Stores elements 4c..4c+3 of x, `shift` words of w behind the row's begin. All lanes call, lane l
    // with c % 4 = l % 4; `count` is the number of words of x, and beyond it they are 0.
    static __device__ __forceinline__ void put4(unsigned char* row, u32 c, u32 count, u32 shift, u32 word) {
        word = transposed(word);
        if (c < (count + GRAIN - 1) / GRAIN * GRAIN) {
            u32 at = (c & 1) * 2 + (c / 2 & 1);
            *(u32*)(row + place(c / 4 + shift) * 16 + at * 4) = word;
        }
    }

    static __device__ __forceinline__ void put16(unsigned char* row, u32 v, u32, u32 shift, uint4 x) {
        *(uint4*)(row + place(v + shift) * 16) = in_order_of_codes(x);
    }

    // Makes the c-th four elements of a staged row 0.
    static __device__ __forceinline__ void zero4(unsigned char* row, u32 c) {
        *(u32*)(row + place(c / 4) * 16 + c % 4 * 4) = 0;
    }
};

// The codes of a word of 1.6 bits, four in a word, in their order. A byte is a fraction v of 256 in 8 bits
// whose digits to the base 3 are five codes: digit s is floor(3^(s+1) v) - 3 floor(3^s v). Products are
// taken of even and odd bytes in 16 bits each, their upper bytes are the floors, and the differences of
// four bytes are one of words, as no digit is negative.
__device__ __forceinline__ void unpack_fifths(u32 word, u32 (&digits)[5]) {
    u32 even = word & 0x00ff00ffu, odd = word >> 8 & 0x00ff00ffu;
    u32 power = 1, before = 0;
#pragma unroll
    for (u32 s = 0; s < 5; s++) {
        power *= 3;
        u32 floors = __byte_perm(even * power, odd * power, 0x7351);
        digits[s] = floors - 3 * before;
        before = floors;
    }
}

// 1.6 bits: a word has 20 codes, digit s of its four bytes are elements 4s..4s+3. x keeps its order.
struct T1 {
    static constexpr u32 WORD = 20;
    static constexpr u32 CHUNK = 80;
    static constexpr u32 GRAIN = 1;
    i32 acc[4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            acc[i] = 0;
        }
    }

    __device__ __forceinline__ void multiply_fours(const u32* low, const u32* high, u32 x, u32 y) {
        u32 a[4] = {low[0], high[0], low[1], high[1]};
        u32 b[2] = {x, y};
        mma32(acc, a, b);
    }

    // Two words and 40 bytes of x.
    __device__ __forceinline__ void multiply_words(u32 low_a, u32 low_b, u32 high_a, u32 high_b, const u32 (&x)[10]) {
        u32 low[10], high[10];
        u32 digits[5];
        unpack_fifths(low_a, digits);
#pragma unroll
        for (u32 s = 0; s < 5; s++) {
            low[s] = digits[s];
        }
        unpack_fifths(low_b, digits);
#pragma unroll
        for (u32 s = 0; s < 5; s++) {
            low[5 + s] = digits[s];
        }
        unpack_fifths(high_a, digits);
#pragma unroll
        for (u32 s = 0; s < 5; s++) {
            high[s] = digits[s];
        }
        unpack_fifths(high_b, digits);
#pragma unroll
        for (u32 s = 0; s < 5; s++) {
            high[5 + s] = digits[s];
        }
#pragma unroll
        for (u32 s = 0; s < 10; s += 2) {
            multiply_fours(low + s, high + s, x[s], x[s + 1]);
        }
    }

    // A thread's 80 bytes of x are five vectors in a row; those of a quad lie in different banks.
    __device__ __forceinline__ void multiply(uint4 low, uint4 high, const unsigned char* unit) {
        const uint4* x = (const uint4*)(unit + threadIdx.x % 4 * CHUNK);
        uint4 a = x[0], b = x[1], c = x[2];
        u32 first[10] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y};
        multiply_words(low.x, low.y, high.x, high.y, first);
        uint4 d = x[3], e = x[4];
        u32 second[10] = {c.z, c.w, d.x, d.y, d.z, d.w, e.x, e.y, e.z, e.w};
        multiply_words(low.z, low.w, high.z, high.w, second);
    }

    __device__ __forceinline__ i32 sum(u32 i) const {
        return acc[i];
    }

    static __device__ __forceinline__ void put4(unsigned char* row, u32 c, u32 count, u32 shift, u32 word) {
        if (c < count) {
            *(u32*)(row + c * 4 + shift * WORD) = word;
        }
    }

    // Of vector v only the words below `count` are stored.
    static __device__ __forceinline__ void put16(unsigned char* row, u32 v, u32 count, u32 shift, uint4 x) {
        u32* to = (u32*)(row + v * 16 + shift * WORD);
        u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (4 * v + i < count) {
                to[i] = words[i];
            }
        }
    }

    static __device__ __forceinline__ void zero4(unsigned char* row, u32 c) {
        *(u32*)(row + c * 4) = 0;
    }
};
