// CUDA C as plain C++17 for the emulator: keywords, built-in variables, vector types, intrinsics.
//
// Included by tritter.cuh when a host compiler sees it. Whatever concerns several threads calls
// the emulator's runtime; arithmetic is done here. No system header is needed.
#pragma once

#define __global__ __attribute__((noinline, visibility("default")))
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// A block runs on one thread of the host, so thread-local is shared by the block.
#define __shared__ thread_local
#define EMU_SHARED_MAX (99 << 10)
#define EMU_PURE __attribute__((const))

// The launch's dynamic shared memory, which kernels declare as `extern __shared__ ... smem[]`.
extern "C" {
extern thread_local __attribute__((aligned(128))) unsigned char smem[EMU_SHARED_MAX];
__attribute__((aligned(128))) thread_local unsigned char smem[EMU_SHARED_MAX];
}

// ---- built-in variables --------------------------------------------------------------

struct uint3 {
    unsigned x, y, z;
};

extern "C" {
uint3 emu_thread_index() EMU_PURE;
uint3 emu_block_index() EMU_PURE;
uint3 emu_block_size() EMU_PURE;
uint3 emu_grid_size() EMU_PURE;
}

#define threadIdx emu_thread_index()
#define blockIdx emu_block_index()
#define blockDim emu_block_size()
#define gridDim emu_grid_size()
#define warpSize 32

// ---- vector types --------------------------------------------------------------------

#define EMU_VECTOR(T, name, align2, align4)                                       \
    struct __align__(align2) name##2 { T x, y; };                                 \
    struct __align__(align4) name##4 { T x, y, z, w; };                           \
    __forceinline__ name##2 make_##name##2(T x, T y) { return name##2{x, y}; }    \
    __forceinline__ name##4 make_##name##4(T x, T y, T z, T w) { return name##4{x, y, z, w}; }

EMU_VECTOR(float, float, 8, 16)
EMU_VECTOR(int, int, 8, 16)
EMU_VECTOR(unsigned, uint, 8, 16)
EMU_VECTOR(unsigned short, ushort, 4, 8)
EMU_VECTOR(short, short, 4, 8)
EMU_VECTOR(unsigned char, uchar, 2, 4)
EMU_VECTOR(signed char, char, 2, 4)
#undef EMU_VECTOR

// ---- bits ----------------------------------------------------------------------------

template <typename To, typename From>
__forceinline__ To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a cast between bits of one width");
    return __builtin_bit_cast(To, from);
}

__forceinline__ float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
__forceinline__ float __int_as_float(int x) { return emu_bits<float>(x); }
__forceinline__ unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
__forceinline__ int __float_as_int(float x) { return emu_bits<int>(x); }
__forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
__forceinline__ int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
__forceinline__ int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
__forceinline__ unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
__forceinline__ int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }

__forceinline__ unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1u) << (31 - i);
    return y;
}

__forceinline__ unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned chosen = selector >> (4 * i) & 0xfu;
        unsigned byte = (unsigned)(bytes >> (8 * (chosen & 7u))) & 0xffu;
        if (chosen & 8u) byte = byte & 0x80u ? 0xffu : 0u;
        result |= byte << (8 * i);
    }
    return result;
}

__forceinline__ unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (by & 31u));
}
__forceinline__ unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) << (by & 31u) >> 32);
}

float emu_f16_to_f32(unsigned short bits);
unsigned short emu_f32_to_f16(float x);

__forceinline__ float emu_f16_to_f32(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        float magnitude = (float)fraction * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -magnitude : magnitude;
    }
    return __uint_as_float(sign | (exponent + 112u) << 23 | fraction << 13);
}

// To the nearest, ties to even.
__forceinline__ unsigned short emu_f32_to_f16(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (unsigned short)(sign | 0x7fffu);
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        // Below 2^-14: the sum with 0.5 rounds to multiples of 2^-24.
        float sum = __uint_as_float(magnitude) + 0.5f;
        return (unsigned short)(sign | (__float_as_uint(sum) - 0x3f000000u));
    }
    unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (unsigned short)(sign | (rounded - 0x38000000u) >> 13);
}

// ---- arithmetic ----------------------------------------------------------------------

