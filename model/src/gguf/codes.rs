//! Ternary blocks: rows of codes `t + 1` (0, 1, 2) to stored bytes and back.
//!
//! Bit orders, with `e` the element within a block (ggml `src/ggml-quants.c` at d99724f, and its
//! twin in numpy, `gguf-py/gguf/quants.py`; `I2_S` `quantize_i2_s` in `src/ggml-bitnet-mad.cpp` of
//! microsoft/BitNet at 16da220):
//!
//! | type | a block | where the code of element `e` lies |
//! |---|---|---|
//! | `TQ2_0` | 64 bytes, f16 scale | byte `32·(e/128) + e%32`, bits `2·(e/32%4)` |
//! | `TQ1_0` | 48 + 4 bytes, f16 scale | `e < 160`: byte `e%32`, digit `e/32`; `e < 240`: byte `32 + (e-160)%16`, digit `(e-160)/16`; else byte `48 + e%4`, digit `(e-240)/4` |
//! | `I2_S` | 32 bytes | byte `e%32`, bits `6 - 2·(e/32)` |
//! | `Q2_0`, `PQ2_0` | f16 scale, 16 or 32 bytes | byte `e/4`, bits `2·(e%4)` |
//!
//! A byte of `TQ1_0` holds five digits, the first the most significant: `ceil(v·256/243)` with
//! `v = Σ digit_s·3^(4-s)`; in the last four bytes of a block the fifth digit is 0. Only the 243 (81)
//! bytes that this gives are taken, every other one is damage.
//!
//! `I2_S` is the layout that bitnet.cpp's converter and its x86 builds write. Its ARM builds write
//! groups of 64 in 16 bytes and its x86 builds without `ACT_PARALLEL` four rows in a byte, in files
//! that say nothing of it. A width that only the first can hold (an odd multiple of 64) is refused; the
//! others cannot be told apart, and are read as what converters and released files have.

use half::f16;

use super::types::TensorType;

/// Digits of a byte of `TQ1_0`, two bits each, the first lowest; [`NO_DIGITS`] where no block has it.
const DIGITS: [u16; 256] = digits();
/// Marks a byte that stands for no digits.
const NO_DIGITS: u16 = u16::MAX;

const fn digits() -> [u16; 256] {
    let mut table = [NO_DIGITS; 256];
    let mut v = 0u16;
    while v < 243 {
        let packed = (v / 81) | ((v / 27 % 3) << 2) | ((v / 9 % 3) << 4) | ((v / 3 % 3) << 6) | ((v % 3) << 8);
        table[(v * 256).div_ceil(243) as usize] = packed;
        v += 1;
    }
    table
}

/// The scale of one block.
pub(crate) fn scale_at(dtype: TensorType, block: &[u8]) -> f16 {
    let at = match dtype {
        TensorType::Tq1_0 => 52,
        TensorType::Tq2_0 => 64,
        _ => 0,
    };
    match block.get(at..at + 2) {
        Some(&[low, high]) => f16::from_le_bytes([low, high]),
        _ => f16::NAN,
    }
}

/// Codes of a row from its stored bytes (without an `I2_S` tensor's tail). Both must be of whole
/// blocks and agree. False where bytes hold what no ternary weight has: the code 3, or in
/// `TQ1_0` a byte that stands for no five digits.
pub fn decode_row(dtype: TensorType, bytes: &[u8], codes: &mut [u8]) -> bool {
    let (elements, size) = dtype.block();
    let blocks = bytes.chunks_exact(size).zip(codes.chunks_exact_mut(elements));
    let mut seen = 0;
    for (block, codes) in blocks {
        match dtype {
            TensorType::Tq1_0 => seen |= decode_tq1_0(block, codes),
            TensorType::Tq2_0 => {
                for (block, codes) in block.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
                    seen |= spread(block, codes, [0, 2, 4, 6]);
                }
            }
            TensorType::I2S => seen |= spread(block, codes, [6, 4, 2, 0]),
            _ => {
                for (byte, codes) in block.iter().skip(2).zip(codes.chunks_exact_mut(4)) {
                    for (i, code) in codes.iter_mut().enumerate() {
                        *code = byte >> (2 * i) & 3;
                    }
                    // Both bits of a pair: the code 3.
                    seen |= byte & byte >> 1 & 0x55;
                }
            }
        }
    }
    seen == 0
}

/// Codes of as many runs of 32 as there are shifts, from 32 bytes; not 0 where a code is 3.
fn spread(block: &[u8], codes: &mut [u8], shifts: [u8; 4]) -> u8 {
    for (codes, shift) in codes.chunks_exact_mut(32).zip(shifts) {
        for (code, byte) in codes.iter_mut().zip(block) {
            *code = byte >> shift & 3;
        }
    }
    block.iter().fold(0, |seen, byte| seen | byte & byte >> 1 & 0x55)
}

/// Not 0 where a byte stands for no digits.
fn decode_tq1_0(block: &[u8], codes: &mut [u8]) -> u8 {
    let mut bad = 0;
    for (first, span, digits, start) in TQ1_0_PARTS {
        for i in 0..span {
            let packed = DIGITS[usize::from(block[first + i])];
            // A fifth digit that should be 0, or no digits at all.
            bad |= u8::from(packed == NO_DIGITS || packed >> (2 * digits) != 0);
            for digit in 0..digits {
                codes[start + digit * span + i] = (packed >> (2 * digit) & 3) as u8;
            }
        }
    }
    bad
}

/// First byte, bytes, digits in a byte and first element of the three parts of a block of `TQ1_0`.
const TQ1_0_PARTS: [(usize, usize, usize, usize); 3] = [(0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)];

/// Appends a row of codes 0 to 2, a whole number of blocks, with a scale for each block where the
/// type has one.
pub fn encode_row(dtype: TensorType, codes: &[u8], scale: f16, bytes: &mut Vec<u8>) {
    let (elements, _) = dtype.block();
    let scale = scale.to_le_bytes();
    for codes in codes.chunks_exact(elements) {
        match dtype {
            TensorType::Tq1_0 => {
                encode_tq1_0(codes, bytes);
                bytes.extend(scale);
            }
            TensorType::Tq2_0 => {
                for codes in codes.chunks_exact(128) {
                    gather(codes, [0, 2, 4, 6], bytes);
                }
                bytes.extend(scale);
            }
            TensorType::I2S => gather(codes, [6, 4, 2, 0], bytes),
            _ => {
                bytes.extend(scale);
                bytes.extend(codes.chunks_exact(4).map(|c| c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6));
            }
        }
    }
}

fn gather(codes: &[u8], shifts: [u8; 4], bytes: &mut Vec<u8>) {
    let code = |run: usize, i: usize| codes[32 * run + i] << shifts[run];
    bytes.extend((0..32).map(|i| code(0, i) | code(1, i) | code(2, i) | code(3, i)));
}

fn encode_tq1_0(codes: &[u8], bytes: &mut Vec<u8>) {
    for (_, span, digits, start) in TQ1_0_PARTS {
        for i in 0..span {
            let mut v = (0..digits).fold(0, |v, digit| 3 * v + u16::from(codes[start + digit * span + i]));
            if digits == 4 {
                v *= 3;
            }
            bytes.push((v * 256).div_ceil(243) as u8);
        }
    }
}

#[cfg(test)]
#[path = "codes_test.rs"]
mod tests;
