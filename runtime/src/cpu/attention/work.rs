//! The working memory of a unit, and what is done there with a run of keys.

use super::codes::{self, ENTRIES, GROUPS};
use super::floats::{self, Rows};
use super::layout::Layout;
use super::runs::Run;
use super::simd::Element;
use super::softmax::{Softmax, Sum};
use super::{Path, SCORES};
use crate::cpu::memory::Line;
use crate::ops::paged::Shape;
use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use std::ops::Range;

fn lines(floats: usize) -> Vec<Line> {
    vec![Line::zeroed(); floats.div_ceil(16)]
}

/// Scaled queries of the heads that share a key-value head, in the orders that the inner loops want.
pub(super) struct Query {
    /// For keys that are floats.
    natural: Vec<Line>,
    /// For codes.
    permuted: Vec<Line>,
}

impl Query {
    pub(super) fn new(work: &Work<'_>, query: &[f32]) -> Self {
        let (shared, d, scale) = (work.shape.shared(), work.shape.d, work.shape.scale);
        let codes = work.layout.map_or(0, Layout::len);
        let mut new = Query { natural: lines(work.wide * shared), permuted: lines(codes * shared) };
        for heads in work.groups() {
            let count = heads.len();
            let query = &query[heads.start * d..heads.end * d];
            let natural = &mut cast_slice_mut::<_, f32>(&mut new.natural)[heads.start * work.wide..];
            for (h, query) in query.chunks_exact(d).enumerate() {
                for (n, part) in query.chunks(work.lanes).enumerate() {
                    let to = &mut natural[(n * count + h) * work.lanes..];
                    to.iter_mut().zip(part).for_each(|(to, x)| *to = scale * x);
                }
            }
            if let Some(layout) = work.layout {
                let permuted = &mut cast_slice_mut::<_, f32>(&mut new.permuted)[heads.start * codes..];
                layout.each(count, |place, h, c| permuted[place] = scale * query[h * d + c]);
            }
        }
        new
    }
}

/// Queries of a key-value head: one, and another for sinks if there can be any.
pub(super) struct Queries {
    pub(super) all: Vec<Query>,
}

impl Queries {
    /// Those for a run.
    fn of(&self, run: &Run) -> &Query {
        &self.all[usize::from(run.sinks).min(self.all.len() - 1)]
    }
}

/// Sums of the heads that share a key-value head.
pub(super) struct Head<'a> {
    queries: &'a Queries,
    out: Vec<Line>,
    permuted_out: Vec<Line>,
    /// By query head and group of channels: sum of weights times zeros.
    zeros: Vec<f32>,
    pub(super) sums: Vec<Sum>,
}

impl<'a> Head<'a> {
    pub(super) fn new(work: &Work<'_>, queries: &'a Queries) -> Self {
        let shared = work.shape.shared();
        Head {
            queries,
            out: lines(work.wide * shared),
            permuted_out: lines(work.layout.map_or(0, Layout::len) * shared),
            zeros: vec![0.0; shared * GROUPS],
            sums: vec![Sum::NOTHING; shared],
        }
    }
}

/// Extents of a unit and its working memory.
pub(super) struct Work<'a> {
    path: Path,
    shape: &'a Shape,
    layout: Option<&'a Layout>,
    lanes: usize,
    /// Query heads that are computed together.
    together: usize,
    /// Elements of a head, padded to whole vectors.
    wide: usize,
    scores: Vec<Line>,
    folded: Vec<Line>,
    spread: Vec<Line>,
}

impl<'a> Work<'a> {
    pub(super) fn new(path: Path, shape: &'a Shape, layout: Option<&'a Layout>) -> Self {
        let (lanes, together) = path.extents();
        let codes = layout.map_or(0, Layout::len);
        let spread = if layout.is_some() { together * ENTRIES } else { 0 };
        Work {
            path,
            shape,
            layout,
            lanes,
            together,
            wide: shape.d.next_multiple_of(lanes),
            scores: lines(together * SCORES),
            folded: lines(together * codes),
            spread: lines(spread),
        }
    }