#define EMU_UNARY(name) \
    __forceinline__ float name##f(float x) { return __builtin_##name##f(x); }
EMU_UNARY(sqrt)
EMU_UNARY(exp)
EMU_UNARY(exp2)
EMU_UNARY(expm1)
EMU_UNARY(log)
EMU_UNARY(log2)
EMU_UNARY(log10)
EMU_UNARY(log1p)
EMU_UNARY(sin)
EMU_UNARY(cos)
EMU_UNARY(tanh)
EMU_UNARY(erf)
EMU_UNARY(fabs)
EMU_UNARY(rint)
EMU_UNARY(nearbyint)
EMU_UNARY(floor)
EMU_UNARY(ceil)
EMU_UNARY(trunc)
EMU_UNARY(round)
#undef EMU_UNARY
__forceinline__ float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
__forceinline__ float fminf(float a, float b) { return __builtin_fminf(a, b); }
__forceinline__ float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
__forceinline__ float powf(float a, float b) { return __builtin_powf(a, b); }
__forceinline__ float fmodf(float a, float b) { return __builtin_fmodf(a, b); }
__forceinline__ float copysignf(float a, float b) { return __builtin_copysignf(a, b); }
__forceinline__ float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
__forceinline__ void sincosf(float x, float* s, float* c) { *s = __builtin_sinf(x), *c = __builtin_cosf(x); }
__forceinline__ float __expf(float x) { return __builtin_expf(x); }
__forceinline__ float __logf(float x) { return __builtin_logf(x); }
__forceinline__ float __sinf(float x) { return __builtin_sinf(x); }
__forceinline__ float __cosf(float x) { return __builtin_cosf(x); }
__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
__forceinline__ int abs(int x) { return x < 0 ? -x : x; }
__forceinline__ bool isnan(float x) { return __builtin_isnan(x); }
__forceinline__ bool isinf(float x) { return __builtin_isinf(x); }
__forceinline__ bool isfinite(float x) { return __builtin_isfinite(x); }

// A value that the compiler cannot look through, so that it fuses no product with a sum.
__forceinline__ float emu_rounded(float x) {
#if defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#else
    asm("" : "+m"(x));
#endif
    return x;
}

__forceinline__ float __fmul_rn(float a, float b) { return emu_rounded(a * b); }
__forceinline__ float __fadd_rn(float a, float b) { return emu_rounded(emu_rounded(a) + emu_rounded(b)); }
__forceinline__ float __fsub_rn(float a, float b) { return emu_rounded(emu_rounded(a) - emu_rounded(b)); }
__forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
__forceinline__ float __frcp_rn(float x) { return 1.0f / x; }
__forceinline__ float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
__forceinline__ float __int2float_rn(int x) { return (float)x; }
__forceinline__ float __uint2float_rn(unsigned x) { return (float)x; }
__forceinline__ float __ll2float_rn(long long x) { return (float)x; }
__forceinline__ float __ull2float_rn(unsigned long long x) { return (float)x; }

// As on the device, values out of range saturate and NaN becomes 0.
__forceinline__ int emu_to_int(float x) {
    if (!(x == x)) return 0;
    return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : (int)x;
}
__forceinline__ unsigned emu_to_uint(float x) {
    return !(x > 0.0f) ? 0u : x >= 4294967296.0f ? 0xffffffffu : (unsigned)x;
}
__forceinline__ int __float2int_rn(float x) { return emu_to_int(__builtin_rintf(x)); }
__forceinline__ int __float2int_rz(float x) { return emu_to_int(x); }
__forceinline__ int __float2int_rd(float x) { return emu_to_int(__builtin_floorf(x)); }
__forceinline__ int __float2int_ru(float x) { return emu_to_int(__builtin_ceilf(x)); }
__forceinline__ unsigned __float2uint_rn(float x) { return emu_to_uint(__builtin_rintf(x)); }
__forceinline__ unsigned __float2uint_rz(float x) { return emu_to_uint(x); }

#define EMU_MIN_MAX(R, A, B)                                                    \
    __forceinline__ R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; }       \
    __forceinline__ R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
