// Few rows of x: the time is that of reading w once.
//
// A block makes 16 columns of y for up to 8 rows of x, its warps share k. Each thread reads 16
// bytes, 64 codes, of two rows of w; the four threads of a quad hold 256 codes of a row, a *unit*.
// Shifting and masking a word gives four codes in four bytes, which as they are form a fragment of
// the tensor cores' left operand, 16 rows of w; x is the right one. The order along k is free, so
// x is brought into the order of the masked codes instead of codes into that of x: once a block,
// against once for each weight. With a single row of x 7/8 of a product are waste, and yet it takes
// less than integer dot products would: 4 instructions for 16 bytes of w instead of 16, and no sum
// over lanes. Codes 0..2 are multiplied as they are: sum t x = sum (t + 1) x - sum x.
#pragma once
#include "ternary.cuh"

// Codes of a row of w that a quad reads at a time, and the bytes of x that they meet.
#define UNIT 256u
// Units that a warp has under way.
#define AHEAD 2u
// Most threads of a block: 14 warps, of which two blocks fit with the registers that they take.
#define MATVEC_THREADS 448u

// 16 bytes, elements 0..15, to words of elements i, 4 + i, 8 + i, 12 + i for i = 0, 2, 1, 3, which meet
// `codes >> 2 * i & 0x03030303`.
__device__ __forceinline__ uint4 in_order_of_codes(uint4 x) {
    u32 low_a = __byte_perm(x.x, x.y, 0x5140), low_b = __byte_perm(x.z, x.w, 0x5140);
    u32 high_a = __byte_perm(x.x, x.y, 0x7362), high_b = __byte_perm(x.z, x.w, 0x7362);
    return make_uint4(__byte_perm(low_a, low_b, 0x5410), __byte_perm(high_a, high_b, 0x5410),
                      __byte_perm(low_a, low_b, 0x7632), __byte_perm(high_a, high_b, 0x7632));
}

__device__ __forceinline__ i32 sum16(uint4 x, i32 sum) {
    const u32 ONES = 0x01010101u;
    return dot4(x.x, ONES, dot4(x.y, ONES, dot4(x.z, ONES, dot4(x.w, ONES, sum))));
}

__device__ __forceinline__ i32 warp_sum(i32 x) {
#pragma unroll
    for (u32 stride = WARP / 2; stride > 0; stride /= 2) {
        i32 other = __shfl_xor_sync(FULL_MASK, x, stride);
        x += other;
    }
    return x;
}

// Where this thread reads w: its place in rows g and g + 8 of the block's 16.
struct Reader {
    const uint4* low_row;
    const uint4* high_row;
    u32 last;

    // Rows and places past the end repeat the last one: their results are dropped, or the x that
    // they meet is zero.
    __device__ __forceinline__ Reader(const TernaryMatmul& p, const uint4* w, u32 j) {
        u32 places = p.k / 64;
        low_row = w + (u64)(j < p.n ? j : p.n - 1) * places;
        high_row = w + (u64)(j + 8 < p.n ? j + 8 : p.n - 1) * places;
        last = places - 1;
    }

    __device__ __forceinline__ void read(u32 place, uint4& low, uint4& high) const {
        place = place < last ? place : last;
        low = load_once(low_row + place);
        high = load_once(high_row + place);
    }
};

// Adds 64 codes by 4 words of x for each thread. acc[0] takes codes 0 and 2 of each four, acc[1]
// four times codes 1 and 3, which saves their shift; it is divided at the end.
__device__ __forceinline__ void multiply(i32 (&acc)[2][4], u32 low, u32 high, uint4 x) {
    const u32 ONCE = 0x03030303u, FOURFOLD = 0x0c0c0c0cu;
    u32 a[4] = {low & ONCE, high & ONCE, low >> 4 & ONCE, high >> 4 & ONCE};
    u32 b[2] = {x.x, x.y};
    mma32(acc[0], a, b);
    u32 c[4] = {low & FOURFOLD, high & FOURFOLD, low >> 4 & FOURFOLD, high >> 4 & FOURFOLD};
    u32 d[2] = {x.z, x.w};
    mma32(acc[1], c, d);
}

// Brings min(tokens, BATCH) rows of x from row i0 on to shared memory in the order of the codes, with
// zeros up to `staged` vectors of 16, and this warp's part of each row's sum. Rows are read all at once.
template <u32 BATCH>
__device__ __forceinline__ void stage(
    const TernaryMatmul& p, const uint4* x, u32 i0, u32 tokens, u32 staged, unsigned char* rows, u32 stride,
    i32* x_sums) {
    u32 vectors = (p.k + 15) / 16;
    i32 sums[BATCH] = {};
    for (u32 c = threadIdx.x; c < staged; c += blockDim.x) {
        uint4 v[BATCH];
#pragma unroll
        for (u32 i = 0; i < BATCH; i++) {
            v[i] = make_uint4(0, 0, 0, 0);
            if (i < tokens && c < vectors) {
                v[i] = x[(u64)(i0 + i) * vectors + c];
            }
        }
        // Vector 4 t + j of a unit goes to place 4 j + t: a quad reads 64 bytes side by side.
        u32 place = (c & ~15u) + (c & 3) * 4 + (c / 4 & 3);
#pragma unroll
        for (u32 i = 0; i < BATCH; i++) {
            if (i < tokens) {
                sums[i] = sum16(v[i], sums[i]);
                *(uint4*)(rows + i * stride + place * 16) = in_order_of_codes(v[i]);
            }
        }
    }
    u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (u32 i = 0; i < BATCH; i++) {
        i32 sum = warp_sum(sums[i]);
        if (threadIdx.x % WARP == 0 && i < tokens) {
            x_sums[i * warps + warp] = sum;
        }
    }
}

