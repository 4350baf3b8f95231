// y[m,n] = act(gate) * up, both products of x[m,k], normalised and quantised (see ternary_row.cuh), with
// ternary w[2n,k]: rows 0..n give gate (scale ws[0]), rows n..2n up (ws[1]); act as in gate.cu. w in 2 bits (t2)
// or 1.6 bits (t1).
//
// Rows j and n + j of w are a pair. few: ternary_few.cuh, k a multiple of 4, operands at multiples of 16
// bytes; 1: one token, 8: up to 8 tokens a block. plain: ternary_plain.cuh, after codes.
#include "sigmoid.cuh"
#include "ternary_plain.cuh"

struct TernaryGate {
    u32 m, n, k, p, kind;
    float eps;
};

struct GateRows : Prologue {
    struct Early {
        float gate, up;
    };
    u32 n, kind;
    const float* ws;
    float* y;

    __device__ __forceinline__ u32 pairs() const {
        return n;
    }

    __device__ __forceinline__ u32 low(u32 pair) const {
        return pair;
    }

    __device__ __forceinline__ u32 high(u32 pair) const {
        return pair + n;
    }

    __device__ __forceinline__ Early early(u32, u32) const {
        return {ws[0], ws[1]};
    }

    __device__ __forceinline__ void
    finish(u32 token, u32 pair, i32 low_sum, i32 high_sum, float scale, const Early& early) const {
        float gate = scaled(low_sum, row_scale(scale, early.gate));
        float up = scaled(high_sum, row_scale(scale, early.up));
        float positive = fmaxf(gate, 0.0f);
        y[(u64)token * n + pair] = (kind == 0 ? positive * positive : gate * sigmoid(gate)) * up;
    }
};

__device__ __forceinline__ GateRows
rows(const TernaryGate& p, const float* x, const float* norm, const float* ws, float* y) {
    GateRows rows;
    static_cast<Prologue&>(rows) = {x, norm, p.k, p.p, p.eps};
    rows.n = p.n;
    rows.kind = p.kind;
    rows.ws = ws;
    rows.y = y;
    return rows;
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_gate_few1_t2(
    TernaryGate p, const float* x, const float* norm, const uint4* w, const float* ws, float* y) {
    ternary_few<T2, 1>(p.m, p.k, w, rows(p, x, norm, ws, y));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2) ternary_gate_few1_t1(
    TernaryGate p, const float* x, const float* norm, const uint4* w, const float* ws, float* y) {
    ternary_few<T1, 1>(p.m, p.k, w, rows(p, x, norm, ws, y));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_gate_few8_t2(
    TernaryGate p, const float* x, const float* norm, const uint4* w, const float* ws, float* y) {
    ternary_few<T2, 8>(p.m, p.k, w, rows(p, x, norm, ws, y));
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS) ternary_gate_few8_t1(
    TernaryGate p, const float* x, const float* norm, const uint4* w, const float* ws, float* y) {
    ternary_few<T1, 8>(p.m, p.k, w, rows(p, x, norm, ws, y));
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_gate_codes(
    TernaryGate p, const float* x, const float* norm, const u32*, const float*, float*, u32* scratch) {
    plain_codes(p.m, {x, norm, p.k, p.p, p.eps}, scratch);
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_gate_plain_t2(
    TernaryGate p, const float* x, const float* norm, const u32* w, const float* ws, float* y, const u32* scratch) {
    plain_rows<T2>(p.m, p.k, w, rows(p, x, norm, ws, y), scratch);
}

extern "C" __global__ void __launch_bounds__(PLAIN_THREADS) ternary_gate_plain_t1(
    TernaryGate p, const float* x, const float* norm, const u32* w, const float* ws, float* y, const u32* scratch) {
    plain_rows<T1>(p.m, p.k, w, rows(p, x, norm, ws, y), scratch);
}
