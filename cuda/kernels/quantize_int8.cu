// Int8 codes and scales of x[m,k], one scale a row (BitNet b1.58, Ma et al. 2024):
// a = max(max_j |x_ij|, 1e-5), q[m,k] = round(x * (127 / a)), halves to even, s[m] = a / 127.
//
// Scale and codes are the bits that the CPU's kernel gives: divisions are rounded correctly and the
// product is not fused. Since |x| <= a, codes lie in +-127 without a clamp; a NaN gives 0.
// Rows are divided as in rms_norm.cu; a pack of x becomes one or two words of q. Rows of q are
// padded with zeros to 16 bytes.
#include "rows.cuh"

struct QuantizeInt8 {
    u32 m, k;
};

constexpr float LEAST = 1e-5f;

template <u32 N>
__device__ __forceinline__ float absmax(const float (&v)[N], float most) {
#pragma unroll
    for (u32 l = 0; l < N; l++) {
        most = fmaxf(most, fabsf(v[l]));
    }
    return most;
}

__device__ __forceinline__ u32 codes4(const float* v, float scale) {
    u32 word = 0;
#pragma unroll
    for (u32 l = 0; l < 4; l++) {
        word |= ((u32)__float2int_rn(__fmul_rn(v[l], scale)) & 0xffu) << (8 * l);
    }
    return word;
}

// Codes j..j+N of a row of `padded` bytes.
template <bool WIDE, u32 N>
__device__ __forceinline__ void store_codes(u32* row, u32 j, u32 padded, const float (&v)[N], float scale) {
    if (j >= padded) {
        return;
    }
    if (WIDE && N == 8) {
        *(uint2*)(row + j / 4) = make_uint2(codes4(v, scale), codes4(v + 4, scale));
    } else {
#pragma unroll
        for (u32 l = 0; l < N; l += 4) {
            row[(j + l) / 4] = codes4(v + l, scale);
        }
    }
}

template <typename T, bool WIDE>
__device__ __forceinline__ void quantize_int8(
    const QuantizeInt8& p, const T* __restrict__ x, u32* __restrict__ q, float* __restrict__ s) {
    constexpr u32 N = PACK<T>;
    __shared__ float scratch[WARP];
    RowShare share = share_rows<N>(p.k);
    bool live = share.row < p.m;
    u32 k = live ? p.k : 0;
    u32 padded = (k + 15u) & ~15u;
    const T* row = x + (u64)share.row * row_stride<T>(p.k);
    u32* out = q + (u64)share.row * (padded / 4);
    u32 step = share.threads * N;
    u32 held = share.threads * HELD;

    float v[HELD / N][N];
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        load_pack<WIDE>(v[i], row, share.thread * N + i * step, k);
    }
    float most = LEAST;
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        most = absmax(v[i], most);
    }
    for (u32 j = held + share.thread * N; j < k; j += step) {
        float more[N];
        load_pack<WIDE>(more, row, j, k);
        most = absmax(more, most);
    }
    most = row_reduce<Max>(share, most, LEAST, scratch);
    if (live && share.thread == 0) {
        s[share.row] = most / 127.0f;
    }

    float scale = 127.0f / most;
#pragma unroll
    for (u32 i = 0; i < HELD / N; i++) {
        store_codes<WIDE>(out, share.thread * N + i * step, padded, v[i], scale);
    }
    for (u32 j = held + share.thread * N; j < padded; j += step) {
        float more[N];
        load_pack<WIDE>(more, row, j, k);
        store_codes<WIDE>(out, j, padded, more, scale);
    }
}

extern "C" __global__ void __launch_bounds__(512, 2)
    quantize_int8_f32(QuantizeInt8 p, const float* x, u32* q, float* s) {
    quantize_int8<float, false>(p, x, q, s);
}

extern "C" __global__ void __launch_bounds__(512, 2)
    quantize_int8_bf16(QuantizeInt8 p, const bf16* x, u32* q, float* s) {
    quantize_int8<bf16, false>(p, x, q, s);
}

extern "C" __global__ void __launch_bounds__(512, 2)
    quantize_int8_vector_f32(QuantizeInt8 p, const float* x, u32* q, float* s) {
    quantize_int8<float, true>(p, x, q, s);
}

extern "C" __global__ void __launch_bounds__(512, 2)
    quantize_int8_vector_bf16(QuantizeInt8 p, const bf16* x, u32* q, float* s) {
    quantize_int8<bf16, true>(p, x, q, s);
}
