//! Gradient of attention with respect to the queries.
//!
//! With `p_ik = exp(scale·q_i·k_k − lse_i)` and `stats_i = (lse_i, δ_i)`:
//! `dq_i = scale · Σ_k p_ik · (do_i·v_k − δ_i) · k_k` over the keys of the span (Dao 2023).

use crate::cpu::math::exp;
use crate::cpu::parallel;
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::attention::cpu::{Dense, Queries, clear_outside, fill, within};
use crate::ops::attention::cuda::{Side, mma_gradient, mma_takes_gradient, tiled_gradient};
use crate::ops::attention::tile::{KEYS, ROWS, gather, multiply_add, padded_columns, padded_rows, transpose};
use crate::ops::attention::{Attention, gradient_cases};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AttentionGradQ {
    /// Query tokens.
    pub m: u32,
    /// Query heads.
    pub h: u32,
    /// Elements of a head.
    pub d: u32,
    /// Key tokens.
    pub t: u32,
    /// Key-value heads.
    pub g: u32,
    /// Factor of the scores.
    pub scale: f32,
    /// Keys that are seen from the end of a span.
    pub window: u32,
    /// Keys that are seen from its beginning.
    pub sinks: u32,
}

impl AttentionGradQ {
    fn forward(&self) -> Attention {
        let AttentionGradQ { m, h, d, t, g, scale, window, sinks } = *self;
        Attention { m, h, d, t, g, scale, window, sinks }
    }
}

impl From<Attention> for AttentionGradQ {
    fn from(p: Attention) -> Self {
        let Attention { m, h, d, t, g, scale, window, sinks } = p;
        AttentionGradQ { m, h, d, t, g, scale, window, sinks }
    }
}

impl Kernel for AttentionGradQ {
    const NAME: &'static str = "attention_grad_q";
    const SIGNATURE: &'static str = "q[m,h,d]:f32|bf16 k[t,g,d]:f32|bf16 v[t,g,d]:f32|bf16 span[m,2]:u32 stats[m,h,2]:f32 do[m,h,d]:f32|bf16 -> dq[m,h,d]:f32|bf16";
    const GRADIENT: Gradient = Gradient::None("it is a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "attention_grad_q",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.forward().query_tiles()),
    }];
    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "mma",
            entries: &["attention_grad_q_mma64", "attention_grad_q_mma128"],
            hot: true,
            align: 16,
            when: |op, operands| mma_takes_gradient(&op.forward(), operands),
            launch: |op, _, _| mma_gradient(Side::Queries, &op.forward()),
        },
        Cuda {
            name: "tiled",
            entries: &[
                "attention_grad_q_tiled64_f32",
                "attention_grad_q_tiled128_f32",
                "attention_grad_q_tiled256_f32",
                "attention_grad_q_tiled256_bf16",
            ],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, operands, _| tiled_gradient(Side::Queries, &op.forward(), operands),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.forward().extents()
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.forward().conditions()
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [q, k, v, span, stats, d_o, dq] = t else { return };
        let (p, d, h) = (self.forward(), self.d as usize, self.h as usize);
        let scale = f64::from(self.scale);
        dq.data.fill(0.0);
        for (i, head) in (0..self.m as usize).flat_map(|i| (0..h).map(move |head| (i, head))) {
            let (lse, delta) = (stats.data[2 * (i * h + head)], stats.data[2 * (i * h + head) + 1]);
            for key in p.reference_keys(span, i) {
                let (a, b) = p.starts(i, head, key);
                let dot = |x: &RefTensor, y: &RefTensor| (0..d).map(|l| x.data[a + l] * y.data[b + l]).sum::<f64>();
                let ds = scale * (scale * dot(q, k) - lse).exp() * (dot(d_o, v) - delta);
                for l in 0..d {
                    dq.data[a + l] += ds * k.data[b + l];
                }
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let p = self.forward();
        let (h, d, shared) = (p.h as usize, p.d as usize, p.shared());
        let (q, span) = (args.read::<f32>(0), args.read::<u32>(3));
        let source = Dense { k: args.read(1), v: args.read(2), g: p.g as usize, d };
        let (stats, d_o) = (args.read::<f32>(4), args.read::<f32>(5));
        let tokens = (ROWS / shared).max(1);
        let work = 3 * tokens * h * d * p.t as usize;
        parallel::rows(args.write::<f32>(6), tokens * h * d, work, |block, dq| {
            let queries = Queries::new(&p, span, block * tokens..(block * tokens + tokens).min(p.m as usize));
            let mut scratch = Scratch::new(queries.rows(), d);
            let base = block * tokens * h;
            for kv in 0..p.g as usize {
                scratch.run(&p, &queries, (q, &source, stats, d_o), kv);
                for r in 0..queries.rows() {
                    let at = queries.index(r, kv) - base;
                    let sums = &scratch.out[r * padded_columns(d)..][..d];
                    dq[at * d..(at + 1) * d].copy_from_slice(sums);
                }
            }
        });
    }

    fn operations(&self) -> u64 {
        6 * self.forward().pairs() * u64::from(self.d)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 2e-5, why: "as the forward row (1e-5), times a difference of two sums of d products" }
    }

    fn cases(size: Size) -> Vec<Case> {
        gradient_cases(size, AttentionGradQ::from)
    }
}

