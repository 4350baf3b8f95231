// What every kernel includes: 16-bit floats as raw bits, 16-byte moves, reductions with a
// fixed order, and all inline PTX. No NVIDIA header is needed.
//
// Each PTX wrapper stands beside its meaning on a CPU (`#ifndef __CUDA_ARCH__`), which the
// test emulator uses; the emulator supplies the warp primitives named `emu_*`.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#ifndef __CUDA_ARCH__
#include "emulated.cuh"
#endif

#define WARP 32u
#define FULL_MASK 0xffffffffu

// ---- 16-bit floats -------------------------------------------------------------------

struct bf16 {
    u16 bits;
};

struct f16 {
    u16 bits;
};

__device__ __forceinline__ float bits_f32(u32 bits) {
    return __uint_as_float(bits);
}

__device__ __forceinline__ u32 f32_bits(float x) {
    return __float_as_uint(x);
}

__device__ __forceinline__ float to_f32(float x) {
    return x;
}

__device__ __forceinline__ float to_f32(bf16 x) {
    return bits_f32((u32)x.bits << 16);
}

// Rounds to the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ bf16 to_bf16(float x) {
    u32 bits = f32_bits(x);
    u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    bf16 y;
    y.bits = (u16)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
    return y;
}

__device__ __forceinline__ float to_f32(f16 x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    return emu_f16_to_f32(x.bits);
#endif
}

// Rounds to the nearest, ties to even.
__device__ __forceinline__ f16 to_f16(float x) {
    f16 y;
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    y.bits = emu_f32_to_f16(x);
#endif
    return y;
}

template <typename T>
struct Convert;

template <>
struct Convert<float> {
    static __device__ __forceinline__ float from(float x) {
        return x;
    }
};

template <>
struct Convert<bf16> {
    static __device__ __forceinline__ bf16 from(float x) {
        return to_bf16(x);
    }
};

template <>
struct Convert<f16> {
    static __device__ __forceinline__ f16 from(float x) {
        return to_f16(x);
    }
};

// Elements of a stored row of k: f32 rows are k long, 16-bit rows are padded to whole words.
template <typename T>
__device__ __forceinline__ u32 row_stride(u32 k) {
    return sizeof(T) == 2 ? (k + 1u) & ~1u : k;
}

// Two f32 as a pair of 16-bit floats in one word, `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
#ifdef __CUDA_ARCH__
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#else
    return (u32)to_bf16(low).bits | (u32)to_bf16(high).bits << 16;
#endif
}

__device__ __forceinline__ u32 pack_f16(float low, float high) {
#ifdef __CUDA_ARCH__
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#else
    return (u32)to_f16(low).bits | (u32)to_f16(high).bits << 16;
#endif
}

// a b + c for the pairs of f16 in a word, each rounded once.
__device__ __forceinline__ u32 fma_f16(u32 a, u32 b, u32 c) {
#ifdef __CUDA_ARCH__
    u32 y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
#else
    // Products of f16 are exact in f32. Their sums are as well wherever kernels ask for them.
    auto half = [](u32 bits) { return emu_f16_to_f32((u16)bits); };
    return pack_f16(half(a) * half(b) + half(c), half(a >> 16) * half(b >> 16) + half(c >> 16));
#endif
}

// ---- approximate functions -----------------------------------------------------------

// 2^x with an error of 2 units in the last place; results below 2^-126 become 0. This is what
// exp2f does but for those.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// ---- 16-byte moves -------------------------------------------------------------------

__device__ __forceinline__ bool aligned16(const void* p) {
    return ((u64)p & 15u) == 0;
}

// Reads 16 bytes that the kernel only reads and that this processor needs only once: they take no
// place in the first-level cache from data that is shared. Stays where it stands in the program,
// so that it can be under way across a barrier.
__device__ __forceinline__ uint4 load_once(const uint4* p) {
#ifdef __CUDA_ARCH__
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
#else
    return *p;
#endif
}

// Asks for the line of 64 bytes at an address to be brought to the second-level cache.
__device__ __forceinline__ void prefetch_l2(const void* p) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    (void)p;
#endif
}

// Stores 16 bytes to global memory in one instruction. The compiler may cut a plain store of a
// uint4 into words where another vector goes to the same buffer nearby.
__device__ __forceinline__ void store16(void* to, uint4 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#else
    *(uint4*)to = v;
#endif
}

// ---- integer dot product -------------------------------------------------------------

// c + sum of the products of the four signed bytes of a and b.
__device__ __forceinline__ i32 dot4(u32 a, u32 b, i32 c) {
#ifdef __CUDA_ARCH__
    i32 d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#else
    for (u32 i = 0; i < 4; i++) {
        c += (i32)(i8)(a >> (8 * i)) * (i32)(i8)(b >> (8 * i));
    }
    return c;
#endif
}

