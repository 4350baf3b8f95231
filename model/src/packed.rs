//! Ternary matrices between the checkpoint's bytes and the runtime's words.
//!
//! transformers packs rows `r, r+R, r+2R, r+3R` (R = out/4) of `[out, in]` codes into
//! byte row r, bits 0–1 first; the runtime's plain layout keeps each row contiguous, 16 codes
//! in a word (`t2`). Code 3 occurs in neither.
//!
//! Both directions go by whole words: the fields of four groups of four bytes, one above the
//! other, are the codes of a word with columns and rows of a 4 × 4 table exchanged.

use tritter_runtime::layout::transpose_codes;

/// Code 1, the weight 0, in all 16 places of a word.
pub const ZEROS: u32 = 0x5555_5555;
/// The lowest code of every byte.
const FIRST: u32 = 0x0303_0303;

/// Words of a row of `inner` codes.
pub fn row_words(inner: usize) -> usize {
    inner.div_ceil(16)
}

/// Codes of one row from the bytes of its byte row; `quarter` (0 to 3) is the place of the row in a
/// byte. `words` takes [`row_words`] of `bytes.len()`; padding is code 1. A code 3 stays as it is, for
/// [`has_code_three`](tritter_runtime::layout::has_code_three).
pub fn unpack_row(bytes: &[u8], quarter: usize, words: &mut [u32]) {
    let shift = 2 * quarter as u32;
    let word = |bytes: &[u8; 16]| {
        let group = |s: usize| {
            let four = [bytes[4 * s], bytes[4 * s + 1], bytes[4 * s + 2], bytes[4 * s + 3]];
            (u32::from_le_bytes(four) >> shift & FIRST) << (2 * s)
        };
        transpose_codes(group(0) | group(1) | group(2) | group(3))
    };
    let (whole, rest) = bytes.as_chunks::<16>();
    for (target, bytes) in words.iter_mut().zip(whole) {
        *target = word(bytes);
    }
    if let (Some(target), false) = (words.get_mut(whole.len()), rest.is_empty()) {
        let mut padded = [ZEROS as u8; 16];
        padded[..rest.len()].copy_from_slice(rest);
        *target = word(&padded);
    }
}

/// Code × scale of a row of codes.
pub fn dequantise_row(words: &[u32], scale: f32, out: &mut [f32]) {
    for (word, sixteen) in words.iter().zip(out.chunks_mut(16)) {
        for (place, value) in sixteen.iter_mut().enumerate() {
            *value = ((word >> (2 * place) & 3) as f32 - 1.0) * scale;
        }
    }
}

/// One byte row from the words of its four rows, in the order of their places in a byte.
pub fn pack_rows(rows: [&[u32]; 4], bytes: &mut [u8]) {
    for (i, target) in bytes.chunks_mut(16).enumerate() {
        let mut sixteen = [0u8; 16];
        for (quarter, row) in rows.iter().enumerate() {
            let word = transpose_codes(row.get(i).copied().unwrap_or(ZEROS));
            for (s, four) in sixteen.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let codes = (word >> (2 * s) & FIRST) << (2 * quarter);
                *four = (u32::from_le_bytes(*four) | codes).to_le_bytes();
            }
        }
        target.copy_from_slice(&sixteen[..target.len()]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tritter_runtime::layout::has_code_three;
    use tritter_runtime::random::Random;

    #[test]
    fn packing_and_unpacking_are_inverse_for_any_width() {
        let mut random = Random::new(7);
        for inner in [1, 3, 16, 17, 33, 160] {
            let bytes: Vec<u8> = (0..inner).map(|_| (0..4).map(|i| (random.below(3) as u8) << (2 * i)).sum()).collect();
            let rows: Vec<Vec<u32>> = (0..4)
                .map(|quarter| {
                    let mut words = vec![0; row_words(inner)];
                    unpack_row(&bytes, quarter, &mut words);
                    words
                })
                .collect();
            for (column, byte) in bytes.iter().enumerate() {
                for (quarter, row) in rows.iter().enumerate() {
                    let code = row[column / 16] >> (column % 16 * 2) & 3;
                    assert_eq!(code, u32::from(byte >> (2 * quarter) & 3), "row {quarter}, column {column} of {inner}");
                }
            }
            for row in &rows {
                assert!(!has_code_three(row));
                let padding = 16 * row.len() - inner;
                let last = u64::from(*row.last().unwrap()) >> (2 * (16 - padding));
                assert_eq!(last, u64::from(ZEROS) & ((1 << (2 * padding)) - 1), "padding of {inner}");
            }
            let mut again = vec![0; inner];
            pack_rows([&rows[0], &rows[1], &rows[2], &rows[3]], &mut again);
            assert_eq!(again, bytes);
        }
    }
}
