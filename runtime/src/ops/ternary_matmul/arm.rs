//! Sums of ternary codes times int8 activations with NEON, which every aarch64 CPU has.
//!
//! See `cpu.rs` for the order of the activations. Products are added up in 16 bits for 15 blocks
//! (`15 · 4 · 2 · 2 · 128 = 30720`), then in 32.

use super::cpu::{HEIGHT, Tile};
use std::arch::aarch64::*;

/// Bytes of a block of codes.
const LANES: usize = 16;

/// As `Path::tile`.
pub(super) fn tile(w: [&[u8]; HEIGHT], x: &[i8], stride: usize, out: &mut Tile) -> usize {
    match x.len() / stride {
        0 | 1 => rows::<1>(w, x, stride, out),
        _ => rows::<2>(w, x, stride, out),
    }
}

#[allow(clippy::needless_range_loop, reason = "two arrays are indexed")]
fn rows<const C: usize>(w: [&[u8]; HEIGHT], x: &[i8], stride: usize, out: &mut Tile) -> usize {
    const BLOCKS: usize = 15;
    let bytes = w[0].len();
    assert!(w.iter().all(|row| row.len() == bytes));
    assert!(bytes.div_ceil(LANES) * 4 * LANES <= stride && C * stride <= x.len());
    *out = Tile::default();
    for first in (0..bytes).step_by(LANES * BLOCKS) {
        // SAFETY: aarch64 has NEON; `load` reads within its slice, and the second assertion has
        // seen that C rows of `x` hold four vectors for each vector of `w`.
        unsafe {
            let mut acc = [[vdupq_n_s16(0); C]; HEIGHT];
            for at in (first..bytes.min(first + LANES * BLOCKS)).step_by(LANES) {
                let mut packed = w.map(|row| load(&row[at..]));
                for r in 0..4 {
                    let codes = packed.map(|p| vreinterpretq_s8_u8(vandq_u8(p, vdupq_n_u8(3))));
                    packed = packed.map(|p| vshrq_n_u8::<2>(p));
                    for c in 0..C {
                        let x = vld1q_s8(x.as_ptr().add(c * stride + 4 * at + LANES * r));
                        for j in 0..HEIGHT {
                            let half = vmlal_s8(acc[j][c], vget_low_s8(codes[j]), vget_low_s8(x));
                            acc[j][c] = vmlal_high_s8(half, codes[j], x);
                        }
                    }
                }
            }
            for (out, acc) in out.iter_mut().zip(acc) {
                for (out, acc) in out.iter_mut().zip(acc) {
                    *out += vaddlvq_s16(acc);
                }
            }
        }
    }
    C
}

/// Up to 16 bytes, zeros past the end.
fn load(bytes: &[u8]) -> uint8x16_t {
    let mut padded = [0u8; LANES];
    let whole = bytes.len().min(LANES);
    padded[..whole].copy_from_slice(&bytes[..whole]);
    // SAFETY: the array has 16 bytes, and aarch64 has NEON.
    unsafe { vld1q_u8(padded.as_ptr()) }
}
