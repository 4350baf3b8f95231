//! AVX-512 VNNI: `vpdpbusd` multiplies codes (unsigned) with activations (signed), four to a lane.

use super::path::{Tile, WIDTH};
use crate::dtype::INTERLEAVED;
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW and VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        all.then_some(Avx512(()))
    }

    /// As `Path::tile`; gives the rows of `x` that it took.
    pub(super) fn tile(
        self,
        five: bool,
        w: &[u32],
        row: usize,
        wide: usize,
        x: &[i8],
        stride: usize,
        out: &mut Tile,
    ) -> usize {
        // SAFETY: `self` exists only where `detect` found the features.
        unsafe {
            match (five, wide) {
                (false, 1) => by_rows::<1, false>(w, row, x, stride, out),
                (false, _) => by_rows::<2, false>(w, row, x, stride, out),
                (true, 1) => by_rows::<1, true>(w, row, x, stride, out),
                (true, _) => by_rows::<2, true>(w, row, x, stride, out),
            }
        }
    }

    pub(super) fn sum(self, x: &[i8]) -> i32 {
        // SAFETY: as above.
        unsafe { sum(x) }
    }
}

/// The tile for as many rows of `x` as there are.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn by_rows<const P: usize, const FIVE: bool>(w: &[u32], row: usize, x: &[i8], stride: usize, out: &mut Tile) -> usize {
    match x.len() / stride {
        0 | 1 => vector::<P, FIVE>(w, row, x, out),
        2 | 3 => tile::<P, 2, FIVE>(w, row, x, stride, out),
        4..8 => tile::<P, 4, FIVE>(w, row, x, stride, out),
        8..WIDTH => tile::<P, 8, FIVE>(w, row, x, stride, out),
        _ => tile::<P, WIDTH, FIVE>(w, row, x, stride, out),
    }
}

/// Takes the next code of each byte: two bits, or the digit that a product with 3 carries out.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn next<const FIVE: bool>(packed: &mut __m512i) -> __m512i {
    if !FIVE {
        let codes = _mm512_and_si512(*packed, _mm512_set1_epi8(3));
        *packed = _mm512_srli_epi32::<2>(*packed);
        return codes;
    }
    let one = _mm512_set1_epi8(1);
    // 3q reaches 256 from 86 on, and 512 from 171 on.
    let first = _mm512_cmpge_epu8_mask(*packed, _mm512_set1_epi8(86));
    let second = _mm512_cmpge_epu8_mask(*packed, _mm512_set1_epi8(171u8 as i8));
    let codes = _mm512_maskz_mov_epi8(first, one);
    let codes = _mm512_mask_add_epi8(codes, second, codes, one);
    *packed = _mm512_add_epi8(_mm512_add_epi8(*packed, *packed), *packed);
    codes
}

/// Panics unless `P` panels are there and `R` rows of `x` reach as far as theirs.
fn check<const P: usize, const FIVE: bool>(w: &[u32], row: usize, x: &[i8], stride: usize, rows: usize) {
    assert!(w.len() >= P * row * INTERLEAVED);
    assert!((rows - 1) * stride + row * if FIVE { 20 } else { 16 } <= x.len());
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "several arrays are indexed, and closures would lose the target features")]
fn tile<const P: usize, const R: usize, const FIVE: bool>(
    w: &[u32],
    row: usize,
    x: &[i8],
    stride: usize,
    out: &mut Tile,
) -> usize {
    check::<P, FIVE>(w, row, x, stride, R);
    let digits = if FIVE { 5 } else { 4 };
    let mut acc = [[_mm512_setzero_si512(); P]; R];
    for i in 0..row {
        let mut packed = [_mm512_setzero_si512(); P];
        for p in 0..P {
            // SAFETY: `check` has seen that P panels of `row` vectors are there.
            packed[p] = unsafe { _mm512_loadu_si512(w.as_ptr().add((p * row + i) * INTERLEAVED).cast()) };
        }
        for s in 0..digits {
            let mut codes = packed;
            for p in 0..P {
                codes[p] = next::<FIVE>(&mut packed[p]);
            }
            for r in 0..R {
                // SAFETY: `check` has seen that each of R rows has 4 · digits · row codes.
                let four = unsafe { x.as_ptr().add(r * stride + 4 * (digits * i + s)).cast::<i32>().read_unaligned() };
                let four = _mm512_set1_epi32(four);
                for p in 0..P {
                    acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], codes[p], four);
                }
            }
        }
    }
    for r in 0..R {
        for p in 0..P {
            // SAFETY: an entry of the tile has sixteen sums.
            unsafe { _mm512_storeu_si512(out.0[r * P + p].as_mut_ptr().cast(), acc[r][p]) };
        }
    }
    R
}

/// Words ahead of the loop that are fetched: the hardware's own prefetch stops at the end of a page.
const AHEAD: usize = 1024;

/// One row of `x`: a sum for each code of a word, because one sum would wait for itself.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "closures would lose the target features")]
fn vector<const P: usize, const FIVE: bool>(w: &[u32], row: usize, x: &[i8], out: &mut Tile) -> usize {
    check::<P, FIVE>(w, row, x, 0, 1);
    let digits = if FIVE { 5 } else { 4 };
    for p in 0..P {
        let mut acc = [_mm512_setzero_si512(); 5];
        for i in 0..row {
            let at = (p * row + i) * INTERLEAVED;
            _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().wrapping_add(at + AHEAD).cast());
            // SAFETY: `check` has seen that P panels of `row` vectors are there.
            let mut packed = unsafe { _mm512_loadu_si512(w.as_ptr().add(at).cast()) };
            for s in 0..digits {
                let codes = next::<FIVE>(&mut packed);
                // SAFETY: `check` has seen that the row has 4 · digits · row codes.
                let four = unsafe { x.as_ptr().add(4 * (digits * i + s)).cast::<i32>().read_unaligned() };
                acc[s] = _mm512_dpbusd_epi32(acc[s], codes, _mm512_set1_epi32(four));
            }
        }
        let mut sum = acc[0];
        for s in 1..digits {
            sum = _mm512_add_epi32(sum, acc[s]);
        }
        // SAFETY: an entry of the tile has sixteen sums.
        unsafe { _mm512_storeu_si512(out.0[p].as_mut_ptr().cast(), sum) };
    }
    1
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sum(x: &[i8]) -> i32 {
    let (whole, rest) = x.as_chunks::<64>();
    let mut acc = _mm512_setzero_si512();
    for x in whole {
        // SAFETY: the chunk has 64 bytes.
        let x = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
        acc = _mm512_dpbusd_epi32(acc, _mm512_set1_epi8(1), x);
    }
    _mm512_reduce_add_epi32(acc) + rest.iter().map(|&v| i32::from(v)).sum::<i32>()
}
