// Whole products through ldmatrix and mma, one warp, so that fragment layouts can be compared with
// plain loops.
#include "tritter.cuh"

struct Planted {
    u32 n;
};

// y[16,16] = a[16,16] b with b[16,16] row-major (p.n == 0) or column-major.
template <typename T>
__device__ __forceinline__ void product16(const Planted& p, const u32* a, const u32* b, float* y) {
    __shared__ __align__(16) u32 tile_a[128];
    __shared__ __align__(16) u32 tile_b[128];
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 128; i += 32) {
        tile_a[i] = a[i];
        tile_b[i] = b[i];
    }
    __syncthreads();
    // Matrices of a: rows 0-7, rows 8-15, each the left and then the right half.
    u32 fragment[4], columns[4];
    load_matrix4(fragment, tile_a + (lane % 8 + lane / 8 % 2 * 8) * 8 + lane / 16 * 4);
    u32 n[2][2];
    if (p.n == 0) {
        load_matrix4_transposed(columns, tile_b + (lane % 8 + lane / 8 % 2 * 8) * 8 + lane / 16 * 4);
    } else {
        load_matrix4(columns, tile_b + (lane % 8 + lane / 16 * 8) * 8 + lane / 8 % 2 * 4);
    }
    for (u32 i = 0; i < 4; i++) {
        n[i / 2][i % 2] = columns[i];
    }
    for (u32 half = 0; half < 2; half++) {
        float d[4] = {0.5f, 0.5f, 0.5f, 0.5f};
        mma16<T>(d, fragment, n[half]);
        u32 g = lane / 4, t = lane % 4;
        y[g * 16 + half * 8 + 2 * t] = d[0];
        y[g * 16 + half * 8 + 2 * t + 1] = d[1];
        y[(g + 8) * 16 + half * 8 + 2 * t] = d[2];
        y[(g + 8) * 16 + half * 8 + 2 * t + 1] = d[3];
    }
}

extern "C" __global__ void __launch_bounds__(32) product_bf16(Planted p, const u32* a, const u32* b, float* y) {
    product16<bf16>(p, a, b, y);
}

extern "C" __global__ void __launch_bounds__(32) product_f16(Planted p, const u32* a, const u32* b, float* y) {
    product16<f16>(p, a, b, y);
}

// y[16,16] = a[16,32] b of bytes with b[16,32] column-major.
extern "C" __global__ void __launch_bounds__(32) product_i8(Planted p, const u32* a, const u32* b, i32* y) {
    __shared__ __align__(16) u32 tile_a[128];
    __shared__ __align__(16) u32 tile_b[128];
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 128; i += 32) {
        tile_a[i] = a[i];
        tile_b[i] = b[i];
    }
    __syncthreads();
    u32 fragment[4], columns[4];
    load_matrix4(fragment, tile_a + (lane % 8 + lane / 8 % 2 * 8) * 8 + lane / 16 * 4);
    load_matrix4(columns, tile_b + (lane % 8 + lane / 16 * 8) * 8 + lane / 8 % 2 * 4);
    for (u32 half = 0; half < 2; half++) {
        u32 n[2] = {columns[half * 2], columns[half * 2 + 1]};
        i32 d[4] = {7, 7, 7, (i32)p.n};
        mma32(d, fragment, n);
        u32 g = lane / 4, t = lane % 4;
        y[g * 16 + half * 8 + 2 * t] = d[0];
        y[g * 16 + half * 8 + 2 * t + 1] = d[1];
        y[(g + 8) * 16 + half * 8 + 2 * t] = d[2];
        y[(g + 8) * 16 + half * 8 + 2 * t + 1] = d[3];
    }
}

// y = the bits of x as f16 and back, for every f16.
extern "C" __global__ void __launch_bounds__(256) halves(Planted p, const u32* x, u32* y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    f16 h;
    h.bits = (u16)(x[i] & 0xffffu);
    y[i] = to_f16(to_f32(h)).bits | (u32)to_f16(bits_f32(x[i])).bits << 16;
}
