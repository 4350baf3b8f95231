// Ternary codes t[n,k] = clamp(round(w[n,k] * (1 / s)), -1, 1), halves to even (BitNet b1.58, Ma
// et al. 2024), stored as t + 1 in two bits, 16 in a word, lowest bits first; padding codes are 1.
//
// A block makes 256 words from 16 KiB of w. Where rows are whole words and w is aligned, a warp
// loads its 2 KiB as four runs of 32 vectors, so that neighbouring lanes read neighbouring
// vectors: a lane then holds a byte (4 codes) of each run, and four lanes exchange bytes for the
// words. Otherwise a thread reads the weights of its word one by one.
#include "elementwise.cuh"

struct Ternarize {
    u32 n, k;
};

// Code t + 1. Adding 1.5 * 2^23 rounds to an integer, ties to even, which then stands in the low bits.
__device__ __forceinline__ u32 ternary_code(float w, float scale) {
    float rounded = fminf(fmaxf(w * scale, -1.0f), 1.0f) + 12582912.0f;
    return (f32_bits(rounded) + 1u) & 3u;
}

// Transposes the 4x4 bytes of four neighbouring lanes: lane i gets byte i of each, in their order.
__device__ __forceinline__ u32 transpose_bytes(u32 x, u32 lane) {
    u32 other = __shfl_xor_sync(FULL_MASK, x, 1);
    x = lane % 2 == 0 ? (x & 0x00ff00ffu) | (other & 0x00ff00ffu) << 8 : (x & 0xff00ff00u) | (other & 0xff00ff00u) >> 8;
    other = __shfl_xor_sync(FULL_MASK, x, 2);
    return lane % 4 < 2 ? (x & 0x0000ffffu) | other << 16 : (x & 0xffff0000u) | other >> 16;
}

extern "C" __global__ void __launch_bounds__(256) ternarize_f32(Ternarize p, const float* w, const float* s, u32* t) {
    u32 row_words = (p.k + 15) / 16;
    u64 words = (u64)p.n * row_words;
    u64 first = (u64)blockIdx.x * 256;
    float scale = 1.0f / s[0];
    if (p.k % 16 == 0 && aligned16(w)) {
        u32 lane = threadIdx.x % WARP;
        first += threadIdx.x / WARP * WARP;
        float v[4][4];
#pragma unroll
        for (u32 run = 0; run < 4; run++) {
            u64 at = 4 * first + WARP * run + lane;
            if (at < 4 * words) {
                load<4>(w + 4 * at, v[run]);
            } else {
                v[run][0] = v[run][1] = v[run][2] = v[run][3] = 0.0f;
            }
        }
        u32 packed = 0;
#pragma unroll
        for (u32 run = 0; run < 4; run++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                packed |= ternary_code(v[run][i], scale) << (8 * run + 2 * i);
            }
        }
        packed = transpose_bytes(packed, lane);
        // Lane 4 i + j now holds word i of run j.
        u64 at = first + 8 * (lane % 4) + lane / 4;
        if (at < words) {
            t[at] = packed;
        }
        return;
    }
    u64 at = first + threadIdx.x;
    if (at < words) {
        Place to = place(at, row_words);
        u32 column = 16 * to.at;
        const float* from = w + (u64)to.row * p.k + column;
        u32 packed = 0;
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            packed |= (column + i < p.k ? ternary_code(from[i], scale) : 1u) << (2 * i);
        }
        t[at] = packed;
    }
}
