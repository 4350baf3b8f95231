//! Test cases of the rows over caches: pages in any order, what nobody sees poisoned.

use super::Shape;
use crate::op::{Case, Fill, Size};
use crate::ops::attention::{Mask, mask::NO_WINDOW};

/// One arrangement of queries, pages and keys.
pub(crate) struct Situation {
    /// What is special about it.
    pub(crate) label: &'static str,
    /// Extents and mask.
    pub(crate) shape: Shape,
    /// Rows of the block table.
    pub(crate) sequences: usize,
    /// Sequence, first and last key of each query row.
    pub(crate) spans: Vec<[u32; 3]>,
    /// Standard deviation of the queries.
    pub(crate) reach: f64,
}

impl Situation {
    /// The same with queries of this size and scores as before.
    fn queries(mut self, reach: f32) -> Situation {
        self.shape.scale /= reach;
        self.reach = f64::from(reach);
        self
    }

    /// A case with queries of that size.
    pub(crate) fn filled(&self, case: Case) -> Case {
        case.fill("q", Fill::Normal(self.reach)).fill("qs", Fill::Normal(self.reach))
    }

    /// Pages of the pool: a few more than are listed.
    pub(crate) fn pool(&self) -> usize {
        self.sequences * self.shape.e + 3
    }

    /// The block table: pages of the pool in a scattered order; those that no row sees are no pages at all.
    pub(crate) fn table(&self) -> Vec<f64> {
        let pool = self.pool();
        // A step that shares no factor with the size visits every page once.
        let step = (pool / 2 + 1..).find(|s| gcd(*s, pool) == 1).unwrap_or(1);
        let entries = self.sequences * self.shape.e;
        let page = |i: usize| if self.sees_page(i) { ((i + 1) * step % pool) as f64 } else { 4e9 };
        (0..entries).map(page).collect()
    }

    /// Does any row see a key of entry `i` of the table?
    fn sees_page(&self, i: usize) -> bool {
        let (page, first) = (self.shape.page as u32, (i % self.shape.e * self.shape.page) as u32);
        (first..first + page).any(|key| self.sees(i / self.shape.e, key))
    }

