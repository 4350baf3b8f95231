// y[i] = row ids[i] - row0 of w[v,k] times s[v,g], where the id lies in rows row0..row0+v, which are bound; zeros
// for ids past all rows (total), written where row0 is 0. Other rows of y stay as they are. w: integers of 8, 6 or
// 4 bits with a scale in f16 for each group of k (widened.cuh). A thread makes eight elements of y[m,k].
#include "elementwise.cuh"
#include "widened.cuh"

struct QuantizedGather {
    u32 m, v, k, group, row0, total;
};

template <typename Codec>
__device__ __forceinline__ void
quantized_gather(const QuantizedGather& p, const u32* __restrict__ w, const f16* __restrict__ s,
                 const u32* __restrict__ ids, float* __restrict__ y) {
    u64 item = (u64)blockIdx.x * TILE_THREADS + threadIdx.x;
    u32 eights = (p.k + 7) / 8;
    if (item >= (u64)p.m * eights) {
        return;
    }
    Place at = place(item, eights);
    u32 id = ids[at.row];
    // Ids before the window wrap to large numbers.
    u32 row = id - p.row0, column = at.at * 8;
    if (row >= p.v && (p.row0 != 0 || id < p.total)) {
        return;
    }
    float x[8] = {};
    if (row < p.v) {
        u32 words = Codec::words(p.k);
        Groups groups(p.k, p.group);
        Codec::eight(w + (u64)row * words, column, words, x);
        float scale = scale_of<Codec>(groups, s + (u64)row * groups.stride, column / 16);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            x[i] *= scale;
        }
    }
    float* to = y + (u64)at.row * p.k + column;
    if (p.k % 8 == 0 && aligned16(y)) {
        store<8>(to, x);
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (column + i < p.k) {
                to[i] = x[i];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    quantized_gather_i8(QuantizedGather p, const u32* w, const f16* s, const u32* ids, float* y) {
    quantized_gather<Int8>(p, w, s, ids, y);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    quantized_gather_i6(QuantizedGather p, const u32* w, const f16* s, const u32* ids, float* y) {
    quantized_gather<Int6>(p, w, s, ids, y);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    quantized_gather_i4(QuantizedGather p, const u32* w, const f16* s, const u32* ids, float* y) {
    quantized_gather<Int4>(p, w, s, ids, y);
}
