//! CPU kernels of forward attention: tiles of queries over tiles of keys.

use super::mask::Keys;
use super::tile::{KEYS, ROWS, gather, multiply_add, padded_columns, padded_rows, transpose};
use super::{Attention, NOTHING};
use crate::cpu::attention::{Sum, online};
use crate::cpu::parallel;
use crate::op::Args;
use std::ops::Range;

pub(super) fn forward(p: &Attention, mut args: Args<'_>) {
    let (h, d, shared) = (p.h as usize, p.d as usize, p.shared());
    let (q, span) = (args.read::<f32>(0), args.read::<u32>(3));
    let source = Dense { k: args.read(1), v: args.read(2), g: p.g as usize, d };
    let tokens = (ROWS / shared).max(1);
    let work = 2 * tokens * h * d * p.t as usize;
    let (o, lse) = (args.write::<f32>(4), args.write::<f32>(5));
    parallel::rows2(o, tokens * h * d, lse, tokens * h, work, |block, o, lse| {
        let queries = Queries::new(p, span, block * tokens..(block * tokens + tokens).min(p.m as usize));
        let mut scratch = Scratch::new(&queries, false);
        for kv in 0..p.g as usize {
            scratch.run(&queries, [q, q], p.scale, &source, kv);
            for r in 0..queries.rows() {
                let at = queries.index(r, kv) - block * tokens * h;
                lse[at] = scratch.row(r, &mut o[at * d..(at + 1) * d]);
            }
        }
    });
}

/// Where tiles of keys and values come from.
pub(crate) trait Source {
    /// Fills the seen rows of a tile with the keys from `first` on, or with their values; rows of the tile are
    /// `wide` elements apart, and what no key fills is zero already.
    fn fill(&self, tile: &mut [f32], wide: usize, values: bool, kv: usize, first: usize, seen: &[bool; KEYS]);
}

/// Keys and values `[t, g, d]`.
pub(crate) struct Dense<'a> {
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) g: usize,
    pub(crate) d: usize,
}

impl Source for Dense<'_> {
    fn fill(&self, tile: &mut [f32], wide: usize, values: bool, kv: usize, first: usize, seen: &[bool; KEYS]) {
        let data = if values { self.v } else { self.k };
        for (r, out) in tile.chunks_exact_mut(wide).enumerate().filter(|(r, _)| seen[*r]) {
            out[..self.d].copy_from_slice(&data[((first + r) * self.g + kv) * self.d..][..self.d]);
        }
    }
}

/// Fills a `KEYS`-row tile with the keys from `first` on that are seen, or with their values; others become zero.
pub(crate) fn fill(
    tile: &mut [f32],
    wide: usize,
    source: &impl Source,
    values: bool,
    kv: usize,
    first: usize,
    seen: &[bool; KEYS],
) {
    // Past a row's width nothing is ever written, and a source fills what is seen.
    for (row, _) in tile.chunks_exact_mut(wide).zip(seen).filter(|(_, seen)| !**seen) {
        row.fill(0.0);
    }
    source.fill(tile, wide, values, kv, first, seen);
}

/// A block of query tokens; its rows are (token, head that shares the key-value head).
pub(crate) struct Queries {
    h: usize,
    d: usize,
    shared: usize,
    tokens: Range<usize>,
    keys: Vec<Keys>,
}

impl Queries {
    /// The block of these tokens.
    pub(crate) fn new(p: &Attention, span: &[u32], tokens: Range<usize>) -> Self {
        let keys = tokens.clone().map(|i| p.visible(span, i)).collect();
        Queries::of(p.h as usize, p.d as usize, p.shared(), tokens, keys)
    }

    /// The block of these tokens, which see these keys.
    pub(crate) fn of(h: usize, d: usize, shared: usize, tokens: Range<usize>, keys: Vec<Keys>) -> Self {
        Queries { h, d, shared, tokens, keys }
    }

    /// Rows without padding.
    pub(crate) fn rows(&self) -> usize {
        self.tokens.len() * self.shared
    }

    /// Index of row `r` in `[m, h]`.
    pub(crate) fn index(&self, r: usize, kv: usize) -> usize {
        (self.tokens.start + r / self.shared) * self.h + kv * self.shared + r % self.shared
    }

    /// Keys that row `r` sees.
    pub(crate) fn keys(&self, r: usize) -> &Keys {
        &self.keys[r / self.shared]
    }

    /// First keys of the tiles of which any row sees a key.
    pub(crate) fn tiles(&self) -> impl Iterator<Item = usize> + '_ {
        let ranges = || self.keys.iter().flat_map(|k| [&k.sinks, &k.window]).filter(|range| !range.is_empty());
        let first = ranges().map(|range| range.start as usize).min().unwrap_or(0);
        let end = ranges().map(|range| range.end as usize).max().unwrap_or(0);
        let sees =
            move |at: &usize| ranges().any(|range| (range.start as usize) < at + KEYS && range.end as usize > *at);
        (first..end).step_by(KEYS).filter(sees)
    }

    /// Which keys of a tile at least one row sees.
    pub(crate) fn seen(&self, first: usize) -> [bool; KEYS] {
        let mut seen = [false; KEYS];
        for range in self.keys.iter().flat_map(|keys| within(keys, first)) {
            seen[range].fill(true);
        }
        seen
    }

    /// Row `r` of `x[m,h,d]`, nothing past the last row.
    pub(crate) fn row<'x>(&self, x: &'x [f32], r: usize, kv: usize) -> Option<&'x [f32]> {
        (r < self.rows()).then(|| &x[self.index(r, kv) * self.d..][..self.d])
    }
}

