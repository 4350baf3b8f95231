//! Float blocks: rows of f32 to stored bytes and back.
//!
//! With `e` the element within a block (ggml `src/ggml-quants.c` at d99724f):
//!
//! | type | a block | value of element `e` |
//! |---|---|---|
//! | `Q8_0` | f16 `d`, 32 int8 `q` | `d·q_e` |
//! | `Q4_0` | f16 `d`, 16 bytes | `d·(n - 8)`, n the low (`e < 16`) or high half of byte `e%16` |
//! | `Q6_K` | 128 bytes low, 64 bytes high, 16 int8 `s`, f16 `d` | `d·s_(e/16)·(n - 32)`; with `h = e/128`, `r = e%128`: low half byte of byte `64h + r%64`, low or high by `r/64`; two bits above it from byte `32h + r%32` of the second part, bits `2·(r/32)` |
//!
//! Quantising chooses scales from the largest value of a block. For `Q8_0` and `Q4_0` that is what
//! ggml's reference quantisers do, and the bytes are theirs; for `Q6_K`, where ggml searches, the
//! scale of 16 values is refined by least squares once.

use half::{bf16, f16};

use super::codes;
use super::types::TensorType;

/// Values of a row from its stored bytes (without an `I2_S` tensor's tail). Both must be of whole
/// blocks and agree. A ternary type gives `code - 1` times the block's scale, `I2_S` without its scale.
pub fn decode_row(dtype: TensorType, bytes: &[u8], values: &mut [f32]) {
    let (elements, size) = dtype.block();
    let blocks = bytes.chunks_exact(size).zip(values.chunks_exact_mut(elements));
    match dtype {
        TensorType::F32 => each(bytes, values, f32::from_le_bytes),
        TensorType::F16 => each(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
        TensorType::Bf16 => each(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
        TensorType::Q4_0 => blocks.for_each(|(block, values)| decode_q4_0(block, values)),
        TensorType::Q8_0 => blocks.for_each(|(block, values)| decode_q8_0(block, values)),
        TensorType::Q6K => blocks.for_each(|(block, values)| decode_q6_k(block, values)),
        _ => {
            let mut row = [0; 256];
            for (block, values) in blocks {
                let row = &mut row[..elements];
                codes::decode_row(dtype, block, row);
                let scale = if dtype == TensorType::I2S { 1.0 } else { codes::scale_at(dtype, block).to_f32() };
                for (value, code) in values.iter_mut().zip(row) {
                    *value = (f32::from(*code) - 1.0) * scale;
                }
            }
        }
    }
}

fn each<const N: usize>(bytes: &[u8], values: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (chunk, value) in bytes.as_chunks::<N>().0.iter().zip(values) {
        *value = convert(*chunk);
    }
}

/// The f16 at the start of `bytes`.
fn half_at(bytes: &[u8]) -> f32 {
    bytes.first_chunk().map_or(f32::NAN, |b| f16::from_le_bytes(*b).to_f32())
}

fn decode_q4_0(block: &[u8], values: &mut [f32]) {
    let d = half_at(block);
    let (low, high) = values.split_at_mut(16);
    for ((byte, low), high) in block.iter().skip(2).zip(low).zip(high) {
        *low = d * (f32::from(byte & 15) - 8.0);
        *high = d * (f32::from(byte >> 4) - 8.0);
    }
}

fn decode_q8_0(block: &[u8], values: &mut [f32]) {
    let d = half_at(block);
    for (byte, value) in block.iter().skip(2).zip(values) {
        *value = d * f32::from(*byte as i8);
    }
}

fn decode_q6_k(block: &[u8], values: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half_at(d);
    for (e, value) in values.iter_mut().enumerate() {
        let (h, r) = (e / 128, e % 128);
        let four = low[64 * h + r % 64] >> (4 * (r / 64)) & 15;
        let two = high[32 * h + r % 32] >> (2 * (r / 32)) & 3;
        *value = d * f32::from(scales[e / 16] as i8) * (f32::from(four | two << 4) - 32.0);
    }
}

/// Appends a row of a whole number of blocks; values must be finite. Ternary types are written by
/// [`codes::encode_row`] and nothing is appended for them here.
pub fn encode_row(dtype: TensorType, values: &[f32], bytes: &mut Vec<u8>) {
    let (elements, _) = dtype.block();
    let blocks = values.chunks_exact(elements);
    match dtype {
        TensorType::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        TensorType::F16 => bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        TensorType::Bf16 => bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        TensorType::Q4_0 => blocks.for_each(|block| encode_q4_0(block, bytes)),
        TensorType::Q8_0 => blocks.for_each(|block| encode_q8_0(block, bytes)),
        TensorType::Q6K => blocks.for_each(|block| encode_q6_k(block, bytes)),
        _ => {}
    }
}

/// The value farthest from zero, with its sign; the first of equals.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, &v| if v.abs() > most.abs() { v } else { most })
}

/// `1/x`, 0 for 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

fn encode_q4_0(block: &[f32], bytes: &mut Vec<u8>) {
    let d = extreme(block) / -8.0;
    let inverse = inverse(d);
    let quantised = |v: f32| ((v * inverse + 8.5) as u8).min(15);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend((0..16).map(|i| quantised(block[i]) | quantised(block[i + 16]) << 4));
}

fn encode_q8_0(block: &[f32], bytes: &mut Vec<u8>) {
    let d = extreme(block).abs() / 127.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
}

fn encode_q6_k(block: &[f32], bytes: &mut Vec<u8>) {
    let mut wanted = [0f32; 16];
    for (scale, values) in wanted.iter_mut().zip(block.chunks_exact(16)) {
        *scale = scale_of_16(values);
    }
    // The scale farthest from zero becomes -128, so that its sign costs no resolution.
    let d = f16::from_f32(extreme(&wanted) / -128.0);
    let outer = inverse(d.to_f32());
    let (mut low, mut high, mut scales) = ([0u8; 128], [0u8; 64], [0u8; 16]);
    for (group, values) in block.chunks_exact(16).enumerate() {
        let scale = (wanted[group] * outer).round().clamp(-128.0, 127.0);
        scales[group] = scale as i8 as u8;
        let inner = inverse(d.to_f32() * scale);
        for (i, &v) in values.iter().enumerate() {
            let n = ((v * inner).round().clamp(-32.0, 31.0) + 32.0) as u8;
            let e = 16 * group + i;
            let (h, r) = (e / 128, e % 128);
            low[64 * h + r % 64] |= (n & 15) << (4 * (r / 64));
            high[32 * h + r % 32] |= (n >> 4) << (2 * (r / 32));
        }
    }
    bytes.extend(low);
    bytes.extend(high);
    bytes.extend(scales);
    bytes.extend(d.to_le_bytes());
}

/// The scale for 16 values in -32..=31: the extreme value at -32, then the least squares for the
/// integers that this gives.
fn scale_of_16(values: &[f32]) -> f32 {
    let first = extreme(values) / -32.0;
    let inverse = inverse(first);
    let (mut products, mut squares) = (0.0f32, 0.0f32);
    for &v in values {
        let q = (v * inverse).round().clamp(-32.0, 31.0);
        products += q * v;
        squares += q * q;
    }
    if squares > 0.0 { products / squares } else { 0.0 }
}

#[cfg(test)]
#[path = "floats_test.rs"]
mod tests;
