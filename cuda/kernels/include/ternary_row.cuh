// What the fused rows of decoding share: x[m,k] is normalised (rms_norm) where it has a weight norm[k],
// and quantised (quantize_int8), on the way to shared memory.
//
// Every block does that again from L2: k floats against the rows of w that it streams. The sum of squares
// and the largest |norm x| are found in one pass, so that one barrier is enough; the largest normalised
// value is then that times the factor of the row.
#pragma once
#include "ternary_few.cuh"

// Groups of four elements that a thread keeps from the first pass to the second (a single token).
#define FEW_HELD 4u

constexpr float LEAST = 1e-5f;

// `none` unless the thread's four elements exist.
__device__ __forceinline__ float4 four_at(const float* row, u32 c, u32 count, float none) {
    float4 v = make_float4(none, none, none, none);
    if (c < count) {
        v = *(const float4*)(row + 4 * c);
    }
    return v;
}

__device__ __forceinline__ float4 times(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

__device__ __forceinline__ u32 code(float v, float factor, float scale) {
    return (u32)__float2int_rn(__fmul_rn(v * factor, scale)) & 0xffu;
}

// Codes of four elements of norm x.
__device__ __forceinline__ u32 codes_of(float4 v, float factor, float scale) {
    return code(v.x, factor, scale) | code(v.y, factor, scale) << 8 | code(v.z, factor, scale) << 16 |
           code(v.w, factor, scale) << 24;
}

// A token's row in codes: code = round(norm x * factor * scale).
struct Coding {
    float factor, scale, step;

    // `squares` is the sum of squares of x, `most` the largest |norm x|.
    __device__ __forceinline__ Coding(float squares, float most, bool normed, u32 k, float eps) {
        factor = normed ? 1.0f / sqrtf(squares / (float)k + eps) : 1.0f;
        most = fmaxf(most * factor, LEAST);
        scale = 127.0f / most;
        step = most / 127.0f;
    }
};

struct Prologue {
    const float* x;
    const float* norm;
    u32 k, p;
    float eps;

    __device__ __forceinline__ bool normed() const {
        return p == k;
    }

    __device__ __forceinline__ float4 weight(u32 c, u32 count) const {
        return normed() ? four_at(norm, c, count, 0.0f) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    }

    template <typename Codes, u32 TOKENS>
    __device__ __forceinline__ void stage(const FewPlan<Codes>& plan, u32 i0, u32 tokens) const {
        const u32 BATCH = TOKENS < 4 ? TOKENS : 4;
        const u32 HELD = TOKENS == 1 ? FEW_HELD : 0;
        u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        u32 count = k / 4;
        const float* row = x + (u64)i0 * k;
        float4 held[FEW_HELD];
        if constexpr (HELD > 0) {
#pragma unroll
            for (u32 h = 0; h < HELD; h++) {
                held[h] = four_at(row, threadIdx.x + h * blockDim.x, count, 0.0f);
            }
            float squares = 0.0f, most = 0.0f;
#pragma unroll
            for (u32 h = 0; h < HELD; h++) {
                look(held[h], weight(threadIdx.x + h * blockDim.x, count), squares, most);
            }
            for (u32 c = threadIdx.x + HELD * blockDim.x; c < count; c += blockDim.x) {
                float4 v = four_at(row, c, count, 0.0f);
                look(v, weight(c, count), squares, most);
            }
            keep(plan, 0, squares, most);
        } else {
#pragma unroll 1
            for (u32 i = 0; i < tokens; i += BATCH) {
                float squares[BATCH] = {}, most[BATCH] = {};
                for (u32 c = threadIdx.x; c < count; c += blockDim.x) {
                    float4 scale = weight(c, count);
                    float4 v[BATCH];
#pragma unroll
                    for (u32 b = 0; b < BATCH; b++) {
                        v[b] = four_at(row + (u64)min(i + b, tokens - 1) * k, c, count, 0.0f);
                    }
#pragma unroll
                    for (u32 b = 0; b < BATCH; b++) {
                        look(v[b], scale, squares[b], most[b]);
                    }
                }
#pragma unroll
                for (u32 b = 0; b < BATCH; b++) {
                    if (i + b < tokens) {
                        keep(plan, i + b, squares[b], most[b]);
                    }
                }
            }
        }
        __syncthreads();
#pragma unroll 1
        for (u32 i = 0; i < tokens; i++) {
            // Every warp reduces what the warps have found, in the same order.
            float2 found = lane < plan.warps ? plan.facts[i * plan.warps + lane] : make_float2(0.0f, 0.0f);
            float squares = warp_reduce<Sum>(found.x);
            float most = warp_reduce<Max>(found.y);
            Coding coding(squares, most, normed(), k, eps);
            if (threadIdx.x == 0) {
                plan.scales[i] = coding.step;
            }
            plan.clear_ends(i);
            i32 x_sum = 0;
            if constexpr (HELD > 0) {
#pragma unroll
                for (u32 h = 0; h < HELD; h++) {
                    put(plan, i, threadIdx.x + h * blockDim.x, count, codes_of(held[h], coding.factor, coding.scale),
                        x_sum);
                }
            }
            // Whole warps, for the shuffles of put4.
            u32 whole = (count + WARP - 1) / WARP * WARP;
#pragma unroll 2
            for (u32 c = threadIdx.x + HELD * blockDim.x; c < whole; c += blockDim.x) {
                float4 v = times(four_at(row + (u64)i * k, c, count, 0.0f), weight(c, count));
                put(plan, i, c, count, codes_of(v, coding.factor, coding.scale), x_sum);
            }
            x_sum = warp_sum(x_sum);
            if (lane == 0) {
                plan.x_sums[i * plan.warps + warp] = x_sum;
            }
        }
    }

  private:
    // v becomes norm v.
    static __device__ __forceinline__ void look(float4& v, float4 scale, float& squares, float& most) {
        squares += v.x * v.x;
        squares += v.y * v.y;
        squares += v.z * v.z;
        squares += v.w * v.w;
        v = times(v, scale);
        most = fmaxf(most, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    }

    template <typename Codes>
    static __device__ __forceinline__ void keep(const FewPlan<Codes>& plan, u32 token, float squares, float most) {
        squares = warp_reduce<Sum>(squares);
        most = warp_reduce<Max>(most);
        if (threadIdx.x % WARP == 0) {
            plan.facts[token * plan.warps + threadIdx.x / WARP] = make_float2(squares, most);
        }
    }

    template <typename Codes>
    static __device__ __forceinline__ void
    put(const FewPlan<Codes>& plan, u32 token, u32 c, u32 count, u32 word, i32& x_sum) {
        x_sum = dot4(word, 0x01010101u, x_sum);
        Codes::put4(plan.rows + token * plan.stride, c, count, plan.shift, word);
    }
};
