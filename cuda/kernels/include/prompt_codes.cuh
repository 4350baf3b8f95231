// A prompt's tiles of codes for tensor cores (prompt_mma.cuh), 64 tokens each, of one page or of two. Words of codes
// are copied asynchronously and become f16 where the tile is stored: a code is set into the fraction of 1024, where it
// counts 1 to 64, and one `fma` of two f16 leaves it whole. So no code is a number below f16's least ones.
//
// Scores: sum_c q_c (code_c scale_c + zero_c) = sum_c (q_c scale_c) code_c + sum_c q_c zero_c: queries times scales
// are made and split on the way to their product. Values: sum_t w_t (code_tc scale_t + zero_t) = sum_t (w_t scale_t)
// code_tc + sum_t w_t zero_t for every group of channels that share scales.
#pragma once
#include "kv_block.cuh"
#include "prompt_mma.cuh"

// Pair i of the codes in a word as two f16, in order.
template <u32 BITS>
__device__ __forceinline__ u32 code_pair(u32 word, u32 i) {
    if constexpr (BITS == 8) {
        return fma_f16(__byte_perm(word, 0x64646464u, i == 0 ? 0x4140 : 0x4342), 0x3c003c00u, 0xe400e400u);
    } else if constexpr (BITS == 4) {
        u32 both = __byte_perm(word, 0, 0x1111 * i) & 0x00f0000fu;
        return fma_f16(both | 0x64006400u, 0x2c003c00u, 0xd400e400u);  // 1 - 1024, 1/16 - 64
    } else {
        u32 four = __byte_perm(word, 0, 0x1111 * (i / 2));
        return i % 2 == 0 ? fma_f16((four & 0x000c0003u) | 0x64006400u, 0x34003c00u, 0xdc00e400u)    // 1/4 - 256
                          : fma_f16((four & 0x00c00030u) | 0x64006400u, 0x24002c00u, 0xcc00d400u);  // 1/64 - 16
    }
}

template <u32 BITS, u32 D>
struct PromptCodes {
    static const u32 KEYS = PROMPT_TILE;
    static const u32 UNITS = D * BITS / 128;  // Of 16 bytes, of a token.
    static const u32 ITEMS = (PROMPT_TILE * UNITS + PROMPT_THREADS - 1) / PROMPT_THREADS;
    static const u32 ENTRIES = 2 * D / PROMPT_THREADS;  // Parameters for a thread, of either side.
    static const u32 WARPS = 2 * D / WARP;              // Parameters by 32.

    const KvBlock& block;
    const Pages& pages;
    const PagedSpans<PROMPT_ROWS>& spans;
    const u32* codes;
    u32 g, kv;
    float2* parameters[2];   // Scale and zero: [page of the tile][channel], and [group][token]. 2 D each.
    float (*largest)[WARPS]; // Of either side, the largest scale of each 32 parameters.
    uint4* words;            // What is under way: words of codes and parameters, which the thread that asked takes.
    uint2* entries;

    __device__ __forceinline__ PromptCodes(
        const KvBlock& block, const Pages& pages, const PagedSpans<PROMPT_ROWS>& spans, const u32* codes, u32 g, u32 kv,
        unsigned char* smem, float (*largest)[WARPS])
        : block(block), pages(pages), spans(spans), codes(codes), g(g), kv(kv), largest(largest) {
        parameters[0] = (float2*)smem;
        parameters[1] = parameters[0] + 2 * D;
        entries = (uint2*)(parameters[1] + 2 * D) + threadIdx.x;
        words = (uint4*)(parameters[1] + 4 * D) + threadIdx.x;
    }

    static __device__ __forceinline__ u32 begin(u32 key) {
        return key & ~(PROMPT_TILE - 1);
    }

    __device__ __forceinline__ bool two_pages() const {
        return block.page < PROMPT_TILE;
    }

    __device__ __forceinline__ const u32* block_of(u32 key) const {
        return codes + ((u64)pages.of(key) * g + kv) * block.words;
    }

