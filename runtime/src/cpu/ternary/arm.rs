//! NEON: `sdot` where the CPU has it, else `smull`.
//!
//! A panel's vector of 64 bytes is taken in four quarters of four rows.

use super::path::Tile;
use crate::dtype::INTERLEAVED;
use std::arch::aarch64::*;
use std::arch::asm;

/// Proof that the CPU has the dot product instructions (ARMv8.2 DotProd).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dot(());

impl Dot {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Dot(()))
    }

    /// As `Path::tile`, for one panel.
    pub(super) fn tile(self, five: bool, w: &[u32], row: usize, x: &[u32], tall: usize, out: &mut Tile) {
        by_rows::<true>(five, w, row, x, tall, out)
    }
}

/// As `Path::tile`, for one panel, with what every aarch64 CPU has.
pub(super) fn neon(five: bool, w: &[u32], row: usize, x: &[u32], tall: usize, out: &mut Tile) {
    by_rows::<false>(five, w, row, x, tall, out)
}

fn by_rows<const DOT: bool>(five: bool, w: &[u32], row: usize, x: &[u32], tall: usize, out: &mut Tile) {
    match (five, tall) {
        (false, 4) => tile::<4, false, DOT>(w, row, x, out),
        (false, _) => tile::<1, false, DOT>(w, row, x, out),
        (true, 4) => tile::<4, true, DOT>(w, row, x, out),
        (true, _) => tile::<1, true, DOT>(w, row, x, out),
    }
}

/// `acc` plus the products of sixteen codes with sixteen activations, four to a lane.
///
/// # Safety
/// With `DOT` the CPU must have the dot product instructions.
#[inline(always)]
unsafe fn dot<const DOT: bool>(mut acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    if DOT {
        // SAFETY: the caller has seen that the instruction exists; it touches registers only.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inout(vreg) acc, in(vreg) codes, in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        return acc;
    }
    // SAFETY: every aarch64 CPU has NEON. Pairs of products are within 512, so 16 bits hold their sums.
    unsafe {
        let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
        let high = vmull_high_s8(codes, x);
        vpadalq_s16(acc, vpaddq_s16(low, high))
    }
}

#[allow(clippy::needless_range_loop, reason = "several arrays are indexed")]
fn tile<const R: usize, const FIVE: bool, const DOT: bool>(w: &[u32], row: usize, x: &[u32], out: &mut Tile) {
    let digits = if FIVE { 5 } else { 4 };
    assert!(w.len() >= row * INTERLEAVED && x.len() >= R * digits * row);
    // SAFETY: every aarch64 CPU has NEON, `DOT` is set only with proof; the assertion has seen that there
    // are `row` vectors of 64 bytes in `w` and R words of `x` for each of `digits · row` steps, and an entry
    // of the tile has sixteen sums.
    unsafe {
        let mut acc = [[vdupq_n_s32(0); 4]; R];
        for i in 0..row {
            let at = w.as_ptr().add(i * INTERLEAVED);
            let mut packed = [0, 1, 2, 3].map(|q| vreinterpretq_u8_u32(vld1q_u32(at.add(4 * q))));
            for s in 0..digits {
                let codes = packed.map(|q| code::<FIVE>(q));
                packed = packed.map(|q| rest::<FIVE>(q));
                for r in 0..R {
                    let four = *x.as_ptr().add((digits * i + s) * R + r);
                    let four = vreinterpretq_s8_u32(vdupq_n_u32(four));
                    for q in 0..4 {
                        acc[r][q] = dot::<DOT>(acc[r][q], codes[q], four);
                    }
                }
            }
        }
        for r in 0..R {
            for q in 0..4 {
                vst1q_s32(out.0[r].as_mut_ptr().add(4 * q), acc[r][q]);
            }
        }
    }
}

/// The code of each byte that comes next: two bits, or the digit that a product with 3 carries out.
///
/// # Safety
/// None beyond NEON, which every aarch64 CPU has.
#[inline(always)]
unsafe fn code<const FIVE: bool>(packed: uint8x16_t) -> int8x16_t {
    // SAFETY: every aarch64 CPU has NEON.
    unsafe {
        if !FIVE {
            return vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(3)));
        }
        // 3q reaches 256 from 86 on, and 512 from 171 on; a comparison that holds gives -1.
        let first = vreinterpretq_s8_u8(vcgeq_u8(packed, vdupq_n_u8(86)));
        let second = vreinterpretq_s8_u8(vcgeq_u8(packed, vdupq_n_u8(171)));
        vnegq_s8(vaddq_s8(first, second))
    }
}

/// What remains of each byte after its next code.
///
/// # Safety
/// None beyond NEON, which every aarch64 CPU has.
#[inline(always)]
unsafe fn rest<const FIVE: bool>(packed: uint8x16_t) -> uint8x16_t {
    // SAFETY: every aarch64 CPU has NEON.
    unsafe { if FIVE { vaddq_u8(vaddq_u8(packed, packed), packed) } else { vshrq_n_u8::<2>(packed) } }
}
