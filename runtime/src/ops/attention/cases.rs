//! Test cases for attention and its gradients.

use super::{Attention, Mask};
use crate::op::{Case, Fill, Op, Size};
use crate::random::Random;

/// One arrangement of queries and keys.
pub(crate) struct Situation {
    /// What is special about it.
    pub(crate) label: &'static str,
    /// Extents and scale.
    pub(crate) op: Attention,
    /// First and last key of every token.
    pub(crate) span: Vec<(u32, u32)>,
}

fn situation(label: &'static str, [m, h, d, t, g]: [u32; 5], keys: impl Fn(u32) -> (u32, u32)) -> Situation {
    let Mask { window, sinks } = Mask::WHOLE;
    let op = Attention { m, h, d, t, g, scale: (d as f32).powf(-0.5), window, sinks };
    Situation { label, op, span: (0..m).map(keys).collect() }
}

impl Situation {
    /// The same with a window and sinks.
    fn masked(mut self, label: &'static str, window: u32, sinks: u32) -> Situation {
        (self.label, self.op.window, self.op.sinks) = (label, window, sinks);
        self
    }
}

/// Arrangements of a size: causal, documents, a chunk inside a cache, decode, windows, nothing.
pub(crate) fn situations(size: Size) -> Vec<Situation> {
    let causal = |i: u32| (0, i);
    let window = |w: u32| move |i: u32| (i.saturating_sub(w - 1), i);
    match size {
        Size::Small => vec![
            situation("causal, shared heads", [3, 4, 4, 3, 2], causal),
            situation("two documents", [5, 2, 6, 5, 1], |i| if i < 2 { (0, i) } else { (2, i) }),
            situation("chunk inside a cache, one row sees nothing", [3, 2, 2, 9, 2], |i| {
                [(1, 4), (6, 5), (6, 7)][i as usize]
            }),
            situation("one query", [1, 2, 4, 6, 1], |_| (1, 4)),
            situation("", [5, 2, 4, 5, 1], causal).masked("window of 2 and a sink", 2, 1),
        ],
        Size::Ragged => vec![
            situation("one query, one key", [1, 1, 2, 1, 1], causal),
            situation("causal 12/4 heads", [70, 12, 24, 70, 4], causal),
            situation("three documents", [150, 3, 16, 150, 1], |i| (if i < 20 { 0 } else if i < 90 { 20 } else { 90 }, i)),
            situation("chunk inside a cache", [37, 4, 64, 300, 2], |i| (0, 101 + i)),
            situation("decode in a long cache", [1, 12, 64, 1000, 4], |_| (0, 900)),
            situation("decode of two streams", [2, 6, 10, 700, 2], |i| [(3, 270), (400, 657)][i as usize]),
            situation("sliding window", [130, 2, 18, 130, 1], window(33)),
            situation("", [150, 4, 16, 150, 2], causal).masked("window of 40", 40, 0),
            situation("", [170, 6, 64, 170, 2], causal).masked("window of 33, 5 sinks", 33, 5),
            situation("", [150, 3, 16, 150, 1], |i| (if i < 90 { 0 } else { 90 }, i)).masked("documents, window, sinks", 9, 3),
            situation("", [70, 2, 128, 70, 1], |i| (0, i.max(30))).masked("prefix, window", 25, 0),
            situation("", [40, 2, 10, 300, 2], |i| (100, 200 + i)).masked("chunk, more sinks than the window", 7, 60),
            situation("one key each", [9, 5, 40, 12, 5], |i| (i + 2, i + 2)),
            situation("heads of 128 that see ahead", [70, 6, 128, 95, 2], |i| (i.saturating_sub(40), i + 25)),
            situation("many heads of 64", [150, 9, 64, 150, 9], causal),
            situation("nine heads share, decode", [1, 9, 128, 600, 1], |_| (70, 599)),
            situation("decode of nine streams", [9, 4, 24, 560, 2], |i| (60 * i, 60 * i + 7 * i)),
            situation("nobody sees a key", [150, 2, 64, 150, 2], |_| (9, 8)),
            situation("gaps, rows that see nothing", [8, 2, 256, 200, 1], |i| {
                [(0, 1), (5, 3), (5, 80), (90, 89), (150, 150), (150, 190), (195, 190), (195, 195)][i as usize]
            }),
        ],
        Size::Bench => vec![
            situation("train 512", [512, 12, 64, 512, 4], causal),
            situation("decode at 4096", [1, 12, 64, 4096, 4], |_| (0, 4095)),
            situation("prefill 128 at 1024", [128, 20, 128, 1152, 5], |i| (0, 1024 + i)),
        ],
    }
}

fn spans(s: &Situation) -> Fill {
    Fill::Values(s.span.iter().flat_map(|&(a, b)| [f64::from(a), f64::from(b)]).collect())
}

/// Forward cases; every row of a cache that no token sees is NaN.
pub(crate) fn forward_cases(size: Size) -> Vec<Case> {
    let mut cases = Vec::new();
    for s in situations(size) {
        let mut case = Case::new(s.label, s.op).fill("span", spans(&s));
        for (operand, i) in [("k", 1), ("v", 2)] {
            // Where all is seen the default stays.
            let values = poisoned(&s, case.values(i, &mut Random::new(i as u64)));
            case = case.fill(operand, Fill::Values(values));
        }
        cases.push(case);
    }
    cases
}

fn poisoned(s: &Situation, mut values: Vec<f64>) -> Vec<f64> {
    let row = s.op.g as usize * s.op.d as usize;
    for (key, row) in values.chunks_exact_mut(row).enumerate() {
        let sees = |&(first, last): &(u32, u32)| s.op.mask().keys([first, last], s.op.t).iter().any(|k| k as usize == key);
        if !s.span.iter().any(sees) {
            row.fill(f64::NAN);
        }
    }
    values
}

/// Cases of the two gradient rows. The statistics are of the size that real ones have.
pub(crate) fn gradient_cases<O: Into<Op>>(size: Size, op: impl Fn(Attention) -> O) -> Vec<Case> {
    let case = |s: Situation| {
        let mut random = Random::new(5);
        let lse = (f64::from(s.op.t)).ln();
        let rows = (0..s.op.m * s.op.h).flat_map(|_| [lse + random.uniform(), random.normal()]);
        let stats = Fill::Values(rows.collect());
        Case::new(s.label, op(s.op)).fill("span", spans(&s)).fill("stats", stats)
    };
    situations(size).into_iter().map(case).collect()
}
