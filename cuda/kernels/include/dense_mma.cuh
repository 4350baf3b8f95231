// Tiles of dense products on tensor cores: 16-bit factors, f32 sums (see dense_tile.cuh).
//
// A warp computes WARP_ROWS x WARP_COLS of the tile with m16n8k16. With 64 x 64 a step of 16 along
// the depth reads 8 x 512 bytes of shared memory for 32 mma, so shared memory keeps up with the tensor
// cores of sm_80 and sm_90. Fragments are double-buffered in registers: those of the next 16 are
// loaded while the present ones are multiplied. One barrier for each step of 32: copies of the step
// that is STAGES - 1 ahead go to the stage that all warps have left before the last barrier.
#pragma once
#include "dense_tile.cuh"

// A warp's fragments of TILES x 16 of the span and 16 of the depth. LEFT: as operand A of the mma (a 16x16
// tile in fragment[tile]); else as operand B (two 16x8 tiles, words 0, 1 and 2, 3 of fragment[tile]).
template <typename P, bool LEFT, u32 TILES>
struct Fragments {
    // What the address of a matrix depends on beyond constants: on the slice of the depth where lines lie along
    // the span, on the tile where they lie along the depth.
    static constexpr u32 SLICES = P::DEPTH / 16;
    u32 offset[P::DEPTH_MAJOR ? SLICES : TILES];

    __device__ __forceinline__ Fragments(u32 first) {
        // Lanes 8i..8i+7 address matrix i of 8 x 8. Matrices 1 and 3 of A are those of the next 8 of the
        // span, matrices 1 and 3 of B those of the next 8 of the depth.
        u32 lane = threadIdx.x % WARP;
        u32 odd = lane / 8 % 2;
        u32 high = lane / 16;
        u32 span = LEFT ? odd : high;
        u32 depth = LEFT ? high : odd;
#pragma unroll
        for (u32 i = 0; i < (P::DEPTH_MAJOR ? SLICES : TILES); i++) {
            offset[i] = P::DEPTH_MAJOR ? P::at(first + span * 8 + lane % 8, i * 2 + depth)
                                       : P::at(depth * 8 + lane % 8, first / 8 + i * 2 + span);
        }
    }

    // Loads the fragments of one 16-deep slice of a panel.
    __device__ __forceinline__ void load(u32 (&fragment)[TILES][4], const unsigned char* panel, u32 slice) const {
#pragma unroll
        for (u32 i = 0; i < TILES; i++) {
            if (P::DEPTH_MAJOR) {
                load_matrix4(fragment[i], panel + offset[slice] + i * 16 * P::LINE);
            } else {
                load_matrix4_transposed(fragment[i], panel + offset[i] + slice * 16 * P::LINE);
            }
        }
    }
};

template <typename T, bool A_DEPTH_MAJOR, bool B_DEPTH_MAJOR, u32 ROWS_, u32 COLS_, u32 WARP_ROWS, u32 WARP_COLS,
    u32 STAGES, u32 WORD>
struct MmaTile {
    static constexpr u32 ROWS = ROWS_;
    static constexpr u32 COLS = COLS_;
    static constexpr u32 THREADS = (ROWS / WARP_ROWS) * (COLS / WARP_COLS) * WARP;
    static constexpr u32 M = WARP_ROWS / 16;
    static constexpr u32 N = WARP_COLS / 16;
    typedef Panel<T, ROWS, A_DEPTH_MAJOR> PanelA;
    typedef Panel<T, COLS, B_DEPTH_MAJOR> PanelB;
    static constexpr u32 DEPTH = PanelA::DEPTH;
    static constexpr u32 SLICES = DEPTH / 16;
    static constexpr u32 STAGE = PanelA::BYTES + PanelB::BYTES;

    float sum[M][2 * N][4];

    static __device__ __forceinline__ u32 warp_row() {
        return threadIdx.x / WARP / (COLS / WARP_COLS) * WARP_ROWS;
    }

    static __device__ __forceinline__ u32 warp_col() {
        return threadIdx.x / WARP % (COLS / WARP_COLS) * WARP_COLS;
    }

    __device__ __forceinline__ void multiply(const u32 (&a)[M][4], const u32 (&b)[N][4]) {
#pragma unroll
        for (u32 i = 0; i < M; i++) {
#pragma unroll
            for (u32 j = 0; j < 2 * N; j++) {
                u32 column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                mma16<T>(sum[i][j], a[i], column);
            }
        }
    }