/// Working memory for a block of queries and one key-value head.
struct Scratch {
    d: usize,
    queries: Vec<f32>,
    upstream: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    turned: Vec<f32>,
    scores: Vec<f32>,
    slopes: Vec<f32>,
    out: Vec<f32>,
}

type Inputs<'a> = (&'a [f32], &'a Dense<'a>, &'a [f32], &'a [f32]);

impl Scratch {
    fn new(rows: usize, d: usize) -> Self {
        let (rows, wide) = (padded_rows(rows), padded_columns(d));
        let zeros = |n: usize| vec![0f32; n];
        Scratch {
            d,
            queries: zeros(rows * d),
            upstream: zeros(rows * d),
            keys: zeros(KEYS * wide),
            values: zeros(KEYS * wide),
            turned: zeros(d * KEYS),
            scores: zeros(rows * KEYS),
            slopes: zeros(rows * KEYS),
            out: zeros(rows * wide),
        }
    }

    fn run(&mut self, p: &Attention, queries: &Queries, (q, source, stats, d_o): Inputs<'_>, kv: usize) {
        let wide = padded_columns(self.d);
        gather(&mut self.queries, self.d, |r| queries.row(q, r, kv));
        gather(&mut self.upstream, self.d, |r| queries.row(d_o, r, kv));
        self.out.fill(0.0);
        for first in queries.tiles() {
            let seen = queries.seen(first);
            fill(&mut self.keys, wide, source, false, kv, first, &seen);
            fill(&mut self.values, wide, source, true, kv, first, &seen);
            for (tile, left, out) in
                [(&self.keys, &self.queries, &mut self.scores), (&self.values, &self.upstream, &mut self.slopes)]
            {
                transpose(&mut self.turned, tile, wide);
                out.fill(0.0);
                multiply_add(out, left, &self.turned, self.d, KEYS);
            }
            let rows = self.scores.chunks_exact_mut(KEYS).zip(self.slopes.chunks_exact(KEYS));
            for (r, (scores, slopes)) in rows.enumerate() {
                let mine = if r < queries.rows() { within(queries.keys(r), first) } else { [0..0, 0..0] };
                clear_outside(scores, &mine);
                if r >= queries.rows() {
                    continue;
                }
                let at = 2 * queries.index(r, kv);
                let (lse, delta) = (stats[at], stats[at + 1]);
                for mine in mine {
                    for (s, slope) in scores[mine.clone()].iter_mut().zip(&slopes[mine]) {
                        *s = p.scale * exp(p.scale * *s - lse) * (slope - delta);
                    }
                }
            }
            multiply_add(&mut self.out, &self.scores, &self.keys, KEYS, wide);
        }
    }
}