EMU_MIN_MAX(int, int, int)
EMU_MIN_MAX(unsigned, unsigned, unsigned)
EMU_MIN_MAX(unsigned, int, unsigned)
EMU_MIN_MAX(unsigned, unsigned, int)
EMU_MIN_MAX(long long, long long, long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
EMU_MIN_MAX(unsigned long, unsigned long, unsigned long)
#undef EMU_MIN_MAX
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ float max(float a, float b) { return fmaxf(a, b); }

// ---- barriers, shuffles, votes -------------------------------------------------------

extern "C" {
void emu_syncthreads();
int emu_syncthreads_vote(unsigned kind, int vote);
void emu_syncwarp(unsigned mask);
unsigned emu_shuffle(unsigned kind, unsigned mask, unsigned value, unsigned argument, unsigned width);
unsigned emu_ballot(unsigned mask, int predicate);
void emu_trap() __attribute__((noreturn));
}

__forceinline__ void __syncthreads() { emu_syncthreads(); }
__forceinline__ int __syncthreads_or(int vote) { return emu_syncthreads_vote(1, vote); }
__forceinline__ int __syncthreads_and(int vote) { return emu_syncthreads_vote(2, vote); }
__forceinline__ int __syncthreads_count(int vote) { return emu_syncthreads_vote(3, vote); }
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) { emu_syncwarp(mask); }
__forceinline__ void __threadfence() {}
__forceinline__ void __threadfence_block() {}
__forceinline__ void __trap() { emu_trap(); }
__forceinline__ unsigned __ballot_sync(unsigned mask, int vote) { return emu_ballot(mask, vote); }
__forceinline__ int __any_sync(unsigned mask, int vote) { return emu_ballot(mask, vote) != 0; }
__forceinline__ int __all_sync(unsigned mask, int vote) { return emu_ballot(mask, vote) == mask; }
__forceinline__ unsigned __activemask() = delete;

template <typename T>
__forceinline__ T emu_shuffle_of(unsigned kind, unsigned mask, T value, unsigned argument, unsigned width) {
    if constexpr (sizeof(T) == 8) {
        unsigned long long bits = emu_bits<unsigned long long>(value);
        unsigned low = emu_shuffle(kind, mask, (unsigned)bits, argument, width);
        unsigned high = emu_shuffle(kind, mask, (unsigned)(bits >> 32), argument, width);
        return emu_bits<T>((unsigned long long)high << 32 | low);
    } else {
        return emu_bits<T>(emu_shuffle(kind, mask, emu_bits<unsigned>(value), argument, width));
    }
}

#define EMU_SHUFFLES(T)                                                                                  \
    __forceinline__ T __shfl_sync(unsigned mask, T x, int lane, int width = 32) {                        \
        return emu_shuffle_of(0, mask, x, (unsigned)lane, (unsigned)width);                              \
    }                                                                                                    \
    __forceinline__ T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32) {               \
        return emu_shuffle_of(1, mask, x, delta, (unsigned)width);                                       \
    }                                                                                                    \
    __forceinline__ T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32) {             \
        return emu_shuffle_of(2, mask, x, delta, (unsigned)width);                                       \
    }                                                                                                    \
    __forceinline__ T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32) {                   \
        return emu_shuffle_of(3, mask, x, (unsigned)lanes, (unsigned)width);                             \
    }
EMU_SHUFFLES(int)
EMU_SHUFFLES(unsigned)
EMU_SHUFFLES(float)
EMU_SHUFFLES(long long)
EMU_SHUFFLES(unsigned long long)
#undef EMU_SHUFFLES

// ---- memory --------------------------------------------------------------------------

template <typename T>
__forceinline__ T __ldg(const T* p) { return *p; }
template <typename T>
__forceinline__ T __ldcs(const T* p) { return *p; }
template <typename T>
__forceinline__ T __ldcg(const T* p) { return *p; }
template <typename T>
__forceinline__ void __stcs(T* p, T x) { *p = x; }
template <typename T>
__forceinline__ void __stcg(T* p, T x) { *p = x; }

extern "C" unsigned emu_atomic(unsigned kind, unsigned* at, unsigned value, unsigned expected);
#define EMU_ATOMIC(name, T, kind) \
    __forceinline__ T name(T* at, T x) { return (T)emu_atomic(kind, (unsigned*)at, (unsigned)x, 0); }
