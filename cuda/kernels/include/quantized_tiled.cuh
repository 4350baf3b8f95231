// Keys and values in codes as a source of tiles (attention_tiled.cuh): words of codes wait in registers and become
// f32 where the tile is stored.
#pragma once
#include "attention_tiled.cuh"
#include "kv_block.cuh"
#include "paged.cuh"

template <u32 D, u32 BK, u32 THREADS>
struct CodeSource {
    static const u32 ROWS = BK * LANES / THREADS;
    static const u32 CHUNKS = D / (4 * LANES);
    const KvBlock& block;
    const Pages& pages;
    const u32* codes;
    u32 g, kv;
    u32 side, first;
    u32 words[ROWS][CHUNKS];
    const u32* from[ROWS];  // The block of a row's page, or null.

    __device__ __forceinline__ CodeSource(const KvBlock& block, const Pages& pages, const u32* codes, u32 g, u32 kv)
        : block(block), pages(pages), codes(codes), g(g), kv(kv), side(0), first(0) {}

    __device__ __forceinline__ u32 row(u32 i) const {
        return threadIdx.x / LANES + i * (THREADS / LANES);
    }

    __device__ __forceinline__ u32 column(u32 n) const {
        return (threadIdx.x % LANES + n * LANES) * 4;
    }

    template <typename Take>
    __device__ __forceinline__ void start(float*, u32 of, u32 key, Take take) {
        side = of;
        first = key;
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            u32 at = key + row(i);
            bool some = take(row(i));
            from[i] = some ? codes + ((u64)pages.of(at) * g + kv) * block.words : (const u32*)nullptr;
            u32 token = (side == 0 ? 0 : block.values) + (at & pages.mask) * block.row;
#pragma unroll
            for (u32 n = 0; n < CHUNKS; n++) {
                u32 c = column(n);
                words[i][n] = some && c < block.d ? from[i][token + c * block.bits / 32] : 0;
            }
        }
    }

    __device__ __forceinline__ void finish(float* tile) const {
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            u32 token = (first + row(i)) & pages.mask;
#pragma unroll
            for (u32 n = 0; n < CHUNKS; n++) {
                u32 c = column(n);
                if (c < block.d) {
                    float x[4];
                    u32 word = words[i][n] >> (c * block.bits % 32);
                    float2 value = make_float2(0.0f, 0.0f);
                    if (from[i] && side == 1) {
                        u32 group = c >> (31 - __clz(block.page));
                        value = block.parameter(from[i] + block.value_parameters, token * block.groups + group);
                    }
#pragma unroll
                    for (u32 l = 0; l < 4; l++) {
                        float2 of = value;
                        if (from[i] && side == 0) {
                            of = block.parameter(from[i] + block.key_parameters, c + l);
                        }
                        u32 code = word >> (l * block.bits) & ((1u << block.bits) - 1);
                        x[l] = (float)code * of.x + of.y;
                    }
                    *(float4*)(tile + row(i) * (D + 4) + c) = make_float4(x[0], x[1], x[2], x[3]);
                }
            }
        }
    }
};
