//! Chunks of a prompt: tiles of queries over tiles of keys that are filled from the cache.

use super::Path;
use super::decode::{Floats, Inputs};
use super::runs::Place;
use super::simd::{Element, Simd, Task};
use crate::cpu::parallel;
use crate::ops::attention::MAX_HEAD;
use crate::ops::attention::cpu::{Queries, Scratch, Source};
use crate::ops::attention::tile::{KEYS, ROWS};
use crate::ops::paged::Shape;
use crate::ops::paged::codes::Block;
use std::ops::Range;

/// `o[m,h,d]` and `lse[m,h]` of tokens of one sequence.
pub(super) fn prompt(path: Path, x: &Inputs<'_>, o: &mut [f32], lse: &mut [f32]) {
    let Shape { h, d, g, scale, .. } = *x.shape;
    let shared = x.shape.shared();
    let tokens = (ROWS / shared).max(1);
    let blocks = blocks(x, tokens);
    let rows = tokens * shared;
    let (mut sums, mut ends) = (vec![0f32; blocks.len() * g * rows * d], vec![0f32; blocks.len() * g * rows]);
    let work = rows * d * x.shape.most_keys().min(1 << 20) as usize;
    let block = |unit: usize| {
        let block = blocks[unit / g].clone();
        let keys = block.clone().map(|i| x.keys(i)).collect();
        (block.start, Queries::of(h, d, shared, block, keys))
    };
    parallel::rows2(&mut sums, rows * d, &mut ends, rows, work, |unit, sums, ends| {
        let (first, queries) = block(unit);
        let source = Pages { path, x, place: x.place(first) };
        let mut scratch = Scratch::new(&queries, x.shape.mask.sinks > 0);
        scratch.run(&queries, x.queries, scale, &source, unit % g);
        for (r, (o, end)) in sums.chunks_exact_mut(d).zip(ends).enumerate().take(queries.rows()) {
            *end = scratch.row(r, o);
        }
    });
    for (unit, (sums, ends)) in sums.chunks_exact(rows * d).zip(ends.chunks_exact(rows)).enumerate() {
        let (_, queries) = block(unit);
        for (r, (sums, &end)) in sums.chunks_exact(d).zip(ends).enumerate().take(queries.rows()) {
            let at = queries.index(r, unit % g);
            o[at * d..(at + 1) * d].copy_from_slice(sums);
            lse[at] = end;
        }
    }
}

/// Blocks of tokens that read every key from the same place: where the boundary moves, a new one begins.
fn blocks(x: &Inputs<'_>, tokens: usize) -> Vec<Range<usize>> {
    let boundary = |i: usize| x.store.quantised.map(|_| x.rows[4 * i + 3]);
    let (mut blocks, mut first) = (Vec::new(), 0);
    for i in 1..=x.shape.m {
        if i == x.shape.m || i - first == tokens || boundary(i) != boundary(first) {
            blocks.push(first..i);
            first = i;
        }
    }
    blocks
}

/// The cache as a block of tokens sees it.
struct Pages<'a> {
    path: Path,
    x: &'a Inputs<'a>,
    place: Place<'a>,
}

impl Source for Pages<'_> {
    fn fill(&self, tile: &mut [f32], wide: usize, values: bool, kv: usize, first: usize, seen: &[bool; KEYS]) {
        let Shape { page, .. } = *self.x.shape;
        let mut key = first;
        while key < first + KEYS {
            // Keys of one page, which lie in one place.
            let end = (key / page + 1).saturating_mul(page).min(first + KEYS);
            let (rows, seen) = (&mut tile[(key - first) * wide..(end - first) * wide], &seen[key - first..end - first]);
            if seen.iter().any(|&seen| seen) {
                self.part(rows, wide, values, kv, key, seen);
            }
            key = end;
        }
    }
}