EMU_ATOMIC(atomicAdd, int, 0)
EMU_ATOMIC(atomicAdd, unsigned, 0)
EMU_ATOMIC(atomicMax, int, 1)
EMU_ATOMIC(atomicMax, unsigned, 2)
EMU_ATOMIC(atomicMin, int, 3)
EMU_ATOMIC(atomicMin, unsigned, 4)
EMU_ATOMIC(atomicOr, int, 5)
EMU_ATOMIC(atomicOr, unsigned, 5)
EMU_ATOMIC(atomicAnd, int, 6)
EMU_ATOMIC(atomicAnd, unsigned, 6)
EMU_ATOMIC(atomicExch, int, 7)
EMU_ATOMIC(atomicExch, unsigned, 7)
#undef EMU_ATOMIC
__forceinline__ unsigned atomicCAS(unsigned* at, unsigned expected, unsigned x) {
    return emu_atomic(8, at, x, expected);
}

// ---- what tritter.cuh asks for -------------------------------------------------------

extern "C" {
void emu_cp_async(void* to, const void* from, unsigned bytes, unsigned take);
void emu_cp_async_commit();
void emu_cp_async_wait(unsigned under_way);
void emu_ldmatrix(unsigned* to, unsigned count, const void* row, unsigned transposed);
void emu_mma16_f32(float* d, const float* a, const float* b);
void emu_mma32_s32(int* d, const unsigned* a, const unsigned* b);
}

__forceinline__ void emu_copy_async(void* to, const void* from, unsigned bytes, bool take) {
    emu_cp_async(to, from, bytes, take);
}
__forceinline__ void emu_copy_async_commit() { emu_cp_async_commit(); }
__forceinline__ void emu_copy_async_wait(unsigned under_way) { emu_cp_async_wait(under_way); }

template <unsigned N>
__forceinline__ void emu_load_matrix(unsigned (&a)[N], unsigned count, const void* row, bool transposed) {
    emu_ldmatrix(a, count, row, transposed);
}

template <typename ToFloat>
__forceinline__ void emu_mma16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], ToFloat to_float) {
    float wide_a[8], wide_b[4];
    for (int i = 0; i < 8; i++) wide_a[i] = to_float((unsigned short)(a[i / 2] >> (i % 2 * 16)));
    for (int i = 0; i < 4; i++) wide_b[i] = to_float((unsigned short)(b[i / 2] >> (i % 2 * 16)));
    emu_mma16_f32(d, wide_a, wide_b);
}

__forceinline__ void emu_mma32(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emu_mma32_s32(d, a, b);
}

// ---- how Rust starts a kernel --------------------------------------------------------

struct EmuEntry {
    const char* name;
    void (*thunk)(void** arguments);
    unsigned bound;   // threads that __launch_bounds__ allows
    unsigned params;  // bytes of the first argument
    unsigned pointers;
};

template <auto kernel>
struct EmuThunk;

template <typename Params, typename... Pointer, void (*kernel)(Params, Pointer*...)>
struct EmuThunk<kernel> {
    static const unsigned params = sizeof(Params);
    static const unsigned pointers = sizeof...(Pointer);

    template <unsigned... I>
    struct Indices {};
    template <unsigned N, unsigned... I>
    struct Count : Count<N - 1, N - 1, I...> {};
    template <unsigned... I>
    struct Count<0, I...> {
        typedef Indices<I...> type;
    };

    template <unsigned... I>
    __attribute__((no_sanitize("thread", "undefined"))) static void spread(void** arguments, Indices<I...>) {
        kernel(*(Params*)arguments[0], *(Pointer**)arguments[1 + I]...);
    }
    __attribute__((no_sanitize("thread", "undefined"))) static void call(void** arguments) {
        spread(arguments, typename Count<sizeof...(Pointer)>::type());
    }
};

constexpr unsigned emu_bound(unsigned threads = 1024, unsigned = 0) {
    return threads;
}

extern "C" __attribute__((visibility("default"), no_sanitize("thread", "undefined"))) unsigned char* emu_dynamic() {
    return smem;
}

#define EMU_ENTRY(name, ...) \
    { #name, EmuThunk<&name>::call, emu_bound(__VA_ARGS__), EmuThunk<&name>::params, EmuThunk<&name>::pointers }
