// ternary_matmul for few rows of x, which is int8 already (ternary_few.cuh). Rows j and j + ceil(n/2) of w
// are a pair.
#pragma once
#include "ternary_few.cuh"

template <typename T>
struct MatvecRows {
    struct Early {
        float scale;
    };
    TernaryMatmul p;
    const float* ws;
    const uint4* x;
    const float* xs;
    T* y;

    __device__ __forceinline__ u32 pairs() const {
        return (p.n + 1) / 2;
    }

    __device__ __forceinline__ u32 low(u32 pair) const {
        return pair;
    }

    __device__ __forceinline__ u32 high(u32 pair) const {
        return min(pair + pairs(), p.n - 1);
    }

    __device__ __forceinline__ Early early(u32, u32) const {
        return {ws[p.scale]};
    }

    // With an odd n the last pair's high row is the padding, if the op has one.
    __device__ __forceinline__ void
    finish(u32 token, u32 pair, i32 low_sum, i32 high_sum, float scale, const Early& early) const {
        T* row = y + (u64)token * row_stride<T>(p.l) + p.n0;
        scale = row_scale(scale, early.scale);
        store_one(row + pair, scaled(low_sum, scale));
        pair += pairs();
        if (pair < stored_columns<T>(p)) {
            store_one(row + pair, pair < p.n ? scaled(high_sum, scale) : 0.0f);
        }
    }

    // Rows are read BATCH at a time.
    template <typename Codes, u32 TOKENS>
    __device__ __forceinline__ void stage(const FewPlan<Codes>& plan, u32 i0, u32 tokens) const {
        const u32 BATCH = TOKENS < 4 ? TOKENS : 4;
        u32 vectors = (p.k + 15) / 16, count = (p.k + 3) / 4;
        if (threadIdx.x < tokens) {
            plan.scales[threadIdx.x] = xs[i0 + threadIdx.x];
        }
#pragma unroll
        for (u32 i = 0; i < TOKENS; i += BATCH) {
            i32 sums[BATCH] = {};
            for (u32 v = threadIdx.x; v < vectors; v += blockDim.x) {
                uint4 four[BATCH];
#pragma unroll
                for (u32 b = 0; b < BATCH; b++) {
                    four[b] = x[(u64)(i0 + min(i + b, tokens - 1)) * vectors + v];
                }
#pragma unroll
                for (u32 b = 0; b < BATCH; b++) {
                    if (i + b < tokens) {
                        sums[b] = sum16(four[b], sums[b]);
                        Codes::put16(plan.rows + (i + b) * plan.stride, v, count, plan.shift, four[b]);
                    }
                }
            }
#pragma unroll
            for (u32 b = 0; b < BATCH; b++) {
                i32 sum = warp_sum(sums[b]);
                if (threadIdx.x % WARP == 0 && i + b < tokens) {
                    plan.x_sums[(i + b) * plan.warps + threadIdx.x / WARP] = sum;
                }
            }
        }
        for (u32 i = 0; i < tokens; i++) {
            plan.clear_ends(i);
        }
    }

  private:
    static __device__ __forceinline__ i32 sum16(uint4 x, i32 sum) {
        const u32 ONES = 0x01010101u;
        return dot4(x.x, ONES, dot4(x.y, ONES, dot4(x.z, ONES, dot4(x.w, ONES, sum))));
    }
};
