// Tiles of dense products in f32, each product and sum an f32 FMA (see dense_tile.cuh).
//
// A thread computes 8 x 8 of C in two runs of four rows by two runs of four columns. For two steps along the depth
// it reads 128 bytes from shared memory for 128 FMA; the 4 x 8 threads of a warp read at most 128 different
// bytes at a time. A's values are held in registers, B's are read as they are needed, so that two blocks
// of 256 threads fit an SM.
#pragma once
#include "dense_tile.cuh"

template <bool A_DEPTH_MAJOR, bool B_DEPTH_MAJOR, u32 ROWS_, u32 COLS_, u32 STAGES, u32 WORD>
struct SimtTile {
    static constexpr u32 ROWS = ROWS_;
    static constexpr u32 COLS = COLS_;
    static constexpr u32 THREADS = (ROWS / 8) * (COLS / 8);
    typedef Panel<float, ROWS, A_DEPTH_MAJOR> PanelA;
    typedef Panel<float, COLS, B_DEPTH_MAJOR> PanelB;
    static constexpr u32 DEPTH = PanelA::DEPTH;
    static constexpr u32 STAGE = PanelA::BYTES + PanelB::BYTES;

    // Bytes from two steps along the depth to the next two.
    static constexpr u32 PAIR_A = A_DEPTH_MAJOR ? 8 : 2 * PanelA::LINE;
    static constexpr u32 PAIR_B = B_DEPTH_MAJOR ? 8 : 2 * PanelB::LINE;

    float sum[8][8];

    // A thread's place among ROWS / 8 and COLS / 8 threads.
    static __device__ __forceinline__ u32 thread_row() {
        return threadIdx.x / WARP / (COLS / 64) * 4 + threadIdx.x % WARP / 8;
    }

    static __device__ __forceinline__ u32 thread_col() {
        return threadIdx.x / WARP % (COLS / 64) * 8 + threadIdx.x % 8;
    }

    // Where a thread's part of a panel begins. Index in the span of the i-th of its eight rows or columns:
    // at * 4 + i % 4 + i / 4 * SPAN / 2.
    template <typename P>
    static __device__ __forceinline__ u32 place(u32 at) {
        return P::DEPTH_MAJOR ? P::at(at, 0) : P::at(0, at);
    }

    // Reads the i-th at two steps along the depth.
    template <typename P>
    static __device__ __forceinline__ float2 along_depth(const unsigned char* part, u32 i) {
        // See Panel::span_of.
        return *(const float2*)(part + (i / 4 * (P::LINES / 8) + i % 4 * (P::LINES / 4)) * P::LINE);
    }

    // Reads a run of four of the span at one step along the depth.
    template <typename P>
    static __device__ __forceinline__ float4 along_span(const unsigned char* part, u32 run, u32 depth) {
        return *(const float4*)(part + depth * P::LINE + run * (P::CHUNKS / 2) * 16);
    }

    // Adds the products of two steps along the depth.
    __device__ __forceinline__ void multiply(const unsigned char* part_a, const unsigned char* part_b) {
        float a[2][8];
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (A_DEPTH_MAJOR) {
                float2 v = along_depth<PanelA>(part_a, i);
                a[0][i] = v.x, a[1][i] = v.y;
            } else if (i % 4 == 0) {
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    float4 v = along_span<PanelA>(part_a, i / 4, e);
                    a[e][i] = v.x, a[e][i + 1] = v.y, a[e][i + 2] = v.z, a[e][i + 3] = v.w;
                }
            }
        }
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            if (B_DEPTH_MAJOR) {
                float2 b = along_depth<PanelB>(part_b, j);
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    sum[i][j] += a[0][i] * b.x;
                }
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    sum[i][j] += a[1][i] * b.y;
                }
            } else if (j < 4) {
                float4 v = along_span<PanelB>(part_b, j % 2, j / 2);
                float b[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (u32 e = 0; e < 32; e++) {
                    sum[e % 8][j % 2 * 4 + e / 8] += a[j / 2][e % 8] * b[e / 8];
                }
            }
        }
    }

    // Sums over the depth from `begin` (a multiple of DEPTH) to `end` for the tile at (row, col).
    __device__ __forceinline__ void
    run(const Factor<float>& factor_a, const Factor<float>& factor_b, u32 row, u32 col, u32 begin, u32 end) {
        extern __shared__ __align__(16) unsigned char smem[];
#pragma unroll
        for (u32 i = 0; i < 64; i++) {
            sum[i / 8][i % 8] = 0.0f;
        }
        Feed<PanelA, THREADS, WORD> feed_a(factor_a, row, begin, end);
        Feed<PanelB, THREADS, WORD> feed_b(factor_b, col, begin, end);
#pragma unroll
        for (u32 stage = 0; stage < STAGES - 1; stage++) {
            feed_a.next(smem + stage * STAGE);
            feed_b.next(smem + stage * STAGE + PanelA::BYTES);
            copy_async_commit();
        }
        u32 present = 0;
        u32 ahead = (STAGES - 1) * STAGE;
        for (u32 depth = begin; depth < end; depth += DEPTH) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();
            // All threads have left the stage before the present one: it is filled next.
            feed_a.next(smem + ahead);
            feed_b.next(smem + ahead + PanelA::BYTES);
            copy_async_commit();
            const unsigned char* part_a = smem + present + place<PanelA>(thread_row());
            const unsigned char* part_b = smem + present + PanelA::BYTES + place<PanelB>(thread_col());
            // Unrolled, the compiler would load ahead until registers spill.
#pragma unroll 1
            for (u32 pair = 0; pair < DEPTH / 2; pair++) {
                multiply(part_a + pair * PAIR_A, part_b + pair * PAIR_B);
            }
            ahead = present;
            present = present + STAGE < STAGES * STAGE ? present + STAGE : 0;
        }
        copy_async_wait<0>();
    }

    // Gives the sums as (row, col, four neighbouring columns) relative to the tile.
    template <typename Function>
    __device__ __forceinline__ void each4(const Function& give) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 row = thread_row() * 4 + i % 4 + i / 4 * (ROWS / 2);
#pragma unroll
            for (u32 run = 0; run < 2; run++) {
                float v[4] = {sum[i][run * 4], sum[i][run * 4 + 1], sum[i][run * 4 + 2], sum[i][run * 4 + 3]};
                give(row, thread_col() * 4 + run * (COLS / 2), v);
            }
        }
    }
};

// The tiles in use; threads and bytes of shared memory stand in runtime/src/ops/matmul_cuda.rs as well.
template <bool A, bool B>
using Simt128 = SimtTile<A, B, 128, 128, 2, 16>;
template <bool A, bool B>
using Simt64 = SimtTile<A, B, 64, 64, 2, 16>;
// Rows that are no multiples of 16 bytes: 4-byte copies.
template <bool A, bool B>
using SimtRagged = SimtTile<A, B, 64, 64, 2, 4>;
