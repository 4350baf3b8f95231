//! Ternary matrices between the checkpoint's bytes and the runtime's words.
//!
//! transformers packs rows `r, r+R, r+2R, r+3R` (R = out/4) of `[out, in]` codes into
//! byte row r, bits 0–1 first; the runtime keeps each row contiguous, 16 codes in a word
//! (`t2`). Code 3 occurs in neither.

/// Codes `t + 1` in the runtime's words from packed bytes `[out/4, in]`. `None` if a code 3 occurs.
pub fn words_from_bytes(bytes: &[u8], out: usize, inner: usize) -> Option<Vec<u32>> {
    let (quarter, row_words) = (out / 4, inner.div_ceil(16));
    let mut words = vec![0x5555_5555u32; out * row_words];
    for (row, target) in words.chunks_exact_mut(row_words).enumerate() {
        let source = &bytes[row % quarter * inner..][..inner];
        let shift = row / quarter * 2;
        for (word, codes) in target.iter_mut().zip(source.chunks(16)) {
            for (i, byte) in codes.iter().enumerate() {
                let code = u32::from(byte >> shift & 3);
                if code == 3 {
                    return None;
                }
                *word = *word & !(3 << (2 * i)) | code << (2 * i);
            }
        }
    }
    Some(words)
}

/// Packed bytes `[out/4, in]` from the runtime's words. `out` must be a multiple of 4.
pub fn bytes_from_words(words: &[u32], out: usize, inner: usize) -> Vec<u8> {
    let (quarter, row_words) = (out / 4, inner.div_ceil(16));
    let code = |row: usize, column: usize| (words[row * row_words + column / 16] >> (column % 16 * 2) & 3) as u8;
    let mut bytes = vec![0u8; quarter * inner];
    for (row, target) in bytes.chunks_exact_mut(inner).enumerate() {
        for (column, byte) in target.iter_mut().enumerate() {
            *byte = (0..4).map(|i| code(row + i * quarter, column) << (2 * i)).fold(0, |a, b| a | b);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tritter_runtime::random::Random;

    #[test]
    fn packing_and_unpacking_are_inverse_for_any_width() {
        let mut random = Random::new(7);
        for (out, inner) in [(4, 1), (8, 16), (12, 33), (64, 160)] {
            let bytes: Vec<u8> =
                (0..out / 4 * inner).map(|_| (0..4).map(|i| (random.below(3) as u8) << (2 * i)).sum()).collect();
            let words = words_from_bytes(&bytes, out, inner).unwrap();
            assert_eq!(words.len(), out * inner.div_ceil(16));
            assert_eq!(bytes_from_words(&words, out, inner), bytes);
        }
    }

    #[test]
    fn a_code_of_three_is_refused() {
        assert_eq!(words_from_bytes(&[0b11], 4, 1), None);
    }
}
