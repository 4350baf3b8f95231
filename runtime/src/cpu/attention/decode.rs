//! Rows that are independent of each other: keys are cut into pieces, pieces are joined in order.

use super::codes::{self, ENTRIES, GROUPS, Layout};
use super::floats::{self, Rows};
use super::runs::{Place, Run, piece, runs};
use super::simd::Element;
use super::softmax::{Softmax, Sum};
use super::{Path, SCORES};
use crate::cpu::memory::Line;
use crate::cpu::{math, parallel};
use crate::ops::attention::{Keys, NOTHING};
use crate::ops::paged::Shape;
use crate::ops::paged::codes::Block;
use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use std::ops::Range;

/// Rows of floats: key heads, then value heads of a token.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    /// Single precision.
    Single(&'a [f32]),
    /// Bits of f16.
    Half(&'a [u16]),
}

/// Pages of codes beside a ring of floats.
#[derive(Clone, Copy)]
pub(crate) struct Quantised<'a> {
    /// Blocks: those of the heads of a page one after the other.
    pub(crate) words: &'a [u32],
    /// Shape of a block.
    pub(crate) block: Block,
    /// Rows of a sequence's ring.
    pub(crate) ring: usize,
}

/// A cache.
#[derive(Clone, Copy)]
pub(crate) struct Store<'a> {
    /// The pool of pages, or the rings beside the pool.
    pub(crate) floats: Floats<'a>,
    /// The pool, if it holds codes.
    pub(crate) quantised: Option<Quantised<'a>>,
}

/// What is read of a call.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) shape: &'a Shape,
    /// Queries, and queries for sinks, `[m, h, d]`.
    pub(crate) queries: [&'a [f32]; 2],
    /// `[m, 4]`: row of the table, first key, last key, boundary.
    pub(crate) rows: &'a [u32],
    /// `[s, e]`.
    pub(crate) table: &'a [u32],
    pub(crate) store: Store<'a>,
}

/// Units that wait to be joined at most, so that memory does not grow with rows.
const UNITS: usize = 256;

/// A part of a row's keys that fills a row of the output.
struct Target {
    row: usize,
    keys: Keys,
    /// Keys of a unit, and units.
    piece: usize,
    pieces: usize,
}

/// `o[n,m,h,d]` and `lse[n,m,h]` of rows that are independent of each other.
pub(super) fn decode(path: Path, x: &Inputs<'_>, o: &mut [f32], lse: &mut [f32]) {
    let Shape { m, h, d, g, parts, .. } = *x.shape;
    let layout = x.store.quantised.map(|q| Layout::new(q.block, path.extents().0));
    let targets: Vec<Target> = (0..parts * m)
        .map(|at| {
            let row = at % m;
            let keys = x.keys(row).part((at / m) as u32, parts as u32);
            let piece = piece(keys.len() as usize);
            Target { row, piece, pieces: (keys.len() as usize).div_ceil(piece), keys }
        })
        .collect();
    let queries: Vec<Queries> = {
        let (work, width) = (Work::new(path, x.shape, layout.as_ref()), h / g * d);
        let kinds = &x.queries[..if x.shape.mask.sinks > 0 { 2 } else { 1 }];
        let of = |at: usize| kinds.iter().map(|q| Query::new(&work, &q[at * width..(at + 1) * width])).collect();
        (0..m * g).map(|at| Queries { all: of(at) }).collect()
    };
    let mut first = 0;
    while first < targets.len() {
        let (mut last, mut units) = (first, Vec::new());
        while last < targets.len() && (last == first || units.len() + targets[last].pieces <= UNITS) {
            units.extend((0..targets[last].pieces).map(|n| (&targets[last], n)));
            last += 1;
        }
        // Heads do not depend on each other, so cutting them as threads ask for changes no result.
        let cuts = (4 * parallel::threads()).div_ceil(units.len().max(1)).clamp(1, g);
        let each = g.div_ceil(cuts);
        let cuts = g.div_ceil(each);
        let heads = each * x.shape.shared();
        let mut sums = vec![0f32; units.len() * cuts * heads * d];
        let mut ends = vec![[NOTHING, 0.0]; units.len() * cuts * heads];
        let work = units.iter().map(|(t, _)| t.piece.min(t.keys.len() as usize)).max().unwrap_or(0) * each * d;
        parallel::rows2(&mut sums, heads * d, &mut ends, heads, work, |at, sums, ends| {
            let (target, n) = units[at / cuts];
            let kv = at % cuts * each..(at % cuts * each + each).min(g);
            let numbers = n * target.piece..((n + 1) * target.piece).min(target.keys.len() as usize);
            x.unit(path, layout.as_ref(), target, numbers, kv, &queries, sums, ends);
        });
        let mut unit = 0;
        for at in first..last {
            let pieces = unit..unit + targets[at].pieces;
            unit = pieces.end;
            for head in 0..h {
                let place = |n: usize| (n * cuts + head / heads) * heads + head % heads;
                let parts = pieces.clone().map(|n| (&sums[place(n) * d..][..d], ends[place(n)]));
                let out = &mut o[(at * h + head) * d..][..d];
                lse[at * h + head] = join(parts, out);
            }
        }
        first = last;
    }
}

