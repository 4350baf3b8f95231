//! Products of ternary weights with int8 activations on the CPU.
//!
//! Weights lie in panels of sixteen rows (`t2x16`, `t1x16`, see [`crate::dtype`]): a vector of 64 bytes
//! holds the same columns of all sixteen, so one stream of memory feeds the loop, four activations
//! are broadcast to all lanes, and each lane adds up one row. Codes 0 to 2 go into the products as
//! they are, and the sum of the activations is subtracted once a row. Sums are integers: any order,
//! any instruction set and any number of threads gives the same bits.
//!
//! Row-major weights (`t2`, `t1`) are brought into panels first, once a call.

#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod arm;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
mod path;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use crate::cpu::parallel;
use crate::dtype::{DType, INTERLEAVED};
use crate::layout::{pack_ternary, ternary_words};
pub(crate) use path::Path;
use path::{Tile, WIDTH};
use std::borrow::Cow;

/// Rows of `x` that a task takes where it takes rows of `y`: whole tiles, and enough of them that
/// reading the weights anew for each task costs little.
const BLOCK: usize = 8 * WIDTH;

/// A ternary matrix in panels.
pub(crate) struct Weights<'a> {
    words: Cow<'a, [u32]>,
    five: bool,
    /// Rows.
    pub(crate) n: usize,
    /// Words of a row.
    row: usize,
}

impl<'a> Weights<'a> {
    /// `words` as stored for `n` rows of `k` codes of a ternary dtype.
    pub(crate) fn new(words: &'a [u32], dtype: DType, n: usize, k: usize) -> Self {
        let (words, dtype) = match dtype {
            DType::T2 => (Cow::Owned(panels(words, n, k)), DType::T2x16),
            DType::T1 => (Cow::Owned(panels_of_trits(words, n, k)), DType::T1x16),
            _ => (Cow::Borrowed(words), dtype),
        };
        Weights { words, five: dtype == DType::T1x16, n, row: dtype.row_bytes(k) / 4 }
    }

    /// Panel `p` and those after it.
    fn panels_from(&self, p: usize) -> &[u32] {
        &self.words[p * INTERLEAVED * self.row..]
    }

    /// Activations that a row of words meets.
    fn reach(&self) -> usize {
        self.row * if self.five { 20 } else { 16 }
    }
}

fn panels(t2: &[u32], n: usize, k: usize) -> Vec<u32> {
    let group = INTERLEAVED * k.div_ceil(16);
    let mut words = vec![0; ternary_words(DType::T2x16, n, k)];
    parallel::rows(&mut words, group, group, |p, panel| {
        let rows = &t2[p * group..t2.len().min((p + 1) * group)];
        pack_ternary(DType::T2x16, rows, k, panel);
    });
    words
}

/// Words of `t1` and `t1x16` are the same, so they only change places.
fn panels_of_trits(t1: &[u32], n: usize, k: usize) -> Vec<u32> {
    let row = DType::T1.row_bytes(k) / 4;
    let mut words = vec![0x8080_8080; ternary_words(DType::T1x16, n, k)];
    parallel::rows(&mut words, INTERLEAVED * row, INTERLEAVED * row, |p, panel| {
        for (r, from) in t1.chunks_exact(row).skip(p * INTERLEAVED).take(INTERLEAVED).enumerate() {
            panel[r..].iter_mut().step_by(INTERLEAVED).zip(from).for_each(|(to, &word)| *to = word);
        }
    });
    words
}

/// Rows of int8 activations with their sums.
pub(crate) struct Activations<'a> {
    codes: Cow<'a, [i8]>,
    stride: usize,
    sums: Vec<i32>,
}

impl<'a> Activations<'a> {
    /// `words` as stored for rows of `k` codes; zeros are added where a row of `w` reaches further.
    pub(crate) fn new(path: Path, words: &'a [u32], k: usize, w: &Weights<'_>) -> Self {
        let stored = DType::I8.row_bytes(k);
        let codes: &[i8] = bytemuck::cast_slice(words);
        let (codes, stride) = if w.reach() <= stored {
            (Cow::Borrowed(codes), stored)
        } else {
            let mut padded = vec![0; codes.len() / stored * w.reach()];
            let rows = padded.chunks_exact_mut(w.reach()).zip(codes.chunks_exact(stored));
            rows.for_each(|(to, from)| to[..stored].copy_from_slice(from));
            (Cow::Owned(padded), w.reach())
        };
        let sums = codes.chunks_exact(stride).map(|x| path.sum(x)).collect();
        Activations { codes, stride, sums }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.sums.len()
    }
}

