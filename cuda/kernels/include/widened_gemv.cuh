// Few rows of x by weights that are widened (widened.cuh): the time is that of reading w once.
//
// Eight threads share a row of w, so that a warp has four rows and reads of x, which lies in shared memory,
// serve all of them. A block goes through rows of w with its x; a thread reads its next chunks of w before
// it multiplies those that it has.
#pragma once
#include "widened.cuh"

#define GEMV_THREADS 256u
#define GEMV_LANES 8u
// Rows of w of a block.
#define GEMV_ROWS (GEMV_THREADS / GEMV_LANES)

// Chunks of a row, and the scales of their blocks.
template <typename Codec>
struct Chunks {
    static constexpr u32 BLOCKS = Codec::CHUNK / 16;
    uint4 w[Codec::BATCH][Codec::VECTORS];
    float scale[Codec::BATCH][BLOCKS];

    // Chunks first, first + GEMV_LANES, ... of a row; those past its end repeat the last one, they meet zeros.
    __device__ __forceinline__ void
    read(const uint4* row, const f16* s, const Groups& groups, u32 first, u32 last, u32 last_block) {
#pragma unroll
        for (u32 b = 0; b < Codec::BATCH; b++) {
            u32 chunk = min(first + b * GEMV_LANES, last);
#pragma unroll
            for (u32 v = 0; v < Codec::VECTORS; v++) {
                w[b][v] = Codec::VECTORS == 1 ? load_once(row + chunk) : row[chunk * Codec::VECTORS + v];
            }
#pragma unroll
            for (u32 i = 0; i < BLOCKS; i++) {
                scale[b][i] = scale_of<Codec>(groups, s, min(chunk * BLOCKS + i, last_block));
            }
        }
    }
};

// Float4 of a token's x in shared memory for the four elements from 16 block + 4 j on: eight threads that
// read the same of their chunks read 128 bytes side by side.
template <typename Codec>
__device__ __forceinline__ u32 gemv_place(u32 block, u32 j) {
    const u32 BLOCKS = Codec::CHUNK / 16;
    u32 chunk = block / BLOCKS;
    return ((chunk / GEMV_LANES * BLOCKS + block % BLOCKS) * 4 + j) * GEMV_LANES + chunk % GEMV_LANES;
}

// Grid: blocks in x, shares of at most TOKENS rows of x in y. Rows of w are whole chunks. Dynamic
// shared memory: for each row of x, k rounded up to a step of GEMV_LANES * BATCH chunks, in floats.
template <typename Codec, u32 TOKENS>
__device__ __forceinline__ void
widened_gemv(const Widened& p, const float* __restrict__ x, const uint4* __restrict__ w, const f16* __restrict__ s,
             float* __restrict__ y) {
    extern __shared__ __align__(16) unsigned char smem[];
    const u32 STEP = GEMV_LANES * Codec::BATCH;
    u32 share = (p.m + gridDim.y - 1) / gridDim.y;
    u32 i0 = blockIdx.y * share;
    u32 tokens = TOKENS == 1 ? 1 : min(share, p.m - i0);
    u32 chunks = (p.k + Codec::CHUNK - 1) / Codec::CHUNK;
    u32 steps = (chunks + STEP - 1) / STEP;
    u32 stride = steps * STEP * (Codec::CHUNK / 4);
    u64 vectors = Codec::words(p.k) / 4;
    Groups groups(p.k, Codec::SCALED ? p.group : 16);
    u32 last_block = (p.k + 15) / 16 - 1;

    // Pairs of a set of rows and a step along k, in order; `next` is read ahead.
    u32 lane = threadIdx.x % GEMV_LANES;
    u32 sets = (p.n + GEMV_ROWS - 1) / GEMV_ROWS;
    Chunks<Codec> next;
    auto read = [&](u32 set, u32 step) {
        u32 j = min(set * GEMV_ROWS + threadIdx.x / GEMV_LANES, p.n - 1);
        next.read(w + j * vectors, s + (u64)j * groups.stride, groups, step * STEP + lane, chunks - 1, last_block);
    };
    u32 set = blockIdx.x;
    read(set, 0);

    float4* staged = (float4*)smem;
    bool wide = p.k % 4 == 0 && aligned16(x);
    for (u32 i = 0; i < tokens; i++) {
        const float* row = x + (u64)(i0 + i) * p.k;
        for (u32 c = threadIdx.x; c < stride; c += GEMV_THREADS) {
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (wide && 4 * c < p.k) {
                v = *(const float4*)(row + 4 * c);
            } else if (!wide) {
                v.x = 4 * c < p.k ? row[4 * c] : 0.0f;
                v.y = 4 * c + 1 < p.k ? row[4 * c + 1] : 0.0f;
                v.z = 4 * c + 2 < p.k ? row[4 * c + 2] : 0.0f;
                v.w = 4 * c + 3 < p.k ? row[4 * c + 3] : 0.0f;
            }
            staged[i * stride + gemv_place<Codec>(c / 4, c % 4)] = v;
        }
    }
    __syncthreads();

#pragma unroll 1
    for (; set < sets; set += gridDim.x) {
        float sum[TOKENS] = {};
#pragma unroll 1
        for (u32 step = 0; step < steps; step++) {
            Chunks<Codec> now = next;
            if (step + 1 < steps) {
                read(set, step + 1);
            } else if (set + gridDim.x < sets) {
                read(set + gridDim.x, 0);
            }
#pragma unroll
            for (u32 b = 0; b < Codec::BATCH; b++) {
#pragma unroll
                for (u32 i = 0; i < Chunks<Codec>::BLOCKS; i++) {
                    float v[16];
                    Codec::block(now.w[b], i, v);
                    const float4* xs =
                        staged + (((step * Codec::BATCH + b) * Chunks<Codec>::BLOCKS + i) * 4) * GEMV_LANES + lane;
#pragma unroll
                    for (u32 t = 0; t < TOKENS; t++) {
                        const float4* four = xs + min(t, tokens - 1) * stride;
                        float part = 0.0f;
#pragma unroll
                        for (u32 j = 0; j < 4; j++) {
                            float4 u = four[j * GEMV_LANES];
                            part += v[4 * j] * u.x;
                            part += v[4 * j + 1] * u.y;
                            part += v[4 * j + 2] * u.z;
                            part += v[4 * j + 3] * u.w;
                        }
                        sum[t] += part * now.scale[b][i];
                    }
                }
            }
        }
        u32 j = set * GEMV_ROWS + threadIdx.x / GEMV_LANES;
#pragma unroll
        for (u32 t = 0; t < TOKENS; t++) {
#pragma unroll
            for (u32 bit = GEMV_LANES / 2; bit > 0; bit /= 2) {
                float other = __shfl_xor_sync(FULL_MASK, sum[t], bit);
                sum[t] += other;
            }
            if (lane == t && t < tokens && j < p.n) {
                y[(u64)(i0 + t) * p.l + p.n0 + j] = sum[t];
            }
        }
    }
}