    /// Does any row of a sequence see this key?
    pub(crate) fn sees(&self, sequence: usize, key: u32) -> bool {
        let t = (self.shape.e * self.shape.page) as u32;
        self.spans.iter().any(|&[s, first, last]| {
            let keys = self.shape.mask.keys([first, last], t);
            s as usize == sequence && (keys.sinks.contains(&key) || keys.window.contains(&key))
        })
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

struct Heads {
    h: usize,
    g: usize,
    d: usize,
}

const fn heads(h: usize, g: usize, d: usize) -> Heads {
    Heads { h, g, d }
}

/// Extents without rows.
fn shape(Heads { h, g, d }: Heads, page: usize, e: usize, mask: Mask) -> Shape {
    Shape { m: 0, h, d, g, scale: (d as f32).powf(-0.5), mask, page, e, parts: 1, prompt: false }
}

fn decode(label: &'static str, shape: Shape, parts: usize, sequences: usize, spans: &[[u32; 3]]) -> Situation {
    let shape = Shape { m: spans.len(), parts, ..shape };
    Situation { label, shape, sequences, spans: spans.to_vec(), reach: 1.0 }
}

/// A chunk of `m` tokens of sequence 1 of 2 that begins at position `first`.
fn prompt(label: &'static str, shape: Shape, m: usize, first: u32) -> Situation {
    let spans = (0..m as u32).map(|i| [1, 0, first + i]).collect();
    Situation { label, shape: Shape { m, prompt: true, ..shape }, sequences: 2, spans, reach: 1.0 }
}

/// Arrangements of a size.
pub(crate) fn situations(size: Size) -> Vec<Situation> {
    let (whole, far) = (Mask::WHOLE, |window, sinks| Mask { window, sinks });
    match size {
        Size::Small => vec![
            decode("one row", shape(heads(2, 1, 4), 32, 2, whole), 1, 1, &[[0, 0, 40]]),
            prompt("a prompt", shape(heads(4, 2, 6), 32, 2, whole), 5, 3),
        ],
        Size::Ragged => vec![
            decode("one key", shape(heads(1, 1, 2), 32, 1, whole), 1, 1, &[[0, 0, 0]]),
            decode("three heads share", shape(heads(6, 2, 64), 64, 6, whole), 1, 2, &[[1, 0, 300]]),
            decode("parts", shape(heads(8, 2, 128), 32, 20, whole), 4, 1, &[[0, 0, 599]]),
            decode(
                "rows of several sequences, one sees nothing",
                shape(heads(4, 2, 24), 32, 5, whole),
                2,
                4,
                &[[2, 0, 130], [0, 5, 4], [3, 31, 32], [1, 0, 159], [2, 64, 9000]],
            ),
            decode("nine heads share", shape(heads(9, 1, 128), 128, 3, whole), 2, 1, &[[0, 0, 290]]),
            decode("a head of 256", shape(heads(2, 2, 256), 64, 3, whole), 1, 1, &[[0, 10, 150]]),
            decode("a head of 34", shape(heads(4, 1, 34), 32, 4, whole), 3, 1, &[[0, 0, 127], [0, 0, 64]]),
            decode("window", shape(heads(4, 4, 16), 32, 30, far(70, 0)), 2, 1, &[[0, 0, 900]]),
            decode("window and sinks", shape(heads(4, 2, 64), 32, 24, far(150, 5)), 2, 2, &[[1, 0, 700], [0, 0, 100]]),
            decode("sinks behind the window's start", shape(heads(2, 1, 8), 32, 3, far(20, 40)), 1, 1, &[[0, 0, 70]]),
            decode("sinks of a later first key", shape(heads(2, 1, 10), 32, 8, far(33, 3)), 1, 1, &[[0, 70, 240]]),
            prompt("a prompt at 0", shape(heads(12, 4, 24), 32, 3, whole), 70, 0),
            prompt("a prompt inside", shape(heads(4, 2, 64), 64, 6, whole), 37, 257),
            prompt("a prompt, window", shape(heads(2, 1, 18), 32, 12, far(33, 0)), 130, 200),
            prompt("a prompt, window and sinks", shape(heads(6, 2, 128), 32, 12, far(64, 4)), 70, 150),
            prompt("a prompt, heads of 256", shape(heads(2, 2, 256), 128, 2, whole), 18, 100),
            prompt("a prompt to the end of an odd page", shape(heads(4, 2, 64), 32, 9, far(40, 0)), 45, 243),
            prompt("a prompt, pages of 128, window and sinks", shape(heads(2, 1, 128), 128, 3, far(100, 6)), 90, 250),
            prompt("a prompt, pages of 64", shape(heads(2, 2, 128), 64, 5, whole), 66, 240),
            prompt("a prompt of large queries", shape(heads(2, 1, 64), 64, 3, whole), 40, 90).queries(1e5),
            prompt("a prompt of small queries", shape(heads(2, 1, 128), 32, 5, whole), 34, 70).queries(1e-6),
        ],
        Size::Bench => {
            let of = |page, e, mask| shape(heads(32, 8, 128), page, e, mask);
            let windowed =
                |label, last: u32| decode(label, of(64, last as usize / 64 + 1, far(4096, 0)), 16, 1, &[[0, 0, last]]);
            vec![
                decode("decode at 32K", of(64, 512, whole), 32, 1, &[[0, 0, 32767]]),
                decode("decode at 128K", of(64, 2048, whole), 32, 1, &[[0, 0, 131_071]]),
                windowed("window of 4096 at 8K", 8191),
                prompt("prefill 256 at 4K", of(64, 68, far(NO_WINDOW, 0)), 256, 4096),
            ]
        }
    }
}
