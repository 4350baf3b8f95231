//! What the rows that attend to a cache share: shapes, the definition and a plain kernel.
//!
//! A cache is a pool of pages of `page` tokens. A sequence has a row of the block table, which says for each of
//! its pages in which page of the pool it lies (PagedAttention, Kwon et al. 2023), so sequences of unequal
//! length share a pool, and a window needs no more pages than it sees. A query row is `(row of the table, first
//! key, last key, boundary)`; [`Mask`] says which keys between first and last it sees. Sinks are scored with a query
//! of their own: turned by its place in the cache instead of its place in the text, it makes a stream of any length
//! possible without turning keys again (StreamingLLM, Xiao et al. 2023).
//!
//! For decoding, the keys of a row are split into parts ([`Keys::part`](super::attention::mask::Keys::part)), each
//! normalised by itself, which [`super::attention_join`] joins (Flash-Decoding, Dao et al. 2023).

mod cases;
pub mod codes;
pub(crate) mod cuda;
pub(crate) mod wgsl;

pub(crate) use cases::{Situation, situations};

use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::ops::attention::{MAX_HEAD, Mask, NOTHING};
use crate::reference::RefTensor;

/// Extents and mask of a row over a cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) m: usize,
    pub(crate) h: usize,
    pub(crate) d: usize,
    pub(crate) g: usize,
    pub(crate) scale: f32,
    pub(crate) mask: Mask,
    pub(crate) page: usize,
    /// Pages that a row of the table lists.
    pub(crate) e: usize,
    pub(crate) parts: usize,
    pub(crate) prompt: bool,
}

/// What the recording functions of both rows are given.
#[derive(Clone, Copy, Debug)]
pub struct Paged {
    /// Queries `[m, h, d]`.
    pub q: Value,
    /// Queries for sinks, usually the same.
    pub sink_q: Value,
    /// `[m, 4]`: row of the table, first key, last key, boundary.
    pub rows: Value,
    /// Block table `[s, e]`.
    pub table: Value,
    /// Tokens of a page.
    pub page: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Keys that are seen between first and last.
    pub mask: Mask,
    /// Parts that each row's keys are split into; 1 for a prompt.
    pub parts: usize,
    /// All rows are of one sequence, their columns non-decreasing.
    pub prompt: bool,
}

impl Paged {
    /// Extents `[m, h, d]` of the queries and `[s, e]` of the table.
    pub(crate) fn extents(&self, g: &Graph, op: &str) -> Result<([u32; 3], [u32; 2])> {
        match (&g.spec(self.q).shape[..], &g.spec(self.table).shape[..]) {
            (&[m, h, d], &[s, e]) => Ok(([m, h, d].map(|n| n as u32), [s, e].map(|n| n as u32))),
            _ => {
                let (q, table) = (g.spec(self.q), g.spec(self.table));
                let message =
                    format!("{op}: q ({q}) must be [rows, heads, head size], the table ({table}) [sequences, pages]");
                Err(Error::Record { graph: g.name().into(), message })
            }
        }
    }
}

impl Shape {
    /// Query heads that share a key-value head.
    pub(crate) fn shared(&self) -> usize {
        (self.h / self.g.max(1)).max(1)
    }

    /// Conditions beyond the signature.
    pub(crate) fn check(&self, op: &str) -> std::result::Result<(), String> {
        let Shape { h, d, g, page, parts, m, .. } = *self;
        if g == 0 || h % g != 0 {
            return Err(format!("{op}: {h} query heads cannot share {g} key-value heads evenly"));
        }
        if d == 0 || d % 2 != 0 || d > MAX_HEAD as usize {
            return Err(format!("{op}: the head size {d} must be even and at most {MAX_HEAD}"));
        }
        if ![32, 64, 128].contains(&page) {
            return Err(format!("{op}: a page has 32, 64 or 128 tokens, not {page}"));
        }
        if self.mask.window == 0 {
            return Err(format!("{op}: a window of 0 keys sees nothing; it must be 1 at least"));
        }
        if parts == 0 || (self.prompt && parts != 1) {
            return Err(format!("{op}: {parts} parts; a prompt has one, other rows at least one"));
        }
        if !self.prompt && m > MOST_ROWS {
            return Err(format!("{op}: {m} rows that are no prompt; at most {MOST_ROWS} are taken"));
        }
        Ok(())
    }

    /// Most keys that a row sees.
    pub(crate) fn most_keys(&self) -> u64 {
        let window = u64::from(self.mask.window) + u64::from(self.mask.sinks);
        ((self.e * self.page) as u64).min(window)
    }

    /// Arithmetic operations, if every row sees as many keys as it can.
    pub(crate) fn operations(&self) -> u64 {
        4 * self.m as u64 * self.most_keys() * (self.h * self.d) as u64
    }

    /// How often keys are read: once for a prompt, else once a row.
    pub(crate) fn passes(&self) -> u64 {
        if self.prompt { 1 } else { self.m as u64 }
    }

    /// The definition. `fetch(row, key, head, k, v)` gives a key and a value.
    pub(crate) fn reference(
        &self,
        [q, qs, rows]: [&RefTensor; 3],
        [o, lse]: [&mut RefTensor; 2],
        fetch: impl Fn([usize; 4], usize, usize, &mut [f64], &mut [f64]),
    ) {
        let Shape { m, h, d, parts, .. } = *self;
        let (mut k, mut v) = (vec![0.0; d], vec![0.0; d]);
        let places = (0..parts).flat_map(|j| (0..m).flat_map(move |i| (0..h).map(move |head| (j, i, head))));
        for (j, i, head) in places {
            let row: [usize; 4] = std::array::from_fn(|c| rows.data[4 * i + c] as usize);
            let keys = self.mask.keys([row[1] as u32, row[2] as u32], (self.e * self.page) as u32);
            let part = keys.part(j as u32, parts as u32);
            let at = (j * m + i) * h + head;
            let out = &mut o.data[at * d..(at + 1) * d];
            out.fill(0.0);
            lse.data[at] = f64::from(NOTHING);
            let mut seen = Vec::new();
            for key in part.iter() {
                fetch(row, key as usize, head / self.shared(), &mut k, &mut v);
                let query = if keys.is_sink(key) { qs } else { q };
                let query = &query.data[(i * h + head) * d..][..d];
                let s = f64::from(self.scale) * query.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>();
                seen.push((s, v.clone()));
            }
            let most = seen.iter().map(|(s, _)| *s).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = seen.iter().map(|(s, _)| (s - most).exp()).sum();
            for (s, v) in &seen {
                out.iter_mut().zip(v).for_each(|(o, v)| *o += (s - most).exp() / total * v);
            }
            if !seen.is_empty() {
                lse.data[at] = most + total.ln();
            }
        }
    }
}

/// Most rows that are independent of each other.
pub const MOST_ROWS: usize = 64;
