//! AVX2: `vpmaddubsw` multiplies codes (unsigned) with activations (signed) and adds pairs in 16 bits.
//!
//! A panel's vector is taken in two halves of eight rows. A pair of products is within
//! `2 · 2 · 128 = 512`, so 16-bit sums hold 64 of them, of which only the negative side (codes of -128)
//! reaches the limit.

use super::path::Tile;
use crate::dtype::INTERLEAVED;
use std::arch::x86_64::*;

/// Products that a 16-bit sum takes.
const PAIRS: usize = 64;

/// Proof that the CPU has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Avx2(()))
    }

    /// As `Path::tile`, for one panel.
    pub(super) fn tile(self, five: bool, w: &[u32], row: usize, x: &[u32], tall: usize, out: &mut Tile) {
        // SAFETY: `self` exists only where `detect` found the feature.
        unsafe {
            match (five, tall) {
                (false, 2) => tile::<2, false>(w, row, x, out),
                (false, _) => tile::<1, false>(w, row, x, out),
                (true, 2) => tile::<2, true>(w, row, x, out),
                (true, _) => tile::<1, true>(w, row, x, out),
            }
        }
    }
}

/// Takes the next code of each byte: two bits, or the digit that a product with 3 carries out.
#[inline]
#[target_feature(enable = "avx2")]
fn next<const FIVE: bool>(packed: &mut __m256i) -> __m256i {
    if !FIVE {
        let codes = _mm256_and_si256(*packed, _mm256_set1_epi8(3));
        *packed = _mm256_srli_epi32::<2>(*packed);
        return codes;
    }
    // 3q reaches 256 from 86 on, and 512 from 171 on; a comparison that holds gives -1.
    let first = _mm256_cmpeq_epi8(_mm256_max_epu8(*packed, _mm256_set1_epi8(86)), *packed);
    let second = _mm256_cmpeq_epi8(_mm256_max_epu8(*packed, _mm256_set1_epi8(171u8 as i8)), *packed);
    *packed = _mm256_add_epi8(_mm256_add_epi8(*packed, *packed), *packed);
    _mm256_abs_epi8(_mm256_add_epi8(first, second))
}

#[target_feature(enable = "avx2")]
#[allow(
    clippy::needless_range_loop,
    reason = "several arrays are indexed, and closures would lose the target features"
)]
fn tile<const R: usize, const FIVE: bool>(w: &[u32], row: usize, x: &[u32], out: &mut Tile) {
    let digits = if FIVE { 5 } else { 4 };
    assert!(w.len() >= row * INTERLEAVED && x.len() >= R * digits * row);
    let ones = _mm256_set1_epi16(1);
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    let step = PAIRS / digits;
    for first in (0..row).step_by(step) {
        let mut short = [[_mm256_setzero_si256(); 2]; R];
        for i in first..row.min(first + step) {
            let mut packed = [_mm256_setzero_si256(); 2];
            for h in 0..2 {
                // SAFETY: the assertion has seen that there are `row` vectors of 64 bytes.
                packed[h] = unsafe { _mm256_loadu_si256(w.as_ptr().add(i * INTERLEAVED + 8 * h).cast()) };
            }
            _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().wrapping_add(i * INTERLEAVED + 1024).cast());
            for s in 0..digits {
                let codes = [next::<FIVE>(&mut packed[0]), next::<FIVE>(&mut packed[1])];
                for r in 0..R {
                    // SAFETY: the assertion has seen that `x` has R words for each of `digits · row` steps.
                    let four = unsafe { *x.as_ptr().add((digits * i + s) * R + r) };
                    let four = _mm256_set1_epi32(four as i32);
                    for h in 0..2 {
                        short[r][h] = _mm256_add_epi16(short[r][h], _mm256_maddubs_epi16(codes[h], four));
                    }
                }
            }
        }
        for r in 0..R {
            for h in 0..2 {
                acc[r][h] = _mm256_add_epi32(acc[r][h], _mm256_madd_epi16(short[r][h], ones));
            }
        }
    }
    for r in 0..R {
        for h in 0..2 {
            // SAFETY: an entry of the tile has sixteen sums.
            unsafe { _mm256_storeu_si256(out.0[r].as_mut_ptr().add(8 * h).cast(), acc[r][h]) };
        }
    }
}