    // Sums over the depth from `begin` (a multiple of DEPTH) to `end` for the tile at (row, col).
    __device__ __forceinline__ void
    run(const Factor<T>& factor_a, const Factor<T>& factor_b, u32 row, u32 col, u32 begin, u32 end) {
        extern __shared__ __align__(16) unsigned char smem[];
#pragma unroll
        for (u32 i = 0; i < M * 2 * N * 4; i++) {
            sum[i / (8 * N)][i / 4 % (2 * N)][i % 4] = 0.0f;
        }
        Feed<PanelA, THREADS, WORD> feed_a(factor_a, row, begin, end);
        Feed<PanelB, THREADS, WORD> feed_b(factor_b, col, begin, end);
        Fragments<PanelA, true, M> read_a(warp_row());
        Fragments<PanelB, false, N> read_b(warp_col());
#pragma unroll
        for (u32 stage = 0; stage < STAGES - 1; stage++) {
            feed_a.next(smem + stage * STAGE);
            feed_b.next(smem + stage * STAGE + PanelA::BYTES);
            copy_async_commit();
        }
        u32 a[2][M][4];
        u32 b[2][N][4];
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        read_a.load(a[0], smem, 0);
        read_b.load(b[0], smem + PanelA::BYTES, 0);
        u32 present = 0;                   // offset of the stage that is multiplied
        u32 ahead = (STAGES - 1) * STAGE;  // offset of the stage that is filled
        for (u32 depth = begin; depth < end; depth += DEPTH) {
#pragma unroll
            for (u32 slice = 0; slice < SLICES; slice++) {
                if (slice == SLICES - 1) {
                    // The next step's panels, zeros beyond the last, so that nothing here is conditional.
                    copy_async_wait<STAGES - 2>();
                    __syncthreads();
                    ahead = present;
                    present = present + STAGE < STAGES * STAGE ? present + STAGE : 0;
                }
                u32 next = (slice + 1) % SLICES;
                read_a.load(a[(slice + 1) % 2], smem + present, next);
                read_b.load(b[(slice + 1) % 2], smem + present + PanelA::BYTES, next);
                if (slice == 0) {
                    feed_a.next(smem + ahead);
                    feed_b.next(smem + ahead + PanelA::BYTES);
                    copy_async_commit();
                }
                multiply(a[slice % 2], b[slice % 2]);
            }
        }
        copy_async_wait<0>();
    }

    // Gives the sums as (row, col, four neighbouring columns) relative to the tile. A lane holds pairs of columns;
    // it swaps pairs with its neighbour so that each has four of one of two 8-column tiles.
    template <typename Function>
    __device__ __forceinline__ void each4(const Function& give) {
        u32 lane = threadIdx.x % WARP;
        bool odd = lane & 1;
        u32 row = warp_row() + lane / 4;
        u32 col = warp_col() + (odd ? 8 : 0) + lane % 4 / 2 * 4;
#pragma unroll
        for (u32 i = 0; i < 2 * M; i++) {
#pragma unroll
            for (u32 j = 0; j < N; j++) {
                const float* low = &sum[i / 2][2 * j][i % 2 * 2];
                const float* high = &sum[i / 2][2 * j + 1][i % 2 * 2];
                float other[2];
                other[0] = __shfl_xor_sync(FULL_MASK, odd ? low[0] : high[0], 1);
                other[1] = __shfl_xor_sync(FULL_MASK, odd ? low[1] : high[1], 1);
                float v[4] = {odd ? other[0] : low[0], odd ? other[1] : low[1], odd ? high[0] : other[0],
                    odd ? high[1] : other[1]};
                give(row + i * 8, col + j * 16, v);
            }
        }
    }
};

// The tiles in use. Block tile, warp tile and stages; what a block needs of shared memory and how many of
// them an SM of 100 KiB (sm_120) holds: 96 KiB, one; 48 KiB, two; 48 KiB, two. Threads and bytes stand in
// runtime/src/ops/matmul_cuda.rs as well.
template <typename T, bool A, bool B>
using Mma256 = MmaTile<T, A, B, 128, 256, 64, 64, 4, 16>;
template <typename T, bool A, bool B>
using Mma128 = MmaTile<T, A, B, 128, 128, 64, 64, 3, 16>;
template <typename T, bool A, bool B>
using Mma64 = MmaTile<T, A, B, 64, 128, 32, 64, 4, 16>;
// Rows that are no multiples of 16 bytes: 4-byte copies.
template <typename T, bool A, bool B>
using MmaRagged = MmaTile<T, A, B, 128, 128, 64, 64, 3, 4>;
