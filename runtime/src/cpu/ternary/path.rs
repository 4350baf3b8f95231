//! Instruction sets, and the plain loop.

use super::{Activations, Weights, sums};
use crate::dtype::INTERLEAVED;
use std::ops::Range;
use std::sync::LazyLock;

/// Most rows of `x` in a tile.
pub(super) const WIDTH: usize = 12;

/// Sums of up to [`WIDTH`] rows of `x` with one or two panels: entry `r · panels + p` belongs to row `r` and panel `p`.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [[i32; INTERLEAVED]; 2 * WIDTH]);

/// An instruction set. A value other than `Portable` exists only where the CPU has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// `vpdpbusd` on 64 bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512(super::avx512::Avx512),
    /// `vpmaddubsw` on 32 bytes.
    #[cfg(target_arch = "x86_64")]
    Avx2(super::avx2::Avx2),
    /// `sdot` on 16 bytes.
    #[cfg(target_arch = "aarch64")]
    Dot(super::arm::Dot),
    /// `smull` on 8 bytes.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain loops.
    Portable,
}

impl Path {
    /// All that this machine has, best first.
    pub(crate) fn available() -> Vec<Path> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(super::avx512::Avx512::detect().map(Path::Avx512));
            found.extend(super::avx2::Avx2::detect().map(Path::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            found.extend(super::arm::Dot::detect().map(Path::Dot));
            found.push(Path::Neon);
        }
        found.push(Path::Portable);
        found
    }

    /// The best of them.
    pub(crate) fn best() -> Path {
        static BEST: LazyLock<Path> = LazyLock::new(|| Path::available()[0]);
        *BEST
    }

    /// Most panels in a tile.
    pub(super) fn panels(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(_) => 2,
            _ => 1,
        }
    }

    /// Rows of `x` in the next tile where `left` remain of [`WIDTH`].
    pub(super) fn height(self, left: usize) -> usize {
        let heights: &[usize] = match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(_) => &[WIDTH, 8, 4, 2],
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(_) => &[2],
            #[cfg(target_arch = "aarch64")]
            Path::Dot(_) | Path::Neon => &[4],
            Path::Portable => &[],
        };
        heights.iter().copied().find(|&height| height <= left).unwrap_or(1)
    }

    /// Sums of codes times activations for the first `wide` panels of `w`, each of `row` words a row, and a
    /// tile of `tall` rows of `x` ([`Path::height`]).
    #[allow(clippy::too_many_arguments, reason = "one call in one place")]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(super) fn tile(self, five: bool, w: &[u32], row: usize, wide: usize, x: &[u32], tall: usize, out: &mut Tile) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(path) => path.tile(five, w, row, wide, x, tall, out),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(path) => path.tile(five, w, row, x, tall, out),
            #[cfg(target_arch = "aarch64")]
            Path::Dot(path) => path.tile(five, w, row, x, tall, out),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => super::arm::neon(five, w, row, x, tall, out),
            Path::Portable => portable(five, w, row, x, out),
        }
    }

    /// As [`super::sums`], for many rows of `x`.
    pub(super) fn many(
        self,
        w: &Weights<'_>,
        x: &Activations<'_>,
        panels: Range<usize>,
        rows: Range<usize>,
        put: impl FnMut(usize, usize, &[i32; INTERLEAVED]),
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Path::Avx512(path) = self
            && rows.len() > WIDTH
        {
            return path.blocks(w, x, panels, rows, put);
        }
        sums(self, w, x, panels, rows, put);
    }

    /// Sum of a row of activations.
    pub(super) fn sum(self, x: &[i8]) -> i32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(path) => path.sum(x),
            _ => x.iter().map(|&v| i32::from(v)).sum(),
        }
    }
}

/// One panel and one row.
fn portable(five: bool, w: &[u32], row: usize, x: &[u32], out: &mut Tile) {
    let mut sums = [0i32; INTERLEAVED];
    let digits = if five { 5 } else { 4 };
    let words = w[..row * INTERLEAVED].as_chunks::<INTERLEAVED>().0;
    for (words, x) in words.iter().zip(x.chunks_exact(digits)) {
        for (sum, word) in sums.iter_mut().zip(words) {
            for (j, mut byte) in word.to_le_bytes().into_iter().enumerate() {
                for x in x {
                    let code = if five { ((u16::from(byte) * 3) >> 8) as u8 } else { byte & 3 };
                    byte = if five { byte.wrapping_mul(3) } else { byte >> 2 };
                    *sum += i32::from(code) * i32::from(x.to_le_bytes()[j] as i8);
                }
            }
        }
    }
    out.0[0] = sums;
}
