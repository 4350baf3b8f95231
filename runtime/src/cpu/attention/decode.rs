//! Rows that are independent of each other: keys are cut into pieces, pieces are joined in order.

use super::Path;
use super::layout::Layout;
use super::runs::{Place, piece, runs};
use super::work::{Head, Queries, Query, Work};
use crate::cpu::{math, parallel};
use crate::ops::attention::{Keys, NOTHING};
use crate::ops::paged::Shape;
use crate::ops::paged::codes::Block;
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
