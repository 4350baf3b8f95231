// What the kernels of ternary_matmul share: parameters, codes as signed bytes, stores of results.
#pragma once
#include "tritter.cuh"

struct TernaryMatmul {
    u32 m, n, k, l, n0, scales, scale;
};

// The four signed bytes t = c - 1 of the codes c in the low halves of the four lowest nibbles: each
// nibble picks one of the bytes -1, 0, 1, 0.
__device__ __forceinline__ u32 ternary_bytes(u32 nibbles) {
    return __byte_perm(0x000100ffu, 0, nibbles);
}

// The 16 codes of a word as signed bytes t, four in a word, in their order.
__device__ __forceinline__ void unpack_ternary(u32 word, u32 (&t)[4]) {
    u32 even = word & 0x33333333u;
    u32 odd = word >> 2 & 0x33333333u;
    u32 even_low = ternary_bytes(even), odd_low = ternary_bytes(odd);
    u32 even_high = ternary_bytes(even >> 16), odd_high = ternary_bytes(odd >> 16);
    t[0] = __byte_perm(even_low, odd_low, 0x5140);
    t[1] = __byte_perm(even_low, odd_low, 0x7362);
    t[2] = __byte_perm(even_high, odd_high, 0x5140);
    t[3] = __byte_perm(even_high, odd_high, 0x7362);
}

// The factor of a row, rounded before it meets the sum, as on every device.
__device__ __forceinline__ float row_scale(float xs, float ws) {
    return __fmul_rn(xs, ws);
}

__device__ __forceinline__ float scaled(i32 sum, float scale) {
    return __fmul_rn((float)sum, scale);
}

__device__ __forceinline__ void store_four(float* to, const float (&v)[4]) {
    *(float4*)to = make_float4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ void store_four(bf16* to, const float (&v)[4]) {
    *(uint2*)to = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

__device__ __forceinline__ void store_one(float* to, float v) {
    *to = v;
}

__device__ __forceinline__ void store_one(bf16* to, float v) {
    to->bits = (u16)pack_bf16(v, 0.0f);
}

// Columns that are stored: n, and one of zeros where they end a row with padding. In a whole op n is
// odd then, so that the block which makes column n - 1 has a place for it.
template <typename T>
__device__ __forceinline__ u32 stored_columns(const TernaryMatmul& p) {
    return p.n0 + p.n == p.l ? row_stride<T>(p.l) - p.n0 : p.n;
}