    /// Query heads that are computed together.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (shared, together) = (self.shape.shared(), self.together);
        (0..shared).step_by(together).map(move |first| first..(first + together).min(shared))
    }

    /// A run of floats.
    pub(super) fn floats<E: Element>(
        &mut self,
        head: &mut Head<'_>,
        y: usize,
        run: &Run,
        next: Option<&Run>,
        data: &[E],
    ) {
        let Shape { d, g, .. } = *self.shape;
        let step = 2 * g * d;
        // Where rows follow that are codes, there is little left to fetch.
        let next = next.filter(|next| !next.codes).unwrap_or(run).at;
        let rows = |first: usize| Rows {
            data: data.get(run.at * step + first..).unwrap_or(&[]),
            step,
            count: run.count,
            width: d,
            ahead: data.as_ptr().wrapping_add(next * step + first),
        };
        if (run.at + run.count) * step > data.len() {
            return;
        }
        for heads in self.groups() {
            let part = heads.start * self.wide..heads.end * self.wide;
            let scores = cast_slice_mut::<_, f32>(&mut self.scores);
            let query = &cast_slice::<_, f32>(&head.queries.of(run).natural)[part.clone()];
            let task = floats::Scores { rows: rows(y * d), query, heads: heads.len(), scores: &mut *scores };
            self.path.run(task);
            let sums = &mut head.sums[heads.clone()];
            let task = Softmax { scores: &mut *scores, from: 0, to: run.count, offsets: &[0.0; 4], sums };
            let factors = self.path.run(task);
            self.shrink(head, &heads, &factors);
            let weights = cast_slice::<_, f32>(&self.scores);
            let out = &mut cast_slice_mut::<_, f32>(&mut head.out)[part];
            self.path.run(floats::Weigh { rows: rows((g + y) * d), weights, heads: heads.len(), out });
        }
    }

    /// A run of codes.
    pub(super) fn codes(&mut self, head: &mut Head<'_>, run: &Run, words: &[u32], ahead: *const u32) {
        let Some(layout) = self.layout else { return };
        let (from, to, len) = (run.from, run.from + run.count, layout.len());
        for heads in self.groups() {
            let (part, count) = (heads.start * len..heads.end * len, heads.len());
            let folded = &mut cast_slice_mut::<_, f32>(&mut self.folded)[..count * len];
            let query = &cast_slice::<_, f32>(&head.queries.of(run).permuted)[part.clone()];
            let mut offsets = [0.0; 4];
            let task = codes::Fold { layout, words, query, heads: count, folded: &mut *folded, offsets: &mut offsets };
            self.path.run(task);
            let scores = cast_slice_mut::<_, f32>(&mut self.scores);
            let task = codes::Scores { layout, words, folded, heads: count, from, to, scores: &mut *scores, ahead };
            self.path.run(task);
            let sums = &mut head.sums[heads.clone()];
            let factors = self.path.run(Softmax { scores: &mut *scores, from, to, offsets: &offsets, sums });
            self.shrink(head, &heads, &factors);
            let weights = cast_slice::<_, f32>(&self.scores);
            let spread = cast_slice_mut::<_, f32>(&mut self.spread);
            let zeros = &mut head.zeros[heads.start * GROUPS..heads.end * GROUPS];
            let task = codes::Spread { layout, words, weights, heads: count, from, to, spread: &mut *spread, zeros };
            self.path.run(task);
            let out = &mut cast_slice_mut::<_, f32>(&mut head.permuted_out)[part];
            self.path.run(codes::Weigh { layout, words, spread, heads: count, from, to, out });
        }
    }

    /// Brings what was summed to the new largest scores.
    fn shrink(&self, head: &mut Head<'_>, heads: &Range<usize>, factors: &[f32; 4]) {
        if factors[..heads.len()].iter().all(|&f| f == 1.0) {
            return;
        }
        let len = self.layout.map_or(0, Layout::len);
        for (out, wide) in [(&mut head.out, self.wide), (&mut head.permuted_out, len)] {
            let out = &mut cast_slice_mut::<_, f32>(out)[heads.start * wide..heads.end * wide];
            for vectors in out.chunks_exact_mut(heads.len() * self.lanes) {
                for (vector, &factor) in vectors.chunks_exact_mut(self.lanes).zip(factors) {
                    vector.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
        for (zeros, &factor) in head.zeros[heads.start * GROUPS..].chunks_exact_mut(GROUPS).zip(factors) {
            zeros.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Sums of all heads in their natural order.
    pub(super) fn finish(&self, head: &Head<'_>, sums: &mut [f32]) {
        let (d, wide) = (self.shape.d, self.wide);
        for heads in self.groups() {
            let out = &cast_slice::<_, f32>(&head.out)[heads.start * wide..];
            for (at, h) in heads.clone().enumerate() {
                for (n, to) in sums[h * d..(h + 1) * d].chunks_mut(self.lanes).enumerate() {
                    to.copy_from_slice(&out[(n * heads.len() + at) * self.lanes..][..to.len()]);
                }
            }
            let Some(layout) = self.layout else { continue };
            for h in heads.clone() {
                for c in 0..d {
                    sums[h * d + c] += head.zeros[h * GROUPS + c / layout.block.page];
                }
            }
            let out = &cast_slice::<_, f32>(&head.permuted_out)[heads.start * layout.len()..];
            layout.each(heads.len(), |place, at, c| sums[(heads.start + at) * d + c] += out[place]);
        }
    }
}
