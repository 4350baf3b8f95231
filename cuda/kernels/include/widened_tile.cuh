// Many rows of x by weights that are widened (widened.cuh), in f32: tiles of 128 x 128 of y, 8 x 8 a thread.
//
// x and w, scaled, lie in shared memory along k in steps of 16, two steps in turn: while one is multiplied the
// next waits in registers. Any size and address.
#pragma once
#include "widened.cuh"

#define TILE_SIDE 128u
#define TILE_DEPTH 16u
// Floats from one step along k to the next; 4 unused ones spread the stores of a row over the banks.
#define TILE_LINE (TILE_SIDE + 4u)
#define WIDENED_THREADS 256u

// Eight elements from e on of a row of k, zeros past its end.
__device__ __forceinline__ void eight_floats(const float* row, u32 e, u32 k, bool wide, float (&v)[8]) {
    if (wide && e + 8 <= k) {
        float4 a = *(const float4*)(row + e), b = *(const float4*)(row + e + 4);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            v[i] = e + i < k ? row[e + i] : 0.0f;
        }
    }
}

// Grid: tiles, those of the same rows of w side by side.
template <typename Codec>
__device__ __forceinline__ void
widened_tile(const Widened& p, const float* __restrict__ x, const u32* __restrict__ w, const f16* __restrict__ s,
             float* __restrict__ y) {
    __shared__ __align__(16) float x_tile[2][TILE_DEPTH * TILE_LINE];
    __shared__ __align__(16) float w_tile[2][TILE_DEPTH * TILE_LINE];
    u32 down = (p.m + TILE_SIDE - 1) / TILE_SIDE;
    u32 i0 = blockIdx.x % down * TILE_SIDE, j0 = blockIdx.x / down * TILE_SIDE;
    Groups groups(p.k, Codec::SCALED ? p.group : 16);
    u32 words = Codec::words(p.k);
    bool wide = p.k % 4 == 0 && aligned16(x);

    // This thread brings eight elements of a row of x and of w. Rows past the end repeat the last one.
    u32 line = threadIdx.x / 2, half = threadIdx.x % 2 * 8;
    const float* x_row = x + (u64)min(i0 + line, p.m - 1) * p.k;
    u32 j = min(j0 + line, p.n - 1);
    const u32* w_row = w + (u64)j * words;
    const f16* s_row = s + (u64)j * groups.stride;
    float a[8], b[8];
    auto fetch = [&](u32 k0) {
        eight_floats(x_row, k0 + half, p.k, wide, a);
        bool inside = k0 + half < p.k;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            b[i] = 0.0f;
        }
        if (inside) {
            Codec::eight(w_row, k0 + half, words, b);
            float scale = scale_of<Codec>(groups, s_row, k0 / 16);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                b[i] *= scale;
            }
        }
    };
    auto put = [&](u32 side) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            x_tile[side][(half + i) * TILE_LINE + line] = a[i];
            w_tile[side][(half + i) * TILE_LINE + line] = b[i];
        }
    };

    // Rows and columns of this thread: two runs of four, 64 apart.
    u32 row = threadIdx.x / 16 * 4, col = threadIdx.x % 16 * 4;
    float sum[8][8] = {};
    fetch(0);
    put(0);
    __syncthreads();
    u32 side = 0;
#pragma unroll 1
    for (u32 k0 = 0; k0 < p.k; k0 += TILE_DEPTH) {
        bool more = k0 + TILE_DEPTH < p.k;
        if (more) {
            fetch(k0 + TILE_DEPTH);
        }
#pragma unroll 1
        for (u32 d = 0; d < TILE_DEPTH; d++) {
            float4 u[2], v[2];
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u[h] = *(const float4*)&x_tile[side][d * TILE_LINE + row + 64 * h];
                v[h] = *(const float4*)&w_tile[side][d * TILE_LINE + col + 64 * h];
            }
            float left[8] = {u[0].x, u[0].y, u[0].z, u[0].w, u[1].x, u[1].y, u[1].z, u[1].w};
            float right[8] = {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
#pragma unroll
            for (u32 e = 0; e < 64; e++) {
                sum[e / 8][e % 8] += left[e / 8] * right[e % 8];
            }
        }
        // The other side was last read before the barrier of the step before.
        side ^= 1;
        if (more) {
            put(side);
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 e = 0; e < 64; e++) {
        u32 i = i0 + row + e / 8 % 4 + e / 32 * 64, c = j0 + col + e % 4 + e % 8 / 4 * 64;
        if (i < p.m && c < p.n) {
            y[(u64)i * p.l + p.n0 + c] = sum[e / 8][e % 8];
        }
    }
}
