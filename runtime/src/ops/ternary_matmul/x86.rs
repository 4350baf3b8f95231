//! Sums of ternary codes times int8 activations with AVX-512 VNNI and AVX2.
//!
//! See `cpu.rs` for the order of the activations. A tile is up to four rows of `w` by up to four
//! rows of `x`: codes are unpacked in registers, and each vector of them meets every row of `x`.

use super::cpu::{HEIGHT, Tile};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW and VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

/// Proof that the CPU has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        all.then_some(Avx512(()))
    }

    pub(super) fn tile(self, w: [&[u8]; HEIGHT], x: &[i8], stride: usize, out: &mut Tile) -> usize {
        // SAFETY: `self` exists only where `detect` found the features.
        unsafe {
            match x.len() / stride {
                0 | 1 => avx512::<1>(w, x, stride, out),
                2 | 3 => avx512::<2>(w, x, stride, out),
                _ => avx512::<4>(w, x, stride, out),
            }
        }
    }
}

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Avx2(()))
    }

    pub(super) fn tile(self, w: [&[u8]; HEIGHT], x: &[i8], stride: usize, out: &mut Tile) -> usize {
        // SAFETY: `self` exists only where `detect` found the feature.
        unsafe {
            match x.len() / stride {
                0 | 1 => avx2::<1>(w, x, stride, out),
                _ => avx2::<2>(w, x, stride, out),
            }
        }
    }
}

/// Panics if a row of `w` is not as long as the first, or `x` lacks `C` rows for all blocks of `w`.
fn check(w: [&[u8]; HEIGHT], x: &[i8], stride: usize, rows: usize, lanes: usize) {
    assert!(w.iter().all(|row| row.len() == w[0].len()));
    assert!(w[0].len().div_ceil(lanes) * 4 * lanes <= stride && rows * stride <= x.len());
}

#[allow(clippy::needless_range_loop, reason = "two arrays are indexed, and closures would lose the target features")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn avx512<const C: usize>(w: [&[u8]; HEIGHT], x: &[i8], stride: usize, out: &mut Tile) -> usize {
    check(w, x, stride, C, 64);
    let bytes = w[0].len();
    let low = _mm512_set1_epi8(3);
    let mut acc = [[_mm512_setzero_si512(); C]; HEIGHT];
    for at in (0..bytes).step_by(64) {
        let left = bytes - at;
        let mask = if left < 64 { (1 << left) - 1 } else { u64::MAX };
        let mut packed = [low; HEIGHT];
        for (packed, w) in packed.iter_mut().zip(w) {
            // SAFETY: `at` is within the row, and the mask leaves out what lies past its end.
            *packed = unsafe { _mm512_maskz_loadu_epi8(mask, w.as_ptr().add(at).cast()) };
            prefetch(w, at);
        }
        for r in 0..4 {
            let mut codes = packed;
            for (codes, packed) in codes.iter_mut().zip(&mut packed) {
                *codes = _mm512_and_si512(*packed, low);
                *packed = _mm512_srli_epi16::<2>(*packed);
            }
            for c in 0..C {
                // SAFETY: `check` has seen that C rows of `x` hold four vectors for each of `w`.
                let x = unsafe { _mm512_loadu_si512(x.as_ptr().add(c * stride + 4 * at + 64 * r).cast()) };
                for j in 0..HEIGHT {
                    acc[j][c] = _mm512_dpbusd_epi32(acc[j][c], codes[j], x);
                }
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = _mm512_reduce_add_epi32(acc);
        }
    }
    C
}

/// Vectors of 16-bit sums hold 16 blocks: `16 · 4 · 2 · 2 · 128 = 2^15`, of which only the negative
/// side (codes of -128) is reached.
#[allow(clippy::needless_range_loop, reason = "two arrays are indexed, and closures would lose the target features")]
#[target_feature(enable = "avx2")]
fn avx2<const C: usize>(w: [&[u8]; HEIGHT], x: &[i8], stride: usize, out: &mut Tile) -> usize {
    const BLOCKS: usize = 16;
    check(w, x, stride, C, 32);
    let bytes = w[0].len();
    let (low, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
    let mut acc = [[_mm256_setzero_si256(); C]; HEIGHT];
    for first in (0..bytes).step_by(32 * BLOCKS) {
        let mut short = [[_mm256_setzero_si256(); C]; HEIGHT];
        for at in (first..bytes.min(first + 32 * BLOCKS)).step_by(32) {
            let mut packed = [low; HEIGHT];
            for (packed, w) in packed.iter_mut().zip(w) {
                *packed = load_tail(&w[at..]);
                prefetch(w, at);
            }
            for r in 0..4 {
                let mut codes = packed;
                for (codes, packed) in codes.iter_mut().zip(&mut packed) {
                    *codes = _mm256_and_si256(*packed, low);
                    *packed = _mm256_srli_epi16::<2>(*packed);
                }
                for c in 0..C {
                    // SAFETY: `check` has seen that C rows of `x` hold four vectors for each of `w`.
                    let x = unsafe { _mm256_loadu_si256(x.as_ptr().add(c * stride + 4 * at + 32 * r).cast()) };
                    for j in 0..HEIGHT {
                        short[j][c] = _mm256_add_epi16(short[j][c], _mm256_maddubs_epi16(codes[j], x));
                    }
                }
            }
        }
        for (acc, short) in acc.iter_mut().zip(short) {
            for (acc, short) in acc.iter_mut().zip(short) {
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(short, ones));
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        for (out, acc) in out.iter_mut().zip(acc) {
            let mut lanes = [0i32; 8];
            // SAFETY: the array has the vector's 32 bytes.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), acc) };
            *out = lanes.into_iter().sum();
        }
    }
    C
}

/// Asks for the same place of the tile after the next: rows are short, and the hardware's own
/// prefetch starts anew with each.
#[inline(always)]
fn prefetch(w: &[u8], at: usize) {
    let ahead = w.as_ptr().wrapping_add(2 * HEIGHT * w.len() + at);
    // SAFETY: a prefetch has no effect but on caches, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
}

/// Up to 32 bytes, zeros past the end.
#[target_feature(enable = "avx2")]
fn load_tail(bytes: &[u8]) -> __m256i {
    if bytes.len() >= 32 {
        // SAFETY: there are 32 bytes.
        return unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    }
    let mut padded = [0u8; 32];
    padded[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the array has 32 bytes.
    unsafe { _mm256_loadu_si256(padded.as_ptr().cast()) }
}
