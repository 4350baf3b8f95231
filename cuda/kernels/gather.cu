// y[i] = table[ids[i] - row0] where the id lies in rows row0..row0+v, which are bound; zeros for
// ids past all rows (total), written where row0 is 0. Other rows of y stay as they are. A block
// makes 4 KiB of y[m,d]. Entries: gather_<y>, and with a table in 16 bits gather_<table>_f32.
#include "elementwise.cuh"

struct Gather {
    u32 m, d, v, row0, total;
};

template <typename S, typename T>
__device__ __forceinline__ void gather(const Gather& p, const S* table, const u32* ids, T* y) {
    const u32 VECTOR = Per<T>::VECTOR, WORD = Per<T>::WORD;
    auto vector = [&](u64 item) {
        Place at = place(item, p.d / VECTOR);
        u32 id = ids[at.row];
        // Ids before the window wrap to large numbers.
        u32 row = id - p.row0;
        float v[VECTOR] = {};
        if (row < p.v) {
            load<VECTOR>(table + (u64)row * row_stride<S>(p.d) + VECTOR * at.at, v);
        }
        if (row < p.v || (p.row0 == 0 && id >= p.total)) {
            store<VECTOR>(y + item * VECTOR, v);
        }
    };
    auto word = [&](u64 item) {
        Place at = place(item, row_stride<T>(p.d) / WORD);
        u32 id = ids[at.row], row = id - p.row0, column = WORD * at.at;
        float v[WORD];
#pragma unroll
        for (u32 j = 0; j < WORD; j++) {
            v[j] = row < p.v && column + j < p.d ? to_f32(table[(u64)row * row_stride<S>(p.d) + column + j]) : 0.0f;
        }
        if (row < p.v || (p.row0 == 0 && id >= p.total)) {
            store<WORD>(y + item * WORD, v);
        }
    };
    bool vectors = p.d % VECTOR == 0 && aligned16(table) && aligned16(y);
    tile<4>(words_of<T>(p.m, p.d), vectors, vector, word);
}

extern "C" __global__ void __launch_bounds__(256)
    gather_f32(Gather p, const float* table, const u32* ids, float* y) {
    gather(p, table, ids, y);
}

extern "C" __global__ void __launch_bounds__(256)
    gather_bf16(Gather p, const float* table, const u32* ids, bf16* y) {
    gather(p, table, ids, y);
}

extern "C" __global__ void __launch_bounds__(256)
    gather_f16_f32(Gather p, const f16* table, const u32* ids, float* y) {
    gather(p, table, ids, y);
}

extern "C" __global__ void __launch_bounds__(256)
    gather_bf16_f32(Gather p, const bf16* table, const u32* ids, float* y) {
    gather(p, table, ids, y);
}
