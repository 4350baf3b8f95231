// The block that holds a page's keys and values of one head as codes (KIVI, Liu et al. 2024), as in
// runtime/src/ops/paged/codes.rs: codes of the keys (rows of tokens, lowest bits first), their parameters by channel,
// codes of the values, their parameters by token and group of `page` channels; each section is whole groups of 4
// words. A parameter is a scale and a zero: two f16 in a word, the scale below, or two words of f32 where the format
// is precise. value = code * scale + zero.
#pragma once
#include "tritter.cuh"

struct KvBlock {
    u32 page, d, bits;
    bool precise;
    u32 row, groups;                         // Words of a token's codes, groups of channels of a value.
    u32 key_parameters, values, value_parameters, words;  // First words of the sections, and of the next block.

    template <typename P>
    __device__ __forceinline__ KvBlock(const P& p)
        : page(p.page), d(p.d), bits(p.bits), precise(p.precise != 0), row((p.d * p.bits + 31) / 32),
          groups((p.d + p.page - 1) / p.page) {
        u32 entry = precise ? 2 : 1;
        key_parameters = page * row;
        values = key_parameters + (d + 3) / 4 * 4 * entry;
        value_parameters = values + page * row;
        words = value_parameters + page * groups * entry;
    }

    // Scale (x) and zero (y) of entry i of a section of parameters.
    __device__ __forceinline__ float2 parameter(const u32* section, u32 i) const {
        if (precise) {
            return make_float2(bits_f32(section[2 * i]), bits_f32(section[2 * i + 1]));
        }
        f16 scale, zero;
        scale.bits = (u16)section[i];
        zero.bits = (u16)(section[i] >> 16);
        return make_float2(to_f32(scale), to_f32(zero));
    }
};