    // Unit of 16 bytes number i of this thread: rows that are neighbours lie in different banks.
    static __device__ __forceinline__ void place(u32 i, u32& row, u32& unit) {
        u32 at = threadIdx.x + i * PROMPT_THREADS;
        row = at / (8 * UNITS) * 8 + at % 8;
        unit = at / 8 % UNITS;
    }

    // Entry i of a section of parameters; zeros if it is not wanted.
    __device__ __forceinline__ void copy_entry(uint2* to, const u32* section, u32 i, bool take) const {
        u32 at = block.precise ? 2 * i : i;
        copy_async4(&to->x, take ? section + at : codes, take);
        if (block.precise) {
            copy_async4(&to->y, take ? section + at + 1 : codes, take);
        }
    }

    __device__ __forceinline__ void start(u32 side, const Chunks<D>&, u32 key) const {
        u32 stop = spans.stop();
        u32 section = side == 0 ? 0 : block.values;
#pragma unroll 1
        for (u32 i = 0; i < ITEMS; i++) {
            u32 row, unit;
            place(i, row, unit);
            if (row < PROMPT_TILE) {
                bool take = key + row < stop;
                const u32* of = codes;
                if (take) {
                    of = block_of(key + row) + section + ((key + row) & pages.mask) * (D * BITS / 32) + 4 * unit;
                }
                copy_async16(words + i * PROMPT_THREADS, of, take);
            }
        }
        // Weights of tokens that nobody sees are 0, but their scales may be NaN.
        u32 token = key + threadIdx.x % PROMPT_TILE;
        bool seen = side == 1 && (spans.one_sees(key, key + KEYS) || spans.somebody_sees(token));
#pragma unroll
        for (u32 i = 0; i < ENTRIES; i++) {
            u32 at = threadIdx.x + i * PROMPT_THREADS;
            uint2* to = entries + i * PROMPT_THREADS;
            if (side == 0) {
                u32 half = key + at / D * block.page;
                bool take = (at < D || two_pages()) && half < stop;
                copy_entry(to, take ? block_of(half) + block.key_parameters : codes, at % D, take);
            } else {
                bool take = seen && at / PROMPT_TILE < block.groups;
                const u32* of = take ? block_of(token) + block.value_parameters : codes;
                copy_entry(to, of, (token & pages.mask) * block.groups + at / PROMPT_TILE, take);
            }
        }
        copy_async_commit();
    }