// ---- reductions with a fixed order ---------------------------------------------------

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) {
        return a + b;
    }
};

struct Max {
    static __device__ __forceinline__ float of(float a, float b) {
        return fmaxf(a, b);
    }
};

// Every lane of the warp gets the same bits: lanes are combined in a butterfly.
template <typename Op>
__device__ __forceinline__ float warp_reduce(float x) {
#pragma unroll
    for (u32 stride = WARP / 2; stride > 0; stride /= 2) {
        float other = __shfl_xor_sync(FULL_MASK, x, stride);
        x = Op::of(x, other);
    }
    return x;
}

// Every thread of the block gets the same bits. `scratch` is shared memory of 32 floats; all
// threads must call. Begins and ends with a barrier, so that `scratch` can be used again.
template <typename Op>
__device__ __forceinline__ float block_reduce(float x, float identity, float* scratch) {
    u32 lane = threadIdx.x % WARP;
    u32 warp = threadIdx.x / WARP;
    x = warp_reduce<Op>(x);
    __syncthreads();
    if (lane == 0) {
        scratch[warp] = x;
    }
    __syncthreads();
    x = lane < (blockDim.x + WARP - 1) / WARP ? scratch[lane] : identity;
    x = warp_reduce<Op>(x);
    __syncthreads();
    return x;
}

// ---- asynchronous copies to shared memory (sm_80) ------------------------------------

#ifdef __CUDA_ARCH__
__device__ __forceinline__ u32 shared_address(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}
#endif

// Starts copying 16 bytes; both addresses are multiples of 16. With `take` false the
// destination is filled with zeros and `from` is not read (it must still be a valid pointer).
__device__ __forceinline__ void copy_async16(void* to, const void* from, bool take) {
#ifdef __CUDA_ARCH__
    u32 bytes = take ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
#else
    emu_copy_async(to, from, 16, take);
#endif
}

// As copy_async16 with 4 bytes and multiples of 4.
__device__ __forceinline__ void copy_async4(void* to, const void* from, bool take) {
#ifdef __CUDA_ARCH__
    u32 bytes = take ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
#else
    emu_copy_async(to, from, 4, take);
#endif
}

// Closes the group of the copies that this thread has started since the last call.
__device__ __forceinline__ void copy_async_commit() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emu_copy_async_commit();
#endif
}

// Waits until at most N of this thread's groups are under way. Other threads see the data
// after a barrier.
template <u32 N>
__device__ __forceinline__ void copy_async_wait() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
    emu_copy_async_wait(N);
#endif
}

// ---- tensor cores --------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements. Lanes 8i..8i+7 give the addresses (multiples of 16, in
// shared memory) of the rows of matrix i; lane l receives elements 2(l%4), 2(l%4)+1 of row l/4
// of matrix i in a[i]. All lanes of the warp call.
__device__ __forceinline__ void load_matrix4(u32 (&a)[4], const void* row) {
#ifdef __CUDA_ARCH__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emu_load_matrix(a, 4, row, false);
#endif
}

// As load_matrix4, each matrix transposed.
__device__ __forceinline__ void load_matrix4_transposed(u32 (&a)[4], const void* row) {
#ifdef __CUDA_ARCH__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emu_load_matrix(a, 4, row, true);
#endif
}

// d[16,8] += a[16,16] b[16,8] with f32 accumulation. Fragments of lane l, g = l/4, t = l%4:
// a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..];
// b[0] = B[2t..][g], b[1] = B[2t+8..][g]; d[0..1] = D[g][2t..], d[2..3] = D[g+8][2t..].
template <typename T>
__device__ __forceinline__ void mma16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);

template <>
__device__ __forceinline__ void mma16<bf16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef __CUDA_ARCH__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu_mma16(d, a, b, [](u16 bits) { return bits_f32((u32)bits << 16); });
#endif
}

template <>
__device__ __forceinline__ void mma16<f16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef __CUDA_ARCH__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu_mma16(d, a, b, [](u16 bits) { return emu_f16_to_f32(bits); });
#endif
}

// d[16,8] += a[16,32] b[32,8] of signed bytes, exact. Fragments: a[0] = A[g][4t..], a[1] = A[g+8][4t..],
// a[2] = A[g][4t+16..], a[3] = A[g+8][4t+16..]; b[0] = B[4t..][g], b[1] = B[4t+16..][g]; d as in mma16.
__device__ __forceinline__ void mma32(i32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef __CUDA_ARCH__
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu_mma32(d, a, b);
#endif
}
