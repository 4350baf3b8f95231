//! Scores and weighted sums over keys and values that are stored as floats, for query heads that share them.
//!
//! Queries lie as `[vector][head][lane]`, zeros past the head's width, results of sums in the same way.

use super::simd::{Element, Simd, Task};
use super::{SCORES, part_of};

/// Rows of one head: `width` elements each, `step` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, E> {
    /// From the first row's first element on.
    pub(super) data: &'a [E],
    /// Elements from row to row.
    pub(super) step: usize,
    /// Rows.
    pub(super) count: usize,
    /// Elements of a row.
    pub(super) width: usize,
    /// Where the rows lie that are wanted next.
    pub(super) ahead: *const E,
}

/// `scores[head][row] = query[head] · row`; rows are taken by four, so up to three scores past the last are written.
pub(super) struct Scores<'a, E> {
    pub(super) rows: Rows<'a, E>,
    pub(super) query: &'a [f32],
    pub(super) heads: usize,
    pub(super) scores: &'a mut [f32],
}

/// `out[head] += weights[head][row] · row`.
pub(super) struct Weigh<'a, E> {
    pub(super) rows: Rows<'a, E>,
    pub(super) weights: &'a [f32],
    pub(super) heads: usize,
    pub(super) out: &'a mut [f32],
}

impl<E: Element> Task for Scores<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.heads {
            1 => scores::<S, E, 1>(s, &mut self),
            2 => scores::<S, E, 2>(s, &mut self),
            3 if S::HEADS > 2 => scores::<S, E, 3>(s, &mut self),
            4 if S::HEADS > 2 => scores::<S, E, 4>(s, &mut self),
            _ => debug_assert!(false, "{} heads at once", self.heads),
        }
    }
}

impl<E: Element> Task for Weigh<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.heads {
            1 => weigh::<S, E, 1>(s, &mut self),
            2 => weigh::<S, E, 2>(s, &mut self),
            3 if S::HEADS > 2 => weigh::<S, E, 3>(s, &mut self),
            4 if S::HEADS > 2 => weigh::<S, E, 4>(s, &mut self),
            _ => debug_assert!(false, "{} heads at once", self.heads),
        }
    }
}

impl<E> Rows<'_, E> {
    /// Fetches `count` elements from `first` on of the row that is wanted after row `row`.
    #[inline(always)]
    fn fetch<S: Simd>(&self, s: S, row: usize, first: usize, count: usize) {
        let line = 64 / size_of::<E>();
        let mut at = first;
        while at < first + count {
            s.fetch(self.ahead.wrapping_add(row * self.step + at).cast(), false);
            at += line;
        }
    }
}

/// The elements from `first` on of a row that ends before a vector does; zeros past its end.
#[inline(always)]
fn tail<S: Simd, E: Element>(s: S, row: &[E], first: usize) -> S::F {
    let mut all = [E::default(); 16];
    let rest = &row[first..];
    all[..rest.len()].copy_from_slice(rest);
    E::load(s, &all)
}

#[inline(always)]
fn scores<S: Simd, E: Element, const H: usize>(s: S, t: &mut Scores<'_, E>) {
    let Rows { data, step, count, width, .. } = t.rows;
    let whole = width / S::LANES;
    let mut first = 0;
    while first < count {
        let mut rows: [&[E]; 4] = [&[]; 4];
        for (j, row) in rows.iter_mut().enumerate() {
            *row = &data[(first + j).min(count - 1) * step..][..width];
            t.rows.fetch(s, first + j, 0, width);
        }
        let mut sums = [[s.splat(0.0); 4]; H];
        for (p, query) in t.query.chunks_exact(H * S::LANES).enumerate() {
            let mut keys = [s.splat(0.0); 4];
            for (key, row) in keys.iter_mut().zip(&rows) {
                *key = if p < whole { E::load(s, &row[p * S::LANES..]) } else { tail(s, row, p * S::LANES) };
            }
            for (h, sums) in sums.iter_mut().enumerate() {
                let query = s.load(&query[h * S::LANES..]);
                for (sum, &key) in sums.iter_mut().zip(&keys) {
                    *sum = s.fma(query, key, *sum);
                }
            }
        }
        for (h, &sums) in sums.iter().enumerate() {
            t.scores[h * SCORES + first..][..4].copy_from_slice(&s.totals(sums));
        }
        first += 4;
    }
}

#[inline(always)]
fn weigh<S: Simd, E: Element, const H: usize>(s: S, t: &mut Weigh<'_, E>) {
    let vectors = t.rows.width / S::LANES;
    let mut p = 0;
    while p + 4 <= vectors {
        block::<S, E, H, 4>(s, t, p);
        p += 4;
    }
    while p < vectors {
        block::<S, E, H, 1>(s, t, p);
        p += 1;
    }
    if !t.rows.width.is_multiple_of(S::LANES) {
        last::<S, E, H>(s, t, p);
    }
}

/// `B` vectors from vector `p` on of all rows.
#[inline(always)]
fn block<S: Simd, E: Element, const H: usize, const B: usize>(s: S, t: &mut Weigh<'_, E>, p: usize) {
    let out = part_of(t.out, p * H * S::LANES, B * H * S::LANES);
    let mut sums = [[s.splat(0.0); H]; B];
    for (b, sums) in sums.iter_mut().enumerate() {
        for (h, sum) in sums.iter_mut().enumerate() {
            *sum = s.load(&out[(b * H + h) * S::LANES..]);
        }
    }
    let Rows { data, step, count, .. } = t.rows;
    for row in 0..count {
        t.rows.fetch(s, row, p * S::LANES, B * S::LANES);
        let values = &data[row * step + p * S::LANES..][..B * S::LANES];
        let mut weights = [s.splat(0.0); H];
        for (h, weight) in weights.iter_mut().enumerate() {
            *weight = s.splat(t.weights[h * SCORES + row]);
        }
        for (b, sums) in sums.iter_mut().enumerate() {
            let value = E::load(s, &values[b * S::LANES..]);
            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                *sum = s.fma(weight, value, *sum);
            }
        }
    }
    for (b, sums) in sums.iter().enumerate() {
        for (h, &sum) in sums.iter().enumerate() {
            s.store(sum, &mut out[(b * H + h) * S::LANES..]);
        }
    }
}

/// The vector of which only a part belongs to the row.
#[inline(always)]
fn last<S: Simd, E: Element, const H: usize>(s: S, t: &mut Weigh<'_, E>, p: usize) {
    let out = part_of(t.out, p * H * S::LANES, H * S::LANES);
    for row in 0..t.rows.count {
        let value = tail(s, &t.rows.data[row * t.rows.step..][..t.rows.width], p * S::LANES);
        for h in 0..H {
            let out = &mut out[h * S::LANES..];
            let sum = s.fma(s.splat(t.weights[h * SCORES + row]), value, s.load(out));
            s.store(sum, out);
        }
    }
}
