// y[m,n] = r + product of x[m,k], normalised and quantised, with ternary w[n,k] (see ternary_row.cuh): the
// output and down projections of decoding with their residual. w in 2 bits (t2) or 1.6 bits (t1).
//
// Rows j and j + ceil(n/2) of w are a pair. few: ternary_few.cuh, k a multiple of 4, operands at multiples of 16
// bytes; 1: one token, 8: up to 8 tokens a block. plain: ternary_plain.cuh, after codes.
#include "ternary_plain.cuh"

struct TernaryAdd {
    u32 m, n, k, p;
    float eps;
};

struct AddRows : Prologue {
    struct Early {
        float low, high, scale;
    };
    u32 n;
    const float* ws;
    const float* r;
    float* y;

    __device__ __forceinline__ u32 pairs() const {
        return (n + 1) / 2;
    }

    __device__ __forceinline__ u32 low(u32 pair) const {
        return pair;
    }

    __device__ __forceinline__ u32 high(u32 pair) const {
        return min(pair + pairs(), n - 1);
    }

    __device__ __forceinline__ Early early(u32 token, u32 pair) const {
        const float* row = r + (u64)token * n;
        return {row[low(pair)], row[high(pair)], ws[0]};
    }

    __device__ __forceinline__ void
    finish(u32 token, u32 pair, i32 low_sum, i32 high_sum, float scale, const Early& early) const {
        float* row = y + (u64)token * n;
        scale = row_scale(scale, early.scale);
        row[pair] = early.low + scaled(low_sum, scale);
        if (pair + pairs() < n) {
            row[pair + pairs()] = early.high + scaled(high_sum, scale);
        }
    }
};

__device__ __forceinline__ AddRows
rows(const TernaryAdd& p, const float* x, const float* norm, const float* ws, const float* r, float* y) {
    AddRows rows;
    static_cast<Prologue&>(rows) = {x, norm, p.k, p.p, p.eps};
    rows.n = p.n;
    rows.ws = ws;
    rows.r = r;
    rows.y = y;
    return rows;
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_add_few1_t2(
    TernaryAdd p, const float* x, const float* norm, const uint4* w, const float* ws, const float* r, float* y) {
    ternary_few<T2, 1>(p.m, p.k, w, rows(p, x, norm, ws, r, y));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_add_few1_t1(
    TernaryAdd p, const float* x, const float* norm, const uint4* w, const float* ws, const float* r, float* y) {
    ternary_few<T1, 1>(p.m, p.k, w, rows(p, x, norm, ws, r, y));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_add_few8_t2(
    TernaryAdd p, const float* x, const float* norm, const uint4* w, const float* ws, const float* r, float* y) {
    ternary_few<T2, 8>(p.m, p.k, w, rows(p, x, norm, ws, r, y));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_add_few8_t1(
    TernaryAdd p, const float* x, const float* norm, const uint4* w, const float* ws, const float* r, float* y) {
    ternary_few<T1, 8>(p.m, p.k, w, rows(p, x, norm, ws, r, y));
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_add_codes(
    TernaryAdd p, const float* x, const float* norm, const u32*, const float*, const float*, float*, u32* scratch) {
    plain_codes(p.m, {x, norm, p.k, p.p, p.eps}, scratch);
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_add_plain_t2(
    TernaryAdd p, const float* x, const float* norm, const u32* w, const float* ws, const float* r, float* y,
    const u32* scratch) {
    plain_rows<T2>(p.m, p.k, w, rows(p, x, norm, ws, r, y), scratch);
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_add_plain_t1(
    TernaryAdd p, const float* x, const float* norm, const u32* w, const float* ws, const float* r, float* y,
    const u32* scratch) {
    plain_rows<T1>(p.m, p.k, w, rows(p, x, norm, ws, r, y), scratch);
}
