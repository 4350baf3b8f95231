// Rows of f32 or bf16 in packs of 16 bytes, and how the threads of a block share the rows that
// they reduce.
//
// WIDE kernels move whole packs: their operands start at multiples of 16 bytes and rows hold
// whole packs. The others take the same packs element by element, so that one body serves both.
#pragma once
#include "tritter.cuh"

// Elements of T in 16 bytes.
template <typename T>
constexpr u32 PACK = 16 / sizeof(T);

// Elements of a row that a thread keeps in registers between two passes over it.
constexpr u32 HELD = 16;

// Rows of at most this many elements are shared by a warp or a part of one, longer ones by a block.
// `cuda_rows.rs` launches accordingly.
constexpr u32 SHORT_ROW = 512;

// Two 16-bit halves of a word that hold `x`, which must be exact in T.
template <typename T>
__device__ __forceinline__ u32 repeated(float x) {
    u32 bits = f32_bits(x);
    return sizeof(T) == 2 ? (bits & 0xffff0000u) | bits >> 16 : bits;
}

__device__ __forceinline__ void widen(float* v, uint4 a, const float*) {
    v[0] = bits_f32(a.x);
    v[1] = bits_f32(a.y);
    v[2] = bits_f32(a.z);
    v[3] = bits_f32(a.w);
}

__device__ __forceinline__ void widen(float* v, uint4 a, const bf16*) {
    v[0] = bits_f32(a.x << 16);
    v[1] = bits_f32(a.x & 0xffff0000u);
    v[2] = bits_f32(a.y << 16);
    v[3] = bits_f32(a.y & 0xffff0000u);
    v[4] = bits_f32(a.z << 16);
    v[5] = bits_f32(a.z & 0xffff0000u);
    v[6] = bits_f32(a.w << 16);
    v[7] = bits_f32(a.w & 0xffff0000u);
}

__device__ __forceinline__ uint4 narrow(const float* v, const float*) {
    return make_uint4(f32_bits(v[0]), f32_bits(v[1]), f32_bits(v[2]), f32_bits(v[3]));
}

__device__ __forceinline__ uint4 narrow(const float* v, const bf16*) {
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

// v = elements j..j+N of a row of k, `rest` (0 or an infinity) beyond its end. N is a multiple of
// PACK<T>.
template <bool WIDE, typename T, u32 N>
__device__ __forceinline__ void load_pack(float (&v)[N], const T* row, u32 j, u32 k, float rest = 0.0f) {
    if (WIDE) {
        u32 word = repeated<T>(rest);
#pragma unroll
        for (u32 i = 0; i < N; i += PACK<T>) {
            uint4 a = make_uint4(word, word, word, word);
            if (j < k) {
                a = *(const uint4*)(row + j + i);
            }
            widen(v + i, a, row);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            v[i] = j + i < k ? to_f32(row[j + i]) : rest;
        }
    }
}

// Elements j..j+N of a stored row of k become v, and the padding after its end 0.
template <bool WIDE, typename T, u32 N>
__device__ __forceinline__ void store_pack(T* row, u32 j, u32 k, const float (&v)[N]) {
    if (WIDE) {
        if (j < k) {
            *(uint4*)(row + j) = narrow(v, row);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            if (j + i < row_stride<T>(k)) {
                row[j + i] = Convert<T>::from(j + i < k ? v[i] : 0.0f);
            }
        }
    }
}

// The part of a thread in rows that are reduced.
struct RowShare {
    u32 row;
    u32 thread;   // number of this thread among those of its row
    u32 threads;  // how many share a row
};

// How rows of k elements in packs of N are shared. The last block may have rows past the end.
template <u32 N>
__device__ __forceinline__ RowShare share_rows(u32 k) {
    RowShare share = {blockIdx.x, threadIdx.x, blockDim.x};
    if (k <= SHORT_ROW) {
        u32 shift = 0;
        while (shift < 5 && (N << shift) < k) {
            shift++;
        }
        share.row = blockIdx.x * (blockDim.x >> shift) + (threadIdx.x >> shift);
        share.thread = threadIdx.x & ((1u << shift) - 1u);
        share.threads = 1u << shift;
    }
    return share;
}

// Every thread of a row gets the same bits. `scratch` is shared memory of 32 floats; all threads
// of the block must call.
template <typename Op>
__device__ __forceinline__ float row_reduce(const RowShare& share, float x, float identity, float* scratch) {
    if (share.threads > WARP) {
        return block_reduce<Op>(x, identity, scratch);
    }
    for (u32 stride = share.threads / 2; stride > 0; stride /= 2) {
        float other = __shfl_xor_sync(FULL_MASK, x, stride);
        x = Op::of(x, other);
    }
    return x;
}
