//! AVX-512 VNNI: `vpdpbusd` multiplies codes (unsigned) with activations (signed), four to a lane.

use super::path::{Path, Tile, WIDTH};
use super::{Activations, TILES, Weights};
use crate::dtype::INTERLEAVED;
use std::arch::x86_64::*;
use std::ops::Range;

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

    /// As `Path::tile`.
    #[allow(clippy::too_many_arguments, reason = "one call in one place")]
    pub(super) fn tile(self, five: bool, w: &[u32], row: usize, wide: usize, x: &[u32], tall: usize, out: &mut Tile) {
        // SAFETY: `self` exists only where `detect` found the features.
        unsafe {
            match (five, wide) {
                (false, 1) => by_rows::<1, false>(w, row, x, tall, out),
                (false, _) => by_rows::<2, false>(w, row, x, tall, out),
                (true, 1) => by_rows::<1, true>(w, row, x, tall, out),
                (true, _) => by_rows::<2, true>(w, row, x, tall, out),
            }
        }
    }

    /// As `super::sums`, for many rows: codes of a pair of panels are unpacked to bytes a part of the depth
    /// at a time, small enough to stay in the first cache, and meet all rows of a block there.
    pub(super) fn blocks(
        self,
        w: &Weights<'_>,
        x: &Activations<'_>,
        panels: Range<usize>,
        rows: Range<usize>,
        mut put: impl FnMut(usize, usize, &[i32; INTERLEAVED]),
    ) {
        let digits = if w.five { 5 } else { 4 };
        let mut codes = vec![Line([0; 64]); 2 * DEPTH / 4];
        let mut tiles = [Tile::default(); TILES];
        for p in panels.clone().step_by(2) {
            let wide = (panels.end - p).min(2);
            for first in rows.clone().step_by(TILES * WIDTH) {
                let last = rows.end.min(first + TILES * WIDTH);
                for start in (0..w.row).step_by(DEPTH / 4 / digits) {
                    let words = (w.row - start).min(DEPTH / 4 / digits);
                    let steps = words * digits;
                    // SAFETY: `self` exists only where `detect` found the features.
                    unsafe { unpack(w.five, w.panels_from(p), w.row, start, words, wide, &mut codes) };
                    let mut i = first;
                    for tile in &mut tiles {
                        let tall = Path::Avx512(self).height(WIDTH.min(last - i));
                        let x = &x.tiles[i * x.row + start * digits * tall..][..steps * tall];
                        // SAFETY: as above.
                        unsafe { dense(wide, tall, &codes[..steps * wide], x, start > 0, tile) };
                        i += tall;
                        if i == last {
                            break;
                        }
                    }
                }
                let mut i = first;
                for tile in &mut tiles {
                    let tall = Path::Avx512(self).height(WIDTH.min(last - i));
                    x.put(tile, i, tall, p, wide, &mut put);
                    i += tall;
                    if i == last {
                        break;
                    }
                }
            }
        }
    }

    pub(super) fn sum(self, x: &[i8]) -> i32 {
        // SAFETY: as above.
        unsafe { sum(x) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn by_rows<const P: usize, const FIVE: bool>(w: &[u32], row: usize, x: &[u32], tall: usize, out: &mut Tile) {
    match tall {
        WIDTH => tile::<P, WIDTH, FIVE>(w, row, x, out),
        8 => tile::<P, 8, FIVE>(w, row, x, out),
        4 => tile::<P, 4, FIVE>(w, row, x, out),
        2 => tile::<P, 2, FIVE>(w, row, x, out),
        _ => vector::<P, FIVE>(w, row, x, out),
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

/// Panics unless `P` panels are there and a tile of `R` rows of `x` that reach as far as theirs.
fn check<const P: usize, const R: usize, const FIVE: bool>(w: &[u32], row: usize, x: &[u32]) {
    assert!(w.len() >= P * row * INTERLEAVED);
    assert!(x.len() >= R * row * if FIVE { 5 } else { 4 });
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[allow(
    clippy::needless_range_loop,
    reason = "several arrays are indexed, and closures would lose the target features"
)]
fn tile<const P: usize, const R: usize, const FIVE: bool>(w: &[u32], row: usize, x: &[u32], out: &mut Tile) {
    check::<P, R, FIVE>(w, row, x);
    let digits = if FIVE { 5 } else { 4 };
    let mut acc = [[_mm512_setzero_si512(); P]; R];
    let mut at = x.as_ptr();
    for i in 0..row {
        let mut packed = [_mm512_setzero_si512(); P];
        for p in 0..P {
            // SAFETY: `check` has seen that P panels of `row` vectors are there.
            packed[p] = unsafe { _mm512_loadu_si512(w.as_ptr().add((p * row + i) * INTERLEAVED).cast()) };
        }
        for _ in 0..digits {
            let mut codes = packed;
            for p in 0..P {
                codes[p] = next::<FIVE>(&mut packed[p]);
            }
            for r in 0..R {
                // SAFETY: `check` has seen that `x` has R words for each of `digits · row` steps.
                let four = _mm512_set1_epi32(unsafe { *at.add(r) } as i32);
                for p in 0..P {
                    acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], codes[p], four);
                }
            }
            // SAFETY: as above; after the last step it points to the end.
            at = unsafe { at.add(R) };
        }
    }
    for r in 0..R {
        for p in 0..P {
            // SAFETY: an entry of the tile has sixteen sums.
            unsafe { _mm512_storeu_si512(out.0[r * P + p].as_mut_ptr().cast(), acc[r][p]) };
        }
    }
}

/// Codes of a row that are unpacked at a time: a multiple of 16 and 20.
const DEPTH: usize = 640;

/// A vector of codes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Words `start..start + words` of `wide` panels as bytes, panel beside panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn unpack(five: bool, w: &[u32], row: usize, start: usize, words: usize, wide: usize, codes: &mut [Line]) {
    let digits = if five { 5 } else { 4 };
    assert!(w.len() >= wide * row * INTERLEAVED && start + words <= row && codes.len() >= words * digits * wide);
    for p in 0..wide {
        for i in 0..words {
            // SAFETY: the assertion has seen that `wide` panels of `row` vectors are there.
            let mut packed = unsafe { _mm512_loadu_si512(w.as_ptr().add((p * row + start + i) * INTERLEAVED).cast()) };
            for s in 0..digits {
                let code = if five { next::<true>(&mut packed) } else { next::<false>(&mut packed) };
                let at = (i * digits + s) * wide + p;
                // SAFETY: a line has 64 bytes and is aligned to them.
                unsafe { _mm512_store_si512(codes[at].0.as_mut_ptr().cast(), code) };
            }
        }
    }
}

/// Adds the products of unpacked codes and a tile of `tall` rows to the tile's sums, or to zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dense(wide: usize, tall: usize, codes: &[Line], x: &[u32], add: bool, out: &mut Tile) {
    match (wide, tall) {
        (2, WIDTH) => dense_tile::<2, WIDTH>(codes, x, add, out),
        (2, 8) => dense_tile::<2, 8>(codes, x, add, out),
        (2, 4) => dense_tile::<2, 4>(codes, x, add, out),
        (2, 2) => dense_tile::<2, 2>(codes, x, add, out),
        (2, _) => dense_tile::<2, 1>(codes, x, add, out),
        (_, WIDTH) => dense_tile::<1, WIDTH>(codes, x, add, out),
        (_, 8) => dense_tile::<1, 8>(codes, x, add, out),
        (_, 4) => dense_tile::<1, 4>(codes, x, add, out),
        (_, 2) => dense_tile::<1, 2>(codes, x, add, out),
        _ => dense_tile::<1, 1>(codes, x, add, out),
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[allow(
    clippy::needless_range_loop,
    reason = "several arrays are indexed, and closures would lose the target features"
)]
fn dense_tile<const P: usize, const R: usize>(codes: &[Line], x: &[u32], add: bool, out: &mut Tile) {
    let steps = codes.len() / P;
    assert!(x.len() >= R * steps);
    let mut acc = [[_mm512_setzero_si512(); P]; R];
    if add {
        for r in 0..R {
            for p in 0..P {
                // SAFETY: an entry of the tile has sixteen sums.
                acc[r][p] = unsafe { _mm512_loadu_si512(out.0[r * P + p].as_ptr().cast()) };
            }
        }
    }
    let (mut w, mut at) = (codes.as_ptr(), x.as_ptr());
    for _ in 0..steps {
        let mut code = [_mm512_setzero_si512(); P];
        for p in 0..P {
            // SAFETY: there are P lines for each step.
            code[p] = unsafe { _mm512_load_si512(w.add(p).cast()) };
        }
        for r in 0..R {
            // SAFETY: the assertion has seen that there are R words for each step.
            let four = _mm512_set1_epi32(unsafe { *at.add(r) } as i32);
            for p in 0..P {
                acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], code[p], four);
            }
        }
        // SAFETY: as above; after the last step both point to the end.
        (w, at) = unsafe { (w.add(P), at.add(R)) };
    }
    for r in 0..R {
        for p in 0..P {
            // SAFETY: an entry of the tile has sixteen sums.
            unsafe { _mm512_storeu_si512(out.0[r * P + p].as_mut_ptr().cast(), acc[r][p]) };
        }
    }
}

/// Words ahead of the loop that are fetched: the hardware's own prefetch stops at the end of a page.
const AHEAD: usize = 1024;

/// One row of `x`: a sum for each code of a word, because one sum would wait for itself.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "closures would lose the target features")]
fn vector<const P: usize, const FIVE: bool>(w: &[u32], row: usize, x: &[u32], out: &mut Tile) {
    check::<P, 1, FIVE>(w, row, x);
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
                // SAFETY: `check` has seen that `x` has a word for each of `digits · row` steps.
                let four = unsafe { *x.as_ptr().add(digits * i + s) };
                acc[s] = _mm512_dpbusd_epi32(acc[s], codes, _mm512_set1_epi32(four as i32));
            }
        }
        let mut sum = acc[0];
        for s in 1..digits {
            sum = _mm512_add_epi32(sum, acc[s]);
        }
        // SAFETY: an entry of the tile has sixteen sums.
        unsafe { _mm512_storeu_si512(out.0[p].as_mut_ptr().cast(), sum) };
    }
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
