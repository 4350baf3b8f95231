//! CPU kernels of the forward row: tiles of queries for many tokens, dot products for few.
//!
//! A few tokens (the rows of a batch that decodes, or of a draft) are computed one by one. A batch's rows
//! see different keys, which tiles would multiply for all of them; and a row gives the same bits however
//! many stand beside it.

use super::tile::{Cache, KEYS, ROWS, gather, multiply_add, padded_columns, padded_rows, transpose};
use super::{Attention, NOTHING};
use crate::cpu::parallel;
use crate::op::Args;
use crate::cpu::math::exp;
use std::ops::Range;

/// Tokens that are computed one by one.
const FEW: u32 = 16;

pub(super) fn forward(p: &Attention, mut args: Args<'_>) {
    let (h, d, shared) = (p.h as usize, p.d as usize, p.shared());
    let (q, span) = (args.read::<f32>(0), args.read::<u32>(3));
    let (k, v) = (Cache::of(&args, 1), Cache::of(&args, 2));
    let (o, lse) = (args.write::<f32>(4), args.write::<f32>(5));
    if p.m <= FEW {
        let (m, g) = (p.m as usize, p.g as usize);
        let keys: usize = (0..m).map(|i| p.keys(span, i).len()).sum();
        let work = 2 * keys.div_ceil(m) * shared * d;
        parallel::rows2(o, shared * d, lse, shared, work, |at, o, lse| {
            decode(p, &q[at * shared * d..], k, v, at % g, p.keys(span, at / g), o, lse);
        });
        return;
    }
    let tokens = (ROWS / shared).max(1);
    let work = 2 * tokens * h * d * p.t as usize;
    parallel::rows2(o, tokens * h * d, lse, tokens * h, work, |block, o, lse| {
        let queries = Queries::new(p, span, block * tokens..(block * tokens + tokens).min(p.m as usize));
        let mut scratch = Scratch::new(queries.rows(), d);
        for kv in 0..p.g as usize {
            scratch.run(&queries, q, k, v, kv);
            scratch.store(&queries, kv, o, lse);
        }
    });
}

/// A block of query tokens; its rows are (token, head that shares the key-value head).
pub(crate) struct Queries<'a> {
    p: &'a Attention,
    span: &'a [u32],
    tokens: Range<usize>,
}

impl<'a> Queries<'a> {
    /// The block of these tokens.
    pub(crate) fn new(p: &'a Attention, span: &'a [u32], tokens: Range<usize>) -> Self {
        Queries { p, span, tokens }
    }

    /// Rows without padding.
    pub(crate) fn rows(&self) -> usize {
        self.tokens.len() * self.p.shared()
    }

    /// Index of row `r` in `[m, h]`.
    pub(crate) fn index(&self, r: usize, kv: usize) -> usize {
        let shared = self.p.shared();
        (self.tokens.start + r / shared) * self.p.h as usize + kv * shared + r % shared
    }

    /// Keys that row `r` sees.
    pub(crate) fn keys(&self, r: usize) -> Range<usize> {
        self.p.keys(self.span, self.tokens.start + r / self.p.shared())
    }

    /// From the first to the last key that any row sees.
    pub(crate) fn all_keys(&self) -> Range<usize> {
        let seen = || self.tokens.clone().map(|i| self.p.keys(self.span, i)).filter(|keys| !keys.is_empty());
        let first = seen().map(|keys| keys.start).min().unwrap_or(0);
        first..seen().map(|keys| keys.end).max().unwrap_or(0)
    }

    /// Which keys of a tile at least one row sees.
    pub(crate) fn seen(&self, first: usize) -> [bool; KEYS] {
        let mut seen = [false; KEYS];
        for i in self.tokens.clone() {
            let keys = within(self.p.keys(self.span, i), first);
            seen[keys].fill(true);
        }
        seen
    }

    /// Row `r` of `x[m,h,d]`, nothing past the last row.
    pub(crate) fn row<'x>(&self, x: &'x [f32], r: usize, kv: usize) -> Option<&'x [f32]> {
        let d = self.p.d as usize;
        (r < self.rows()).then(|| &x[self.index(r, kv) * d..][..d])
    }
}

/// A range of keys as positions in the tile that begins at `first`.
pub(crate) fn within(keys: Range<usize>, first: usize) -> Range<usize> {
    let at = |key: usize| key.saturating_sub(first).min(KEYS);
    at(keys.start)..at(keys.end).max(at(keys.start))
}

/// Fills a `KEYS`-row tile with the keys from `first` on that are seen; others become zero.
pub(crate) fn gather_keys(tile: &mut [f32], p: &Attention, cache: Cache<'_>, kv: usize, first: usize, seen: &[bool; KEYS]) {
    let (d, g) = (p.d as usize, p.g as usize);
    let mut buffer = vec![0f32; d];
    for (r, out) in tile.chunks_exact_mut(padded_columns(d)).enumerate() {
        if seen[r] {
            out[..d].copy_from_slice(cache.row(((first + r) * g + kv) * d, d, &mut buffer));
            out[d..].fill(0.0);
        } else {
            out.fill(0.0);
        }
    }
}

/// Working memory for a block of queries and one key-value head.
struct Scratch {
    d: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    turned: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
    most: Vec<f32>,
    total: Vec<f32>,
}