    __device__ __forceinline__ void finish(u32 side, const Chunks<D>& tile) const {
        const u32 CHUNKS = 16 / BITS;  // Of 8 channels, of a unit.
        copy_async_wait<0>();
#pragma unroll
        for (u32 i = 0; i < ITEMS; i++) {
            u32 row, unit;
            place(i, row, unit);
            if (row < PROMPT_TILE) {
                uint4 some = words[i * PROMPT_THREADS];
                const u32 in[4] = {some.x, some.y, some.z, some.w};
#pragma unroll
                for (u32 c = 0; c < CHUNKS; c++) {
                    u32 pairs[4];
#pragma unroll
                    for (u32 n = 0; n < 4; n++) {
                        u32 pair = 4 * c + n;
                        pairs[n] = code_pair<BITS>(in[pair * BITS / 16], pair % (16 / BITS));
                    }
                    *(uint4*)tile.at(row, unit * CHUNKS + c) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < ENTRIES; i++) {
            u32 at = threadIdx.x + i * PROMPT_THREADS;
            const uint2* from = entries + i * PROMPT_THREADS;
            float2 of;
            if (block.precise) {
                of = make_float2(bits_f32(from->x), bits_f32(from->y));
            } else {
                unpack(from->x, f16{}, of.x, of.y);
            }
            parameters[side][at] = of;
            float high = warp_reduce<Max>(fabsf(of.x));
            if (at % WARP == 0) {
                largest[side][at / WARP] = high;
            }
        }
    }

    // The exponent of the largest of N scales by 32, from `from` on.
    template <u32 N>
    __device__ __forceinline__ u32 lift(u32 side, u32 from) const {
        float high = 0.0f;
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            high = fmaxf(high, largest[side][from + i]);
        }
        return exponent(high);
    }

    // Step i of the queries times the scales of a page, and their products with its zeros.
    __device__ __forceinline__ void fold(
        const PromptQueries<D>& queries, u32 i, u32 half, float up, u32 (&upper)[4], u32 (&lower)[4],
        float (&offset)[2]) const {
        const float2* of = parameters[0] + half * D + 16 * i + threadIdx.x % 4 * 2;
        float4 low = *(const float4*)of;
        float4 high = *(const float4*)(of + 8);
        float4 x = queries.of(i, 0);
        float4 y = queries.of(i, 1);
        offset[0] += x.x * low.y + x.y * low.w + (y.x * high.y + y.y * high.w);
        offset[1] += x.z * low.y + x.w * low.w + (y.z * high.y + y.w * high.w);
        float a = low.x * up, b = low.z * up, c = high.x * up, d = high.z * up;
        split_f16(x.x * a, x.y * b, upper[0], lower[0]);
        split_f16(x.z * a, x.w * b, upper[1], lower[1]);
        split_f16(y.x * c, y.y * d, upper[2], lower[2]);
        split_f16(y.z * c, y.w * d, upper[3], lower[3]);
    }

    __device__ __forceinline__ void
    scores(float (&s)[PROMPT_TILE / 8][4], const PromptQueries<D>& queries, const Chunks<D>& keys) const {
        bool two = two_pages();
        u32 biased[2];
        biased[0] = lift<D / WARP>(0, 0);
        biased[1] = two ? lift<D / WARP>(0, D / WARP) : biased[0];
        float up[2] = {power(254 + QUERY_UP - biased[0]), power(254 + QUERY_UP - biased[1])};
        float offset[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
        clear_scores(s);
#pragma unroll 2
        for (u32 i = 0; i < D / 16; i++) {
            u32 upper[4], lower[4];
            fold(queries, i, 0, up[0], upper, lower, offset[0]);
            score_tiles(s, 0, keys, i, upper, lower);
            if (two) {
                fold(queries, i, 1, up[1], upper, lower, offset[1]);
            }
            score_tiles(s, 4, keys, i, upper, lower);
        }
#pragma unroll
        for (u32 page = 0; page < 2; page++) {
            float unit = power(biased[page] - QUERY_UP);
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                float from = reduce_quad<Sum>(two ? offset[page][half] : offset[0][half]) * queries.unit[half];
                float by = unit * queries.unit[half];
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
                    float* x = s[4 * page + n] + 2 * half;
                    x[0] = x[0] * by + from;
                    x[1] = x[1] * by + from;
                }
            }
        }
    }

    template <typename State>
    __device__ __forceinline__ void weigh(State& state, float (&s)[PROMPT_TILE / 8][4], const Chunks<D>& values) const {
        u32 biased = lift<WARPS>(1, 0);
        float up = power(254 - biased);
        float unit = power(biased);
        PromptWeights weights;
#pragma unroll
        for (u32 j = 0; j < D / 32; j++) {
            if ((j * 32 & (block.page - 1)) == 0) {
                const float2* of = parameters[1] + (j * 32 >> pages.shift) * PROMPT_TILE + threadIdx.x % 4 * 2;
                float zeros[2] = {0.0f, 0.0f};
#pragma unroll
                for (u32 k = 0; k < PROMPT_TILE / 16; k++) {
                    float4 low = *(const float4*)(of + 16 * k);
                    float4 high = *(const float4*)(of + 16 * k + 8);
                    const float(&x)[4] = s[2 * k];
                    const float(&y)[4] = s[2 * k + 1];
                    zeros[0] += x[0] * low.y + x[1] * low.w + (y[0] * high.y + y[1] * high.w);
                    zeros[1] += x[2] * low.y + x[3] * low.w + (y[2] * high.y + y[3] * high.w);
                    weights.set(k, x, y, make_float2(low.x * up, low.z * up), make_float2(high.x * up, high.z * up));
                }
                state.add_zeros(j, zeros);
            }
            state.add(4 * j, weights, values, unit);
        }
    }
};
