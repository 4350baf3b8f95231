//! Instruction sets, and the plain loop.

use crate::dtype::INTERLEAVED;
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

    /// Sums of codes times activations for the first `wide` panels of `w`, each of `row` words a row, and
    /// the first rows of `x`; gives how many rows it took.
    #[allow(clippy::too_many_arguments, reason = "one call in one place")]
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
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(path) => path.tile(five, w, row, wide, x, stride, out),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(path) => path.tile(five, w, row, x, stride, out),
            #[cfg(target_arch = "aarch64")]
            Path::Dot(path) => path.tile(five, w, row, x, stride, out),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => super::arm::neon(five, w, row, x, stride, out),
            Path::Portable => portable(five, w, row, x, out),
        }
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

fn portable(five: bool, w: &[u32], row: usize, x: &[i8], out: &mut Tile) -> usize {
    let mut sums = [0i32; INTERLEAVED];
    let digits = if five { 5 } else { 4 };
    let words = w[..row * INTERLEAVED].as_chunks::<INTERLEAVED>().0;
    for (words, x) in words.iter().zip(x.chunks_exact(4 * digits)) {
        for (sum, word) in sums.iter_mut().zip(words) {
            for (j, mut byte) in word.to_le_bytes().into_iter().enumerate() {
                for x in x[j..].iter().step_by(4) {
                    let code = if five { (u16::from(byte) * 3 >> 8) as u8 } else { byte & 3 };
                    byte = if five { byte.wrapping_mul(3) } else { byte >> 2 };
                    *sum += i32::from(code) * i32::from(*x);
                }
            }
        }
    }
    out.0[0] = sums;
    1
}
