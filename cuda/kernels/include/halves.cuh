// f32 as two f16 for tensor cores: the upper one rounded, the lower one what it leaves, 22 bits together. The lower
// one stays clear of f16's least numbers (2^-14, below which bits are lost) where the number itself is brought up
// close to f16's largest (2^16) by a power of two.
#pragma once
#include "attention.cuh"

// 2^n of an exponent as it stands in a float, 1 .. 254.
__device__ __forceinline__ float power(u32 biased) {
    return bits_f32(biased << 23);
}

// The biased exponent of |x| within bounds that leave room for scaling.
__device__ __forceinline__ u32 exponent(float x) {
    u32 biased = f32_bits(x) >> 23 & 255u;
    return biased < 30 ? 30 : biased > 230 ? 230 : biased;
}

// Two f32 as pairs of f16, of the upper parts and of what they leave.
__device__ __forceinline__ void split_f16(float x, float y, u32& upper, u32& lower) {
    upper = pack_f16(x, y);
    float a, b;
    unpack(upper, f16{}, a, b);
    lower = pack_f16(x - a, y - b);
}
