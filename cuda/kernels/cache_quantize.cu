// Turns whole pages of tokens in a ring into codes (include/kv_block.cuh): groups[i] is the ring's row of a page's
// first token and the page of the pool; one past the pool is none. ring[t,2gd] has g key heads of d elements and then
// g value heads in a row.
//
// min and max over the group in f32, scale = (max - min) / (2^bits - 1), both rounded to f16 unless the format is
// precise; code = (x - zero) / scale, rounded half to even. Keys: groups of a channel's tokens. Values: of a token's
// channels, as many as a page has tokens.
//
// Most launches of a decode step have nothing to do: a block first looks at its group. Grid: pieces of a page,
// heads, groups. A warp takes 32 neighbouring words of keys (of which each thread has the same word of every token)
// or one group of a value after the other; the block that y = 0 .. keys' pieces - 1 are for keys.
#include "kv_block.cuh"

struct CacheQuantize {
    u32 n, g, d, page, t, p, bits, precise;
};

struct Fit {
    float scale, zero, most;
    u32 stored[2];

    __device__ __forceinline__ Fit(const KvBlock& block, float low, float high) : most((float)((1u << block.bits) - 1)) {
        scale = (high - low) / most;
        zero = low;
        if (block.precise) {
            stored[0] = f32_bits(scale);
            stored[1] = f32_bits(zero);
        } else {
            f16 s = to_f16(fminf(fmaxf(scale, -65504.0f), 65504.0f));
            f16 z = to_f16(fminf(fmaxf(zero, -65504.0f), 65504.0f));
            scale = to_f32(s);
            zero = to_f32(z);
            stored[0] = (u32)s.bits | (u32)z.bits << 16;
        }
    }

    __device__ __forceinline__ u32 code(float x) const {
        float at = scale == 0.0f ? 0.0f : rintf((x - zero) / scale);
        return (u32)fminf(fmaxf(at, 0.0f), most);
    }

    __device__ __forceinline__ void store(const KvBlock& block, u32* section, u32 i) const {
        if (block.precise) {
            section[2 * i] = stored[0];
            section[2 * i + 1] = stored[1];
        } else {
            section[i] = stored[0];
        }
    }
};

// Extremes over the threads of a part of a warp, `lanes` a power of two.
__device__ __forceinline__ void extremes(u32 lanes, float& low, float& high) {
    for (u32 bit = lanes / 2; bit > 0; bit /= 2) {
        float other = __shfl_xor_sync(FULL_MASK, low, bit);
        low = fminf(low, other);
        other = __shfl_xor_sync(FULL_MASK, high, bit);
        high = fmaxf(high, other);
    }
}

// The codes of a word from those of its channels, one a thread of `lanes` neighbours; each of them gets it.
__device__ __forceinline__ u32 gather_word(u32 lanes, u32 bits, u32 code) {
    u32 word = code << threadIdx.x % lanes * bits;
    for (u32 bit = lanes / 2; bit > 0; bit /= 2) {
        u32 other = __shfl_xor_sync(FULL_MASK, word, bit);
        word |= other;
    }
    return word;
}

extern "C" __global__ void __launch_bounds__(128)
    cache_quantize(CacheQuantize p, const float* __restrict__ ring, const u32* __restrict__ groups, u32* __restrict__ codes) {
    u32 row = groups[2 * blockIdx.z];
    u32 page = groups[2 * blockIdx.z + 1];
    if (page >= p.p || row > p.t || p.t - row < p.page) {
        return;
    }
    KvBlock block(p);
    u32 lane = threadIdx.x % WARP;
    u32 in_word = 32 / p.bits;
    u32 width = 2 * p.g * p.d;
    const float* from = ring + (u64)row * width + blockIdx.y * p.d;
    u32* to = codes + ((u64)page * p.g + blockIdx.y) * block.words;
    u32 columns = (p.d + WARP - 1) / WARP;  // Of 32 channels.
    u32 unit = blockIdx.x * 4 + threadIdx.x / WARP;
    u32 tokens = p.page / 8;
    if (unit < columns) {
        // Keys: 32 channels of all tokens.
        u32 c = unit * WARP + lane;
        bool inside = c < p.d;
        const float* x = from + (inside ? c : 0);
        float low = x[0];
        float high = low;
#pragma unroll 8
        for (u32 t = 1; t < p.page; t++) {
            low = fminf(low, x[(u64)t * width]);
            high = fmaxf(high, x[(u64)t * width]);
        }
        Fit fit(block, low, high);
        if (inside) {
            fit.store(block, to + block.key_parameters, c);
        } else if (c < (p.d + 3) / 4 * 4) {
            u32* pad = to + block.key_parameters + c * (block.precise ? 2 : 1);
            pad[0] = 0;
            pad[block.precise ? 1 : 0] = 0;
        }
#pragma unroll 4
        for (u32 t = 0; t < p.page; t++) {
            u32 word = gather_word(in_word, p.bits, inside ? fit.code(x[(u64)t * width]) : 0);
            if (lane % in_word == 0 && c / in_word < block.row) {
                to[t * block.row + c / in_word] = word;
            }
        }
    } else if (unit < columns + tokens) {
        // Values: 8 tokens, a warp one after the other.
        from += p.g * p.d;
        for (u32 t = (unit - columns) * 8; t < (unit - columns + 1) * 8; t++) {
            const float* x = from + (u64)t * width;
            for (u32 group = 0; group < block.groups; group++) {
                float v[4];
                float low = x[group * p.page];
                float high = low;
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 c = group * p.page + i * WARP + lane;
                    bool inside = i * WARP < p.page && c < p.d;
                    v[i] = x[inside ? c : group * p.page];
                    low = fminf(low, v[i]);
                    high = fmaxf(high, v[i]);
                }
                extremes(WARP, low, high);
                Fit fit(block, low, high);
                if (lane == 0) {
                    fit.store(block, to + block.value_parameters, t * block.groups + group);
                }
                for (u32 i = 0; i < p.page / WARP; i++) {
                    u32 c = group * p.page + i * WARP + lane;
                    float mine = i == 0 ? v[0] : i == 1 ? v[1] : i == 2 ? v[2] : v[3];
                    u32 word = gather_word(in_word, p.bits, c < p.d ? fit.code(mine) : 0);
                    if (lane % in_word == 0 && c / in_word < block.row) {
                        to[block.values + t * block.row + c / in_word] = word;
                    }
                }
            }
        }
    }
}