/// The two ranges of keys as positions in the tile that begins at `first`, rising.
pub(crate) fn within(keys: &Keys, first: usize) -> [Range<usize>; 2] {
    let part = |range: &Range<u32>| {
        let at = |key: u32| (key as usize).saturating_sub(first).min(KEYS);
        at(range.start)..at(range.end).max(at(range.start))
    };
    let (sinks, window) = (part(&keys.sinks), part(&keys.window));
    // An empty range lies where the other one ends.
    if sinks.is_empty() {
        [window.start..window.start, window]
    } else if window.is_empty() {
        [sinks.clone(), sinks.end..sinks.end]
    } else {
        [sinks, window]
    }
}

/// Sets all but the two ranges to zero.
pub(crate) fn clear_outside(scores: &mut [f32], [a, b]: &[Range<usize>; 2]) {
    scores[..a.start].fill(0.0);
    scores[a.end..b.start].fill(0.0);
    scores[b.end..].fill(0.0);
}

/// Working memory for a block of queries and one key-value head.
pub(crate) struct Scratch {
    d: usize,
    queries: Vec<f32>,
    /// Queries and scores of sinks; empty where these have no query of their own.
    sink_queries: Vec<f32>,
    sink_scores: Vec<f32>,
    keys: Vec<f32>,
    turned: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
    sums: Vec<Sum>,
}

impl Scratch {
    /// For blocks like this one; `sinks`: with queries of their own for sinks.
    pub(crate) fn new(queries: &Queries, sinks: bool) -> Self {
        let (rows, d) = (padded_rows(queries.rows()), queries.d);
        let wide = padded_columns(d);
        let sink = usize::from(sinks);
        Scratch {
            d,
            queries: vec![0.0; rows * d],
            sink_queries: vec![0.0; sink * rows * d],
            sink_scores: vec![0.0; sink * rows * KEYS],
            keys: vec![0.0; KEYS * wide],
            turned: vec![0.0; d * KEYS],
            scores: vec![0.0; rows * KEYS],
            out: vec![0.0; rows * wide],
            sums: vec![Sum::NOTHING; rows],
        }
    }

    /// Attention of the block with queries, and queries for sinks, `x[m,h,d]`.
    pub(crate) fn run(&mut self, queries: &Queries, x: [&[f32]; 2], scale: f32, source: &impl Source, kv: usize) {
        let wide = padded_columns(self.d);
        gather(&mut self.queries, self.d, |r| queries.row(x[0], r, kv));
        gather(&mut self.sink_queries, self.d, |r| queries.row(x[1], r, kv));
        self.out.fill(0.0);
        self.sums.fill(Sum::NOTHING);
        for first in queries.tiles() {
            let seen = queries.seen(first);
            fill(&mut self.keys, wide, source, false, kv, first, &seen);
            transpose(&mut self.turned, &self.keys, wide);
            self.scores.fill(0.0);
            multiply_add(&mut self.scores, &self.queries, &self.turned, self.d, KEYS);
            self.take_sinks(queries, first);
            for (r, scores) in self.scores.chunks_exact_mut(KEYS).enumerate() {
                let mine = if r < queries.rows() { within(queries.keys(r), first) } else { [0..0, 0..0] };
                clear_outside(scores, &mine);
                let [sinks, window] = mine;
                let mut shrink = online(&mut scores[sinks.clone()], scale, &mut self.sums[r]);
                let again = online(&mut scores[window], scale, &mut self.sums[r]);
                if again != 1.0 {
                    scores[sinks].iter_mut().for_each(|weight| *weight *= again);
                    shrink *= again;
                }
                if shrink != 1.0 {
                    self.out[r * wide..(r + 1) * wide].iter_mut().for_each(|o| *o *= shrink);
                }
            }
            fill(&mut self.keys, wide, source, true, kv, first, &seen);
            multiply_add(&mut self.out, &self.scores, &self.keys, KEYS, wide);
        }
    }

    /// Scores of sinks by their own queries, where the tile has any.
    fn take_sinks(&mut self, queries: &Queries, first: usize) {
        let is_sink = |r: usize, at: usize| queries.keys(r).is_sink((first + at) as u32);
        if self.sink_queries.is_empty() || !(0..queries.rows()).any(|r| is_sink(r, 0)) {
            return;
        }
        self.sink_scores.fill(0.0);
        multiply_add(&mut self.sink_scores, &self.sink_queries, &self.turned, self.d, KEYS);
        let rows = self.scores.chunks_exact_mut(KEYS).zip(self.sink_scores.chunks_exact(KEYS));
        for (r, (scores, sinks)) in rows.enumerate().take(queries.rows()) {
            let count = (0..KEYS).take_while(|&at| is_sink(r, at)).count();
            scores[..count].copy_from_slice(&sinks[..count]);
        }
    }

    /// Row `r`, and the logarithm of the sum of its weights.
    pub(crate) fn row(&self, r: usize, o: &mut [f32]) -> f32 {
        finish(o, &self.out[r * padded_columns(self.d)..], self.sums[r])
    }
}

/// Divides by the sum of the weights and returns the logarithm of that sum.
fn finish(o: &mut [f32], sums: &[f32], Sum { most, total }: Sum) -> f32 {
    if total == 0.0 {
        o.fill(0.0);
        return NOTHING;
    }
    for (o, s) in o.iter_mut().zip(sums) {
        *o = s / total;
    }
    most + total.ln()
}
