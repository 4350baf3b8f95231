// bf16 as bits: the upper half of an f32, two in a word, low half first.

// Element of a word: the low half for an even index, the high half for an odd one.
fn bf16_value(word: u32, index: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (index & 1u) == 1u));
}

// The bits of an f32 to those of the nearest bf16, halves to even; a NaN stays one.
fn bf16_bits(v: u32) -> u32 {
    if (v & 0x7fffffffu) > 0x7f800000u {
        return (v | 0x400000u) >> 16u;
    }
    return (v + 0x7fffu + ((v >> 16u) & 1u)) >> 16u;
}

// A word of two; the second is padding, 0, unless there is one.
fn bf16_pair(a: f32, b: f32, two: bool) -> u32 {
    return bf16_bits(bitcast<u32>(a)) | select(0u, bf16_bits(bitcast<u32>(b)) << 16u, two);
}