/// Calls `put(i, j, sums)` with the sums of row `i` of `x` and rows `j..` of `w`, for whole panels
/// `panels` and rows `rows`; the last panel's sums may reach past the last row.
fn sums(
    path: Path,
    w: &Weights<'_>,
    x: &Activations<'_>,
    panels: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
    mut put: impl FnMut(usize, usize, &[i32; INTERLEAVED]),
) {
    let mut tile = Tile::default();
    let mut p = panels.start;
    while p < panels.end {
        let wide = (panels.end - p).min(path.panels());
        let mut i = rows.start;
        while i < rows.end {
            let x_rows = &x.codes[i * x.stride..rows.end * x.stride];
            let tall = path.tile(w.five, w.panels_from(p), w.row, wide, x_rows, x.stride, &mut tile);
            for r in 0..tall {
                for q in 0..wide {
                    let sum = &mut tile.0[r * wide + q];
                    sum.iter_mut().for_each(|s| *s -= x.sums[i + r]);
                    put(i + r, (p + q) * INTERLEAVED, sum);
                }
            }
            i += tall;
        }
        p += wide;
    }
}

/// Where a product goes: columns `n0..n0 + n` of rows of `l`.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    /// First column.
    pub(crate) n0: usize,
    /// Columns of a row of `y`.
    pub(crate) l: usize,
}

/// `y_ij = sum_ij · (xs_i · ws(j))`, where `scale(j)` is the scale of the sixteen rows of `w` from `j` on or, where
/// they differ, of each of them.
pub(crate) fn product(
    path: Path,
    w: &Weights<'_>,
    x: &Activations<'_>,
    xs: &[f32],
    scale: impl Fn(usize) -> f32 + Sync,
    to: Columns,
    y: &mut [f32],
) {
    let (m, n, panels) = (x.rows(), w.n, w.n.div_ceil(INTERLEAVED));
    let store = |i: usize, j: usize, sums: &[i32; INTERLEAVED], y: &mut [f32]| {
        for (q, (y, &sum)) in y.iter_mut().zip(sums).enumerate() {
            *y = sum as f32 * (xs[i] * scale(j + q));
        }
    };
    let work = w.row * INTERLEAVED;
    if m == 1 {
        // Tasks of a few hundred kilobytes of weights, or fewer where there are many threads.
        let least = (64 * 1024 / work).max(1);
        let chunk = panels.div_ceil(8 * parallel::threads()).clamp(1, least.max(panels / 64));
        parallel::rows(&mut y[to.n0..to.n0 + n], chunk * INTERLEAVED, chunk * work, |c, y| {
            let first = c * chunk;
            let last = first + y.len().div_ceil(INTERLEAVED);
            sums(path, w, x, first..last, 0..1, |i, j, sums| {
                let at = j - first * INTERLEAVED;
                let end = y.len().min(at + INTERLEAVED);
                store(i, j, sums, &mut y[at..end]);
            });
        });
    } else if m >= BLOCK * parallel::threads() {
        // Each task takes rows of y, so the packed weights are read once a block.
        parallel::rows(y, BLOCK * to.l, BLOCK * panels * work, |block, y| {
            let rows = block * BLOCK..(block * BLOCK + y.len() / to.l);
            sums(path, w, x, 0..panels, rows.clone(), |i, j, sums| {
                let row = &mut y[(i - rows.start) * to.l + to.n0..][..n];
                let end = n.min(j + INTERLEAVED);
                store(i, j, sums, &mut row[j..end]);
            });
        });
    } else {
        // Each task takes rows of w, that is columns of y: written by panels, then put in place.
        let mut columns = vec![0.0; panels * m * INTERLEAVED];
        let pair = 2 * m * INTERLEAVED;
        parallel::rows(&mut columns, pair, 2 * work * m, |c, part| {
            let last = panels.min(2 * c + 2);
            sums(path, w, x, 2 * c..last, 0..m, |i, j, sums| {
                let at = (j / INTERLEAVED - 2 * c) * m * INTERLEAVED + i * INTERLEAVED;
                store(i, j, sums, &mut part[at..at + INTERLEAVED]);
            });
        });
        for (i, y) in y.chunks_exact_mut(to.l).enumerate() {
            for (p, y) in y[to.n0..to.n0 + n].chunks_mut(INTERLEAVED).enumerate() {
                let at = (p * m + i) * INTERLEAVED;
                y.copy_from_slice(&columns[at..at + y.len()]);
            }
        }
    }
}