// Rows of x are tokens. A block takes ceil(m / gridDim.y) of them, at most TOKENS. k is a multiple
// of 64. Dynamic shared memory, for each token: x (blockDim / 32 * units * 256 bytes) and 64 bytes,
// from each warp 16 results and a sum of x, and both scales.
template <typename T, u32 TOKENS>
__device__ __forceinline__ void ternary_matvec(
    const TernaryMatmul& p, const uint4* __restrict__ w, const float* __restrict__ ws, const uint4* __restrict__ x,
    const float* __restrict__ xs, T* __restrict__ y) {
    extern __shared__ __align__(16) unsigned char smem[];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    u32 g = lane / 4, t = lane % 4;
    u32 share = (p.m + gridDim.y - 1) / gridDim.y;
    u32 i0 = blockIdx.y * share;
    u32 tokens = TOKENS == 1 ? 1 : share < p.m - i0 ? share : p.m - i0;
    u32 j0 = blockIdx.x * 16;
    // A warp's share of k, in units: a multiple of AHEAD, with zeros of x past the end.
    u32 units = (p.k + UNIT * AHEAD * warps - 1) / (UNIT * AHEAD * warps) * AHEAD;
    u32 staged = warps * units * (UNIT / 16);
    // Odd multiples of 64 bytes: two tokens' rows lie in different banks.
    u32 stride = staged * 16 + 64;
    i32* partial = (i32*)(smem + share * stride);
    i32* x_sums = partial + share * warps * 16;
    float* scales = (float*)(x_sums + share * warps);

    // Weights do not wait for x.
    Reader reader(p, w, j0 + g);
    u32 at = warp * units * 4 + t;
    uint4 low[AHEAD], high[AHEAD];
#pragma unroll
    for (u32 u = 0; u < AHEAD; u++) {
        reader.read(at + u * 4, low[u], high[u]);
    }

    if (threadIdx.x < tokens) {
        copy_async4(scales + 2 * threadIdx.x, xs + i0 + threadIdx.x, true);
        copy_async4(scales + 2 * threadIdx.x + 1, ws, true);
    }
    copy_async_commit();
    const u32 BATCH = TOKENS < 4 ? TOKENS : 4;
#pragma unroll
    for (u32 i = 0; i < TOKENS; i += BATCH) {
        stage<BATCH>(p, x, i0 + i, i < tokens ? tokens - i : 0, staged, smem + i * stride, stride, x_sums + i * warps);
    }
    copy_async_wait<0>();
    __syncthreads();

    // Column g of the right operand is token g. Those that do not exist repeat the last one; their
    // results are dropped.
    u32 column = TOKENS == 1 ? 0 : g < tokens ? g : tokens - 1;
    const unsigned char* x_lane = smem + column * stride + warp * units * UNIT + t * 16;
    i32 acc[AHEAD][2][4] = {};
    for (u32 unit = 0; unit < units; unit += AHEAD) {
#pragma unroll
        for (u32 u = 0; u < AHEAD; u++) {
            const uint4* xv = (const uint4*)(x_lane + (unit + u) * UNIT);
            multiply(acc[u], low[u].x, high[u].x, xv[0]);
            multiply(acc[u], low[u].y, high[u].y, xv[4]);
            multiply(acc[u], low[u].z, high[u].z, xv[8]);
            multiply(acc[u], low[u].w, high[u].w, xv[12]);
            if (unit + u + AHEAD < units) {
                reader.read(at + (unit + u + AHEAD) * 4, low[u], high[u]);
            }
        }
    }

    // Sums over the warps. This thread has rows g and g + 8 of w with tokens 2t and 2t + 1.
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        i32 sum = 0;
        i32 fourfold = 0;
#pragma unroll
        for (u32 u = 0; u < AHEAD; u++) {
            sum += acc[u][0][i];
            fourfold += acc[u][1][i];
        }
        u32 token = 2 * t + i % 2;
        if (token < tokens) {
            partial[(token * warps + warp) * 16 + g + i / 2 * 8] = sum + fourfold / 4;
        }
    }
    __syncthreads();
    for (u32 o = threadIdx.x; o < tokens * 16; o += blockDim.x) {
        u32 token = o / 16;
        u32 j = j0 + o % 16;
        i32 sum = 0;
#pragma unroll 4
        for (u32 v = 0; v < warps; v++) {
            sum += partial[(token * warps + v) * 16 + o % 16] - x_sums[token * warps + v];
        }
        if (j < stored_columns<T>(p)) {
            float v = scaled(sum, row_scale(scales[2 * token], scales[2 * token + 1]));
            store_one(y + (u64)(i0 + token) * row_stride<T>(p.l) + p.n0 + j, j < p.n ? v : 0.0f);
        }
    }
}
