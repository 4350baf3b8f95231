//! Conversions between layouts of weights, by rows, on the host.
//!
//! Files hold ternary matrices in many orders; readers bring rows into `t2` (see [`crate::dtype`]),
//! and [`pack_ternary`] makes of them what a device computes with. Groups of rows are independent,
//! so callers cut matrices at multiples of [`INTERLEAVED`] rows and convert the parts in parallel.

use crate::dtype::{DType, INTERLEAVED};
use half::f16;

/// A `t2` word of sixteen codes 1.
const ONES: u32 = 0x5555_5555;

/// Is there a code 3 among rows of `t2` words? No ternary weight has it.
pub fn has_code_three(words: &[u32]) -> bool {
    words.iter().fold(0, |found, w| found | (w & (w >> 1) & ONES)) != 0
}

/// A `t2` word in the order of `t2x16`, or back: the four-by-four matrix of codes transposed.
#[inline(always)]
pub fn transpose_codes(w: u32) -> u32 {
    let t = ((w >> 12) ^ w) & 0xF0F0;
    let w = w ^ t ^ (t << 12);
    let t = ((w >> 6) ^ w) & 0x00CC_00CC;
    w ^ t ^ (t << 6)
}

/// Words of a matrix of `rows` rows of `k` ternary codes in a ternary dtype.
pub fn ternary_words(dtype: DType, rows: usize, k: usize) -> usize {
    rows.next_multiple_of(dtype.row_group()) * dtype.row_bytes(k) / 4
}

/// Rows of `k` codes from `t2` words to another ternary dtype; `to` has [`ternary_words`] words. Rows that
/// an interleaved group lacks become code 1, so a part must start at a multiple of [`INTERLEAVED`]
/// rows and only the last may have another number of them.
///
/// Does nothing where `dtype` is not ternary or the sizes do not fit together.
pub fn pack_ternary(dtype: DType, t2: &[u32], k: usize, to: &mut [u32]) {
    let (from_words, to_words) = (k.div_ceil(16), dtype.row_bytes(k) / 4);
    if k == 0 || !dtype.is_ternary() || to.len() != ternary_words(dtype, t2.len() / from_words, k) {
        return;
    }
    match dtype {
        DType::T2 => to.copy_from_slice(t2),
        DType::T1 => t2.chunks_exact(from_words).zip(to.chunks_exact_mut(to_words)).for_each(|(from, to)| {
            trits(from, k, |w, word| to[w] = word);
        }),
        _ => {
            let groups = t2.chunks(INTERLEAVED * from_words).zip(to.chunks_exact_mut(INTERLEAVED * to_words));
            groups.for_each(|(rows, to)| interleave(dtype, rows, k, to));
        }
    }
}

/// One group of at most sixteen rows.
fn interleave(dtype: DType, rows: &[u32], k: usize, to: &mut [u32]) {
    let words = k.div_ceil(16);
    if rows.len() < INTERLEAVED * words {
        to.fill(if dtype == DType::T2x16 { ONES } else { 0x8080_8080 });
    }
    for (r, row) in rows.chunks_exact(words).enumerate() {
        if dtype == DType::T2x16 {
            let column = to[r..].iter_mut().step_by(INTERLEAVED);
            column.zip(row).for_each(|(to, &word)| *to = transpose_codes(word));
        } else {
            trits(row, k, |w, word| to[w * INTERLEAVED + r] = word);
        }
    }
}

/// Calls `put(w, word)` for every `t1` word of a row.
fn trits(row: &[u32], k: usize, mut put: impl FnMut(usize, u32)) {
    // Codes as bytes, four to a word: a `t2` byte spread.
    let four = |i: usize| {
        let byte = row[i / 4] >> (i % 4 * 8) & 255;
        (byte | byte << 6 | byte << 12 | byte << 18) & 0x0303_0303
    };
    let quads = k.div_ceil(4);
    for (w, first) in (0..quads).step_by(5).enumerate() {
        // Past the row the padding of `t2`, or ones where it has no word.
        let at = |s: usize| if first + s < row.len() * 4 { four(first + s) } else { 0x0101_0101 };
        // Five digits of each byte at once; 242 is the largest, so no byte carries into the next.
        let values = (0..5).fold(0, |v, s| 3 * v + at(s));
        let bytes = values.to_le_bytes().map(|v| (u32::from(v) * 256).div_ceil(243) as u8);
        put(w, u32::from_le_bytes(bytes));
    }
}

/// Quantises rows of `k` values to `i8`, `i6` or `i4` words with one f16 scale for `group` values.
///
/// The scale maps the group's value of largest magnitude to the end of the range of codes that
/// reaches further (−32 of `i6`, −8 of `i4`; ±127 of `i8`), and is rounded to f16 before codes are
/// taken, so `code × scale` is what a kernel computes with. `words` has `rows · row_bytes / 4` words,
/// `scales` `rows · ⌈k / group⌉`. Groups of zeros get the scale 0.
pub fn quantize_groups(dtype: DType, values: &[f32], k: usize, group: usize, words: &mut [u32], scales: &mut [f16]) {
    let row_words = dtype.row_bytes(k) / 4;
    let rows = values.chunks_exact(k).zip(words.chunks_exact_mut(row_words));
    for ((values, words), scales) in rows.zip(scales.chunks_exact_mut(k.div_ceil(group))) {
        words.fill(0);
        let mut codes = vec![0i32; k];
        for ((values, codes), scale) in values.chunks(group).zip(codes.chunks_mut(group)).zip(scales) {
            *scale = group_codes(dtype, values, codes);
        }
        put_codes(dtype, &codes, words);
    }
}

