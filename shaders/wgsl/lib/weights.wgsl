// Weights kept in few bits, as values in f32. WEIGHTS: 1 is f16, 2 bf16, 3 i8, 4 i6, 5 i4 (`dtype.rs` has the
// layouts). GROUPED: value = code * scale, a scale in f16 for every p.group columns of a row.
// The file that includes this declares p with k (and group), w and, if GROUPED, s, both array<u32>.
//!include "bf16"

fn half_value(word: u32, index: u32) -> f32 {
    return unpack2x16float(word)[index & 1u];
}

//!if GROUPED
fn scale_of(row: u32, d: u32) -> f32 {
    let groups = (p.k + p.group - 1u) / p.group;
    let group = d / p.group;
    return half_value(s[row * ((groups + 1u) / 2u) + group / 2u], group);
}

//!endif
// Codes or values at columns 4c..4c + 4 of a row; 0 past its padding.
//!if WEIGHTS <= 2
fn pair_of(row: u32, word: u32) -> vec2<f32> {
    let words = (p.k + 1u) / 2u;
    let both = select(0u, w[row * words + min(word, words - 1u)], word < words);
//!if WEIGHTS == 1
    return unpack2x16float(both);
//!else
    return vec2<f32>(bf16_value(both, 0u), bf16_value(both, 1u));
//!endif
}

fn four(row: u32, c: u32) -> vec4<f32> {
    return vec4<f32>(pair_of(row, 2u * c), pair_of(row, 2u * c + 1u));
}
//!endif
//!if WEIGHTS == 3
fn four(row: u32, c: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(w[row * 4u * ((p.k + 15u) / 16u) + c]));
}
//!endif
//!if WEIGHTS == 4
fn four(row: u32, c: u32) -> vec4<f32> {
    let first = 3u * (row * ((p.k + 15u) / 16u) + c / 4u);
    let low = vec4<u32>(w[first + c % 4u / 2u] >> (16u * (c % 2u))) >> vec4<u32>(0u, 4u, 8u, 12u);
    let high = vec4<u32>(w[first + 2u] >> (8u * (c % 4u))) >> vec4<u32>(0u, 2u, 4u, 6u);
    let codes = (low & vec4<u32>(15u)) | ((high & vec4<u32>(3u)) << vec4<u32>(4u));
    return vec4<f32>(codes) - 32.0;
}
//!endif
//!if WEIGHTS == 5
fn four(row: u32, c: u32) -> vec4<f32> {
    let word = w[row * ((p.k + 7u) / 8u) + c / 2u] >> (16u * (c % 2u));
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u)) - 8.0;
}
//!endif

// The value at column d < p.k of a row.
fn value(row: u32, d: u32) -> f32 {
//!if GROUPED
    return four(row, d / 4u)[d % 4u] * scale_of(row, d);
//!else
    return four(row, d / 4u)[d % 4u];
//!endif
}
