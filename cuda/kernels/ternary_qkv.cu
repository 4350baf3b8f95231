// Queries, keys and values of a token: the product of x[m,k], normalised and quantised (see
// ternary_row.cuh), with ternary w[n,k], whose rows are `heads` query heads, then `groups` key and `groups`
// value heads of d elements (scales ws[0], ws[1], ws[2]). Queries and keys turn by their position as in rope.cu;
// q[m,heads d] takes the queries, row slot[i] of cache[t,2 groups d] the keys and then the values, if it exists.
//
// Elements i and i + d/2 of a head are a pair, as they turn together. few: ternary_few.cuh, k a multiple of 4,
// operands at multiples of 16 bytes; 1: one token, 8: up to 8 tokens a block. plain: ternary_plain.cuh, after codes.
// The cache is f32 or f16.
#include "ternary_plain.cuh"

struct TernaryQkv {
    u32 m, k, p, heads, groups, d, t, c, f;
    float eps;
};

// The operands after x and norm.
template <typename Cache>
struct QkvRows : Prologue {
    struct Early {
        float scale, cosine, sine;
        u32 slot;
    };
    u32 heads, groups, d, t, c, f;
    const float* ws;
    const u32* pos;
    const u32* slot;
    const float* coarse;
    const float* fine;
    float* q;
    Cache* cache;

    __device__ __forceinline__ u32 pairs() const {
        return (heads + 2 * groups) * (d / 2);
    }

    __device__ __forceinline__ u32 low(u32 pair) const {
        return pair + pair / (d / 2) * (d / 2);
    }

    __device__ __forceinline__ u32 high(u32 pair) const {
        return low(pair) + d / 2;
    }

    __device__ __forceinline__ Early early(u32 token, u32 pair) const {
        u32 head = pair / (d / 2), i = pair % (d / 2);
        Early early = {ws[head < heads ? 0 : head < heads + groups ? 1 : 2], 1.0f, 0.0f, slot[token]};
        if (head < heads + groups) {
            u64 last = (u64)c * f - 1;
            u32 position = pos[token];
            position = position < last ? position : (u32)last;
            const float* hi = coarse + (u64)(position / f) * d + i;
            const float* lo = fine + (u64)(position % f) * d + i;
            early.cosine = hi[0] * lo[0] - hi[d / 2] * lo[d / 2];
            early.sine = hi[d / 2] * lo[0] + hi[0] * lo[d / 2];
        }
        return early;
    }

    __device__ __forceinline__ void
    finish(u32 token, u32 pair, i32 low_sum, i32 high_sum, float scale, const Early& early) const {
        u32 head = pair / (d / 2), i = pair % (d / 2);
        scale = row_scale(scale, early.scale);
        float a = scaled(low_sum, scale), b = scaled(high_sum, scale);
        if (head < heads + groups) {
            float turned = a * early.cosine - b * early.sine;
            b = b * early.cosine + a * early.sine;
            a = turned;
        }
        if (head < heads) {
            float* to = q + ((u64)token * heads + head) * d + i;
            to[0] = a;
            to[d / 2] = b;
        } else if (early.slot < t) {
            Cache* to = cache + ((u64)early.slot * 2 * groups + (head - heads)) * d + i;
            to[0] = Convert<Cache>::from(a);
            to[d / 2] = Convert<Cache>::from(b);
        }
    }
};

template <typename Cache>
__device__ __forceinline__ QkvRows<Cache> rows(
    const TernaryQkv& p, const float* x, const float* norm, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, Cache* cache) {
    QkvRows<Cache> rows;
    static_cast<Prologue&>(rows) = {x, norm, p.k, p.p, p.eps};
    rows.heads = p.heads, rows.groups = p.groups, rows.d = p.d, rows.t = p.t, rows.c = p.c, rows.f = p.f;
    rows.ws = ws, rows.pos = pos, rows.slot = slot, rows.coarse = coarse, rows.fine = fine;
    rows.q = q, rows.cache = cache;
    return rows;
}

// ---- a cache of f32 ------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_qkv_few1_t2_f32(
    TernaryQkv p, const float* x, const float* norm, const uint4* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, float* cache) {
    ternary_few<T2, 1>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_qkv_few1_t1_f32(
    TernaryQkv p, const float* x, const float* norm, const uint4* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, float* cache) {
    ternary_few<T1, 1>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_qkv_few8_t2_f32(
    TernaryQkv p, const float* x, const float* norm, const uint4* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, float* cache) {
    ternary_few<T2, 8>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_qkv_few8_t1_f32(
    TernaryQkv p, const float* x, const float* norm, const uint4* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, float* cache) {
    ternary_few<T1, 8>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache));
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_qkv_plain_t2_f32(
    TernaryQkv p, const float* x, const float* norm, const u32* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, float* cache, const u32* scratch) {
    plain_rows<T2>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache), scratch);
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_qkv_plain_t1_f32(
    TernaryQkv p, const float* x, const float* norm, const u32* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, float* cache, const u32* scratch) {
    plain_rows<T1>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache), scratch);
}

// ---- a cache of f16 ------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_qkv_few1_t2_f16(
    TernaryQkv p, const float* x, const float* norm, const uint4* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, f16* cache) {
    ternary_few<T2, 1>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_qkv_few1_t1_f16(
    TernaryQkv p, const float* x, const float* norm, const uint4* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, f16* cache) {
    ternary_few<T1, 1>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_qkv_few8_t2_f16(
    TernaryQkv p, const float* x, const float* norm, const uint4* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, f16* cache) {
    ternary_few<T2, 8>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_qkv_few8_t1_f16(
    TernaryQkv p, const float* x, const float* norm, const uint4* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, f16* cache) {
    ternary_few<T1, 8>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache));
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_qkv_plain_t2_f16(
    TernaryQkv p, const float* x, const float* norm, const u32* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, f16* cache, const u32* scratch) {
    plain_rows<T2>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache), scratch);
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_qkv_plain_t1_f16(
    TernaryQkv p, const float* x, const float* norm, const u32* w, const float* ws, const u32* pos, const u32* slot,
    const float* coarse, const float* fine, float* q, f16* cache, const u32* scratch) {
    plain_rows<T1>(p.m, p.k, w, rows(p, x, norm, ws, pos, slot, coarse, fine, q, cache), scratch);
}

// ---- codes for plain -----------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_qkv_codes(
    TernaryQkv p, const float* x, const float* norm, const u32*, const float*, const u32*, const u32*, const float*,
    const float*, float*, void*, u32* scratch) {
    plain_codes(p.m, {x, norm, p.k, p.p, p.eps}, scratch);
}