/// Joins sums with their largest scores and totals; gives the logarithm of the sum of all weights.
fn join<'a>(parts: impl Iterator<Item = (&'a [f32], [f32; 2])> + Clone, out: &mut [f32]) -> f32 {
    out.fill(0.0);
    let most = parts.clone().fold(NOTHING, |most, (_, [m, _])| most.max(m));
    let mut total = 0.0;
    for (sums, [m, t]) in parts {
        let factor = math::exp(m - most);
        total += factor * t;
        out.iter_mut().zip(sums).for_each(|(o, s)| *o += factor * s);
    }
    if total == 0.0 {
        return NOTHING;
    }
    let share = 1.0 / total;
    out.iter_mut().for_each(|o| *o *= share);
    most + total.ln()
}

impl<'a> Inputs<'a> {
    /// Keys that a row sees.
    pub(super) fn keys(&self, row: usize) -> Keys {
        let shape = self.shape;
        shape.mask.keys([self.rows[4 * row + 1], self.rows[4 * row + 2]], (shape.e * shape.page) as u32)
    }

    /// Where the keys of a row lie.
    pub(super) fn place(&self, row: usize) -> Place<'a> {
        let Shape { g, d, page, e, .. } = *self.shape;
        let sequence = self.rows[4 * row] as usize;
        let table = self.table.get(sequence * e..(sequence + 1) * e).unwrap_or(&[]);
        match self.store.quantised {
            Some(Quantised { words, block, ring }) => {
                let pages = words.len() / (g * block.words()).max(1);
                // A sequence without a row of the table has no ring either.
                let boundary = if table.is_empty() { usize::MAX } else { self.rows[4 * row + 3] as usize };
                Place { table, pages, boundary, ring: Some((sequence * ring, ring)) }
            }
            None => {
                let elements = match self.store.floats {
                    Floats::Single(x) => x.len(),
                    Floats::Half(x) => x.len(),
                };
                Place { table, pages: elements / (2 * g * d * page).max(1), boundary: 0, ring: None }
            }
        }
    }

    /// One piece of a row's keys for some key-value heads.
    #[expect(clippy::too_many_arguments, reason = "a unit's place, inputs and results")]
    fn unit(
        &self,
        path: Path,
        layout: Option<&Layout>,
        target: &Target,
        numbers: Range<usize>,
        kv: Range<usize>,
        queries: &[Queries],
        sums: &mut [f32],
        ends: &mut [[f32; 2]],
    ) {
        let (shape, row) = (self.shape, target.row);
        let sink_end = self.rows[4 * row + 1].saturating_add(shape.mask.sinks) as usize;
        let runs = runs(shape, &self.place(row), &target.keys, numbers, sink_end);
        let shared = shape.shared();
        let mut work = Work::new(path, shape, layout);
        let mut heads: Vec<Head<'_>> = kv.clone().map(|y| Head::new(&work, &queries[row * shape.g + y])).collect();
        for (n, run) in runs.iter().enumerate() {
            let next = runs.get(n + 1);
            for (at, head) in heads.iter_mut().enumerate() {
                let y = kv.start + at;
                if let (true, Some(q)) = (run.codes, self.store.quantised) {
                    let size = q.block.words();
                    let block = &q.words[(run.at * shape.g + y) * size..][..size];
                    // Blocks of a page's heads are neighbours.
                    let ahead = match next {
                        _ if at + 1 < heads_of(&kv) => (run.at * shape.g + y + 1) * size,
                        Some(next) if next.codes => (next.at * shape.g + kv.start) * size,
                        _ => (run.at * shape.g + y) * size,
                    };
                    work.codes(head, run, block, q.words.as_ptr().wrapping_add(ahead));
                } else {
                    match self.store.floats {
                        Floats::Single(x) => work.floats(head, y, run, next, x),
                        Floats::Half(x) => work.floats(head, y, run, next, x),
                    }
                }
            }
        }
        for (at, head) in heads.iter().enumerate() {
            let rows = at * shared..(at + 1) * shared;
            let sums = &mut sums[rows.start * shape.d..rows.end * shape.d];
            work.finish(head, sums);
            for (end, sum) in ends[rows].iter_mut().zip(&head.sums) {
                *end = [sum.most, sum.total];
            }
        }
    }
}

fn heads_of(kv: &Range<usize>) -> usize {
    kv.end - kv.start
}

fn lines(floats: usize) -> Vec<Line> {
    vec![Line::zeroed(); floats.div_ceil(16)]
}

/// Scaled queries of the heads that share a key-value head, in the orders that the inner loops want.
struct Query {
    /// For keys that are floats.
    natural: Vec<Line>,
    /// For codes.
    permuted: Vec<Line>,
}

impl Query {
    fn new(work: &Work<'_>, query: &[f32]) -> Self {
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
struct Queries {
    all: Vec<Query>,
}

impl Queries {
    /// Those for a run.
    fn of(&self, run: &Run) -> &Query {
        &self.all[usize::from(run.sinks).min(self.all.len() - 1)]
    }
}

/// Sums of the heads that share a key-value head.
struct Head<'a> {
    queries: &'a Queries,
    out: Vec<Line>,
    permuted_out: Vec<Line>,
    /// By query head and group of channels: sum of weights times zeros.
    zeros: Vec<f32>,
    sums: Vec<Sum>,
}

impl<'a> Head<'a> {
    fn new(work: &Work<'_>, queries: &'a Queries) -> Self {
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
struct Work<'a> {
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
    fn new(path: Path, shape: &'a Shape, layout: Option<&'a Layout>) -> Self {
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
    fn floats<E: Element>(&mut self, head: &mut Head<'_>, y: usize, run: &Run, next: Option<&Run>, data: &[E]) {
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
    fn codes(&mut self, head: &mut Head<'_>, run: &Run, words: &[u32], ahead: *const u32) {
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
    fn finish(&self, head: &Head<'_>, sums: &mut [f32]) {
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
