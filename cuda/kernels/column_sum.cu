// Adds the sum over rows to a vector: y[n] += sum over m of x[m,n]. See columns.cuh.
#include "columns.cuh"

struct ColumnSum {
    u32 m, n;
};

template <typename T>
struct Value {
    const T* __restrict__ x;
    u32 n;

    template <bool WIDE, u32 N>
    __device__ __forceinline__ void load(float (&v)[N], u32 i, u32 j, bool take) const {
        load_pack<WIDE>(v, x + (u64)i * row_stride<T>(n), j, take ? n : 0);
    }
};

template <typename T, bool WIDE>
__device__ __forceinline__ void column_sum(const ColumnSum& p, const T* x, float* partial) {
    Value<T> value = {x, p.n};
    sum_columns<WIDE, PACK<T>>(value, p.m, p.n, partial);
}

extern "C" __global__ void __launch_bounds__(256)
    column_sum_f32(ColumnSum p, const float* x, float* y, float* partial) {
    column_sum<float, false>(p, x, partial);
}

extern "C" __global__ void __launch_bounds__(256)
    column_sum_bf16(ColumnSum p, const bf16* x, float* y, float* partial) {
    column_sum<bf16, false>(p, x, partial);
}

extern "C" __global__ void __launch_bounds__(256)
    column_sum_vector_f32(ColumnSum p, const float* x, float* y, float* partial) {
    column_sum<float, true>(p, x, partial);
}

extern "C" __global__ void __launch_bounds__(256)
    column_sum_vector_bf16(ColumnSum p, const bf16* x, float* y, float* partial) {
    column_sum<bf16, true>(p, x, partial);
}

extern "C" __global__ void __launch_bounds__(256)
    column_sum_add(ColumnSum p, const void* x, float* y, const float* partial) {
    add_columns(column_splits(p.m), p.n, partial, y);
}
