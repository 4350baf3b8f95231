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

/// Rows of `x` that meet unpacked codes before these are made anew.
const BLOCK: usize = TILES * WIDTH;
/// Tiles of a block.
const TILES: usize = 8;

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

/// Rows of int8 activations with their sums, in tiles: a tile of `R` rows holds four codes of each row side by
/// side, so that a kernel goes through all of them with one address.
pub(crate) struct Activations<'a> {
    tiles: Cow<'a, [u32]>,
    /// Words of a row, zeros included where a row of `w` reaches further than one of `x`.
    row: usize,
    sums: Vec<i32>,
}

impl<'a> Activations<'a> {
    /// `words` as stored for rows of `k` codes.
    pub(crate) fn new(path: Path, words: &'a [u32], k: usize, w: &Weights<'_>) -> Self {
        let stored = DType::I8.row_bytes(k) / 4;
        let row = stored.max(w.reach() / 4);
        let m = words.len() / stored;
        let sums = words.chunks_exact(stored).map(|x| path.sum(bytemuck::cast_slice(x))).collect();
        if m == 1 && row == stored {
            return Activations { tiles: Cow::Borrowed(words), row, sums };
        }
        let mut tiles = vec![0; m * row];
        parallel::rows(&mut tiles, WIDTH * row, WIDTH * row, |t, part| {
            let mut first = t * WIDTH;
            let last = m.min(first + WIDTH);
            let mut part = part;
            while first < last {
                let height = path.height(last - first);
                let (tile, rest) = std::mem::take(&mut part).split_at_mut(height * row);
                for (r, x) in words[first * stored..].chunks_exact(stored).take(height).enumerate() {
                    tile[r..].iter_mut().step_by(height).zip(x).for_each(|(to, &word)| *to = word);
                }
                (part, first) = (rest, first + height);
            }
        });
        Activations { tiles: Cow::Owned(tiles), row, sums }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.sums.len()
    }

    /// Hands over a tile of rows from `i` on and panels from `p` on: codes are 0 to 2, so the sum of the
    /// activations comes off.
    fn put(
        &self,
        tile: &mut Tile,
        i: usize,
        tall: usize,
        p: usize,
        wide: usize,
        put: &mut impl FnMut(usize, usize, &[i32; INTERLEAVED]),
    ) {
        for r in 0..tall {
            for q in 0..wide {
                let sums = &mut tile.0[r * wide + q];
                sums.iter_mut().for_each(|sum| *sum -= self.sums[i + r]);
                put(i + r, (p + q) * INTERLEAVED, sums);
            }
        }
    }
}

/// Calls `put(i, j, sums)` with the sums of row `i` of `x` and rows `j..` of `w`, for whole panels `panels` and rows
/// `rows`, which start at a multiple of [`WIDTH`]; the last panel's sums may reach past the last row.
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
            let tall = path.height(WIDTH.min(rows.end - i));
            let codes = &x.tiles[i * x.row..(i + tall) * x.row];
            path.tile(w.five, w.panels_from(p), w.row, wide, codes, tall, &mut tile);
            x.put(&mut tile, i, tall, p, wide, &mut put);
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

/// Turns integer sums into `y`: `sum · (xs_i · ws_j)`.
struct Scales<'a, F> {
    xs: &'a [f32],
    ws: F,
}

impl<F: Fn(usize) -> f32> Scales<'_, F> {
    /// Sums of row `i` of `x` and rows `j..` of `w`, as many as `y` takes.
    fn store(&self, i: usize, j: usize, sums: &[i32; INTERLEAVED], y: &mut [f32]) {
        // Matrices that share a tensor mostly begin at whole panels; then all sixteen have one scale.
        let (first, last) = ((self.ws)(j), (self.ws)(j + y.len().max(1) - 1));
        if let (Ok(y), true) = (<&mut [f32; INTERLEAVED]>::try_from(&mut *y), first == last) {
            let scale = self.xs[i] * first;
            y.iter_mut().zip(sums).for_each(|(y, &sum)| *y = sum as f32 * scale);
            return;
        }
        for (q, (y, &sum)) in y.iter_mut().zip(sums).enumerate() {
            *y = sum as f32 * (self.xs[i] * (self.ws)(j + q));
        }
    }
}

/// `y_ij = sum_ij · (xs_i · scale(j))`, with `scale(j)` the scale of row `j` of `w`, the same for the rows of one matrix.
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
    let scales = Scales { xs, ws: scale };
    let work = w.row * INTERLEAVED;
    if m == 1 {
        // A few tasks for each thread, so that one that is held up leaves its rest to others.
        let chunk = panels.div_ceil(8 * parallel::threads()).max(8 * 1024 / work).max(1);
        parallel::rows(&mut y[to.n0..to.n0 + n], chunk * INTERLEAVED, chunk * work, |c, y| {
            let first = c * chunk;
            let last = first + y.len().div_ceil(INTERLEAVED);
            sums(path, w, x, first..last, 0..1, |i, j, sums| {
                let at = j - first * INTERLEAVED;
                let end = y.len().min(at + INTERLEAVED);
                scales.store(i, j, sums, &mut y[at..end]);
            });
        });
    } else if m >= BLOCK / 2 * parallel::threads() {
        // Each task takes rows of y, an equal share of them for each thread, or several such shares.
        let tasks = parallel::threads() * (m / (2 * BLOCK * parallel::threads())).max(1);
        let share = m.div_ceil(tasks).next_multiple_of(WIDTH);
        parallel::rows(y, share * to.l, share * panels * work, |task, y| {
            let rows = task * share..(task * share + y.len() / to.l);
            path.many(w, x, 0..panels, rows.clone(), |i, j, sums| {
                let row = &mut y[(i - rows.start) * to.l + to.n0..][..n];
                let end = n.min(j + INTERLEAVED);
                scales.store(i, j, sums, &mut row[j..end]);
            });
        });
    } else {
        // Each task takes rows of w, that is columns of y: written by panels, then put in place.
        let mut columns = vec![0.0; panels * m * INTERLEAVED];
        let pair = 2 * m * INTERLEAVED;
        parallel::rows(&mut columns, pair, 2 * work * m, |c, part| {
            let last = panels.min(2 * c + 2);
            path.many(w, x, 2 * c..last, 0..m, |i, j, sums| {
                let at = (j / INTERLEAVED - 2 * c) * m * INTERLEAVED + i * INTERLEAVED;
                scales.store(i, j, sums, &mut part[at..at + INTERLEAVED]);
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