impl Pages<'_> {
    /// The keys from `key` on, all of one page.
    fn part(&self, tile: &mut [f32], wide: usize, values: bool, kv: usize, key: usize, seen: &[bool]) {
        let Shape { g, d, page, .. } = *self.x.shape;
        let column = (usize::from(values) * g + kv) * d;
        let listed = self.place.table.get(key / page).map(|&at| at as usize).filter(|&at| at < self.place.pages);
        let row = match (self.place.ring, listed) {
            (Some((first, ring)), _) if key >= self.place.boundary => first + key % ring,
            (Some(_), Some(at)) => return self.codes(tile, wide, values, at * g + kv, key % page, seen),
            (None, Some(at)) => at * page + key % page,
            // A page that the pool does not have: as if its keys were zero.
            (_, None) => return tile.chunks_exact_mut(wide).for_each(|row| row[..d].fill(0.0)),
        };
        let from = row * 2 * g * d + column;
        match self.x.store.floats {
            Floats::Single(data) => copy(self.path, data, from, 2 * g * d, tile, wide, d, seen),
            Floats::Half(data) => copy(self.path, data, from, 2 * g * d, tile, wide, d, seen),
        }
    }

    /// Tokens from `token` on of a block.
    fn codes(&self, tile: &mut [f32], wide: usize, values: bool, at: usize, token: usize, seen: &[bool]) {
        let Some(q) = self.x.store.quantised else { return };
        let (block, size) = (q.block, q.block.words());
        let Some(words) = q.words.get(at * size..(at + 1) * size) else { return };
        self.path.run(Expand { block, words, values, tile, wide, token, seen });
    }
}

/// Copies rows that are seen into a tile.
#[expect(clippy::too_many_arguments, reason = "two places and their steps")]
fn copy<E: Element>(
    path: Path,
    data: &[E],
    from: usize,
    step: usize,
    tile: &mut [f32],
    wide: usize,
    d: usize,
    seen: &[bool],
) {
    for (r, out) in tile.chunks_exact_mut(wide).enumerate().filter(|(r, _)| seen[*r]) {
        match data.get(from + r * step..from + r * step + d) {
            Some(row) => path.run(Copy { row, out }),
            None => out[..d].fill(0.0),
        }
    }
}

/// A row as f32.
struct Copy<'a, E> {
    row: &'a [E],
    out: &'a mut [f32],
}

impl<E: Element> Task for Copy<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.row.len() / S::LANES * S::LANES;
        for (row, out) in self.row.chunks_exact(S::LANES).zip(self.out.chunks_exact_mut(S::LANES)) {
            s.store(E::load(s, row), out);
        }
        let (mut all, mut floats) = ([E::default(); 16], [0f32; 16]);
        let rest = self.row.len() - whole;
        all[..rest].copy_from_slice(&self.row[whole..]);
        s.store(E::load(s, &all), &mut floats);
        self.out[whole..whole + rest].copy_from_slice(&floats[..rest]);
    }
}

/// Rows of a block in f32, for a tile in the first cache.
struct Expand<'a> {
    block: Block,
    words: &'a [u32],
    values: bool,
    tile: &'a mut [f32],
    wide: usize,
    token: usize,
    seen: &'a [bool],
}

impl Task for Expand<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        match self.block.bits {
            2 => self.rows::<2>(),
            4 => self.rows::<4>(),
            _ => self.rows::<8>(),
        }
    }
}

impl Expand<'_> {
    #[inline(always)]
    fn rows<const BITS: usize>(&mut self) {
        let d = self.block.d;
        // A channel's scale and zero: of keys the same for the whole page.
        let (mut scale, mut zero) = ([0f32; MAX_HEAD as usize], [0f32; MAX_HEAD as usize]);
        if !self.values {
            for c in 0..d {
                let p = self.block.key_parameters(self.words, c);
                (scale[c], zero[c]) = (p.scale, p.zero);
            }
        }
        for (r, out) in self.tile.chunks_exact_mut(self.wide).enumerate() {
            if !self.seen[r] {
                continue;
            }
            if self.values {
                for (group, first) in (0..d).step_by(self.block.page).enumerate() {
                    let p = self.block.value_parameters(self.words, self.token + r, group);
                    let end = (first + self.block.page).min(d);
                    scale[first..end].fill(p.scale);
                    zero[first..end].fill(p.zero);
                }
            }
            let row = self.block.row(self.words, self.values, self.token + r);
            expand::<BITS>(row, &scale[..d], &zero[..d], &mut out[..d]);
        }
    }
}

#[inline(always)]
fn expand<const BITS: usize>(row: &[u32], scale: &[f32], zero: &[f32], out: &mut [f32]) {
    let each = 32 / BITS;
    let parts = out.chunks_mut(each).zip(scale.chunks(each).zip(zero.chunks(each)));
    for ((out, (scale, zero)), &word) in parts.zip(row) {
        for (i, ((out, scale), zero)) in out.iter_mut().zip(scale).zip(zero).enumerate() {
            *out = ((word >> (i * BITS)) & ((1 << BITS) - 1)) as f32 * scale + zero;
        }
    }
}