fn group_codes(dtype: DType, values: &[f32], codes: &mut [i32]) -> f16 {
    let extreme = values.iter().fold(0f32, |a, &v| if v.abs() > a.abs() { v } else { a });
    let (scale, low, high) = match dtype {
        DType::I6 => (extreme / -32.0, -32.0, 31.0),
        DType::I4 => (extreme / -8.0, -8.0, 7.0),
        _ => (extreme.abs() / 127.0, -127.0, 127.0),
    };
    let scale = f16::from_f32(scale);
    let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse).round_ties_even().clamp(low, high) as i32;
    }
    scale
}

/// A row of codes into zeroed words, padding included.
pub fn put_codes(dtype: DType, codes: &[i32], words: &mut [u32]) {
    let padded = |i: usize| codes.get(i).copied().unwrap_or(0);
    match dtype {
        DType::I4 => {
            (0..words.len() * 8).for_each(|i| words[i / 8] |= ((padded(i) + 8) as u32 & 15) << (i % 8 * 4));
        }
        DType::I6 => (0..words.len() / 3 * 16).for_each(|i| {
            let (code, first) = ((padded(i) + 32) as u32 & 63, i / 16 * 3);
            words[first + i % 16 / 8] |= (code & 15) << (i % 8 * 4);
            words[first + 2] |= (code >> 4) << (i % 16 * 2);
        }),
        _ => codes.iter().enumerate().for_each(|(i, &c)| words[i / 4] |= (c as u32 & 255) << (i % 4 * 8)),
    }
}

/// Code `i` of a stored row of `i8`, `i6` or `i4`, the inverse of [`put_codes`].
#[inline(always)]
pub fn code_at(dtype: DType, row: &[u8], i: usize) -> i32 {
    match dtype {
        DType::I4 => i32::from(row[i / 2] >> (i % 2 * 4) & 15) - 8,
        DType::I6 => {
            let block = &row[i / 16 * 12..][..12];
            let low = block[i % 16 / 2] >> (i % 2 * 4) & 15;
            i32::from(low | (block[8 + i % 16 / 4] >> (i % 4 * 2) & 3) << 4) - 32
        }
        _ => i32::from(row[i] as i8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Spec;
    use crate::random::Random;
    use crate::reference::{decode, encode};

    #[test]
    fn packed_rows_are_what_the_reference_encodes_for_any_shape() {
        let mut random = Random::new(11);
        for (rows, k) in [(1, 1), (3, 16), (16, 20), (17, 37), (40, 160), (33, 259)] {
            let codes: Vec<f64> = (0..rows * k).map(|_| random.below(3) as f64 - 1.0).collect();
            let t2 = encode(&Spec::new([rows, k], DType::T2), &codes);
            for dtype in [DType::T2, DType::T1, DType::T2x16, DType::T1x16] {
                let spec = Spec::new([rows, k], dtype);
                let mut words = vec![0; ternary_words(dtype, rows, k)];
                pack_ternary(dtype, &t2, k, &mut words);
                assert_eq!(words, encode(&spec, &codes), "{spec}");
                assert_eq!(decode(&spec, &words), codes, "{spec}");
            }
        }
    }

    #[test]
    fn a_code_of_three_is_seen_at_every_place() {
        for i in 0..16 {
            assert!(!has_code_three(&[ONES, ONES & !(3 << (2 * i)) | 2 << (2 * i)]));
            assert!(has_code_three(&[ONES, ONES | 3 << (2 * i)]));
        }
    }

    #[test]
    fn quantised_groups_are_within_half_a_step_and_decode_as_the_reference_does() {
        let mut random = Random::new(12);
        let (rows, k, group) = (3, 83, 32);
        let values: Vec<f32> = (0..rows * k).map(|_| random.normal() as f32).collect();
        for (dtype, steps) in [(DType::I8, 127f64), (DType::I6, 32.0), (DType::I4, 8.0)] {
            let spec = Spec::new([rows, k], dtype);
            let mut words = vec![0; spec.bytes() as usize / 4];
            let mut scales = vec![f16::ZERO; rows * k.div_ceil(group)];
            quantize_groups(dtype, &values, k, group, &mut words, &mut scales);
            let codes = decode(&spec, &words);
            let bytes: &[u8] = bytemuck::cast_slice(&words);
            let row = |i: usize| &bytes[i / k * spec.row_bytes() as usize..];
            assert!((0..rows * k).all(|i| f64::from(code_at(dtype, row(i), i % k)) == codes[i]), "{dtype}");
            assert_eq!(encode(&spec, &codes), words, "padding of {dtype}");
            for (i, (value, code)) in values.iter().zip(&codes).enumerate() {
                let (row, column) = (i / k, i % k);
                let scale = scales[row * k.div_ceil(group) + column / group].to_f64();
                let error = (code * scale - f64::from(*value)).abs();
                // Half a code; at the end of the range that has one code less, and where the scale's own
                // rounding (2^-11 of it, times the code) pushes a value past the end, up to one.
                let most = if code.abs() >= steps - 1.0 { 1.1 } else { 0.5001 };
                assert!(error <= scale.abs() * most, "{dtype} {value} {code} {scale}");
            }
        }
    }
}