impl Scratch {
    fn new(rows: usize, d: usize) -> Self {
        let (rows, wide) = (padded_rows(rows), padded_columns(d));
        Scratch {
            d,
            queries: vec![0.0; rows * d],
            keys: vec![0.0; KEYS * wide],
            turned: vec![0.0; d * KEYS],
            scores: vec![0.0; rows * KEYS],
            out: vec![0.0; rows * wide],
            most: vec![0.0; rows],
            total: vec![0.0; rows],
        }
    }

    fn run(&mut self, queries: &Queries<'_>, q: &[f32], k: Cache<'_>, v: Cache<'_>, kv: usize) {
        let wide = padded_columns(self.d);
        gather(&mut self.queries, self.d, |r| queries.row(q, r, kv));
        self.out.fill(0.0);
        self.most.fill(NOTHING);
        self.total.fill(0.0);
        let all = queries.all_keys();
        for first in all.step_by(KEYS) {
            let seen = queries.seen(first);
            gather_keys(&mut self.keys, queries.p, k, kv, first, &seen);
            transpose(&mut self.turned, &self.keys, wide);
            self.scores.fill(0.0);
            multiply_add(&mut self.scores, &self.queries, &self.turned, self.d, KEYS);
            for (r, scores) in self.scores.chunks_exact_mut(KEYS).enumerate() {
                let mine = if r < queries.rows() { within(queries.keys(r), first) } else { 0..0 };
                scores[..mine.start].fill(0.0);
                scores[mine.end..].fill(0.0);
                let shrink = online(&mut scores[mine], queries.p.scale, &mut self.most[r], &mut self.total[r]);
                if shrink != 1.0 {
                    self.out[r * wide..(r + 1) * wide].iter_mut().for_each(|o| *o *= shrink);
                }
            }
            gather_keys(&mut self.keys, queries.p, v, kv, first, &seen);
            multiply_add(&mut self.out, &self.scores, &self.keys, KEYS, wide);
        }
    }

    fn store(&self, queries: &Queries<'_>, kv: usize, o: &mut [f32], lse: &mut [f32]) {
        let (d, wide) = (self.d, padded_columns(self.d));
        let base = queries.tokens.start * queries.p.h as usize;
        for r in 0..queries.rows() {
            let at = queries.index(r, kv) - base;
            lse[at] = finish(&mut o[at * d..(at + 1) * d], &self.out[r * wide..], self.most[r], self.total[r]);
        }
    }
}

/// Turns scores into weights `exp(scale·s − most)` with the running maximum and sum brought up to
/// date; returns the factor for what was summed before.
fn online(scores: &mut [f32], scale: f32, most: &mut f32, total: &mut f32) -> f32 {
    if scores.is_empty() {
        return 1.0;
    }
    let mut lanes = [*most; 16];
    let (whole, rest) = scores.as_chunks_mut::<16>();
    for chunk in whole {
        for (s, lane) in chunk.iter_mut().zip(&mut lanes) {
            *s *= scale;
            *lane = if *s > *lane { *s } else { *lane };
        }
    }
    for (s, lane) in rest.iter_mut().zip(&mut lanes) {
        *s *= scale;
        *lane = if *s > *lane { *s } else { *lane };
    }
    let new = lanes.into_iter().fold(*most, f32::max);
    for s in scores.iter_mut() {
        *s = exp(*s - new);
    }
    let shrink = exp(*most - new);
    *total = *total * shrink + parallel::sum(scores.len(), |i| scores[i]);
    *most = new;
    shrink
}

/// Divides by the sum of the weights and returns the logarithm of that sum.
fn finish(o: &mut [f32], sums: &[f32], most: f32, total: f32) -> f32 {
    if total == 0.0 {
        o.fill(0.0);
        return NOTHING;
    }
    for (o, s) in o.iter_mut().zip(sums) {
        *o = s / total;
    }
    most + total.ln()
}

/// One token and key-value head: every key and value is read once for the query heads that share it.
#[expect(clippy::too_many_arguments, reason = "operands and results of one kernel")]
fn decode(
    p: &Attention,
    q: &[f32],
    k: Cache<'_>,
    v: Cache<'_>,
    kv: usize,
    keys: Range<usize>,
    o: &mut [f32],
    lse: &mut [f32],
) {
    let (d, g, shared) = (p.d as usize, p.g as usize, p.shared());
    let (mut buffer, mut out) = (vec![0f32; d], vec![0f32; shared * d]);
    let mut scores = vec![0f32; shared * KEYS];
    let (mut most, mut total) = (vec![NOTHING; shared], vec![0f32; shared]);
    for first in keys.clone().step_by(KEYS) {
        let count = KEYS.min(keys.end - first);
        for key in 0..count {
            let row = k.row(((first + key) * g + kv) * d, d, &mut buffer);
            for (q, scores) in q.chunks_exact(d).zip(scores.chunks_exact_mut(KEYS)) {
                scores[key] = parallel::sum(d, |l| q[l] * row[l]);
            }
        }
        for head in 0..shared {
            let scores = &mut scores[head * KEYS..][..count];
            let shrink = online(scores, p.scale, &mut most[head], &mut total[head]);
            out[head * d..(head + 1) * d].iter_mut().for_each(|o| *o *= shrink);
        }
        for key in 0..count {
            let row = v.row(((first + key) * g + kv) * d, d, &mut buffer);
            for (out, scores) in out.chunks_exact_mut(d).zip(scores.chunks_exact(KEYS)) {
                for (out, v) in out.iter_mut().zip(row) {
                    *out += scores[key] * v;
                }
            }
        }
    }
    for head in 0..shared {
        let row = head * d..(head + 1) * d;
        lse[head] = finish(&mut o[row.clone()], &out[row], most[head], total[head]);
    }
}
