//! Gradient of attention with respect to keys and values.
//!
//! With `p_ik = exp(scale·q_i·k_k − lse_i)` and `stats_i = (lse_i, δ_i)`:
//! `dv_k = Σ_i p_ik · do_i` and `dk_k = scale · Σ_i p_ik · (do_i·v_k − δ_i) · q_i`, over the queries
//! that see key `k`, of all heads that share it, in the order of (token, head). Keys that nobody
//! sees get 0.

use crate::cpu::math::exp;
use crate::cpu::parallel;
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::attention::cpu::Queries;
use crate::ops::attention::cuda::{Side, mma_gradient, mma_takes_gradient, tiled_gradient};
use crate::ops::attention::tile::{KEYS, ROWS, gather, multiply_add, padded_columns, transpose};
use crate::ops::attention::{Attention, Keys, gradient_cases};
use crate::reference::RefTensor;
use std::ops::Range;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AttentionGradKv {
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

impl AttentionGradKv {
    fn forward(&self) -> Attention {
        let AttentionGradKv { m, h, d, t, g, scale, window, sinks } = *self;
        Attention { m, h, d, t, g, scale, window, sinks }
    }
}

impl From<Attention> for AttentionGradKv {
    fn from(p: Attention) -> Self {
        let Attention { m, h, d, t, g, scale, window, sinks } = p;
        AttentionGradKv { m, h, d, t, g, scale, window, sinks }
    }
}

impl Kernel for AttentionGradKv {
    const NAME: &'static str = "attention_grad_kv";
    const SIGNATURE: &'static str = "q[m,h,d]:f32|bf16 k[t,g,d]:f32|bf16 v[t,g,d]:f32|bf16 span[m,2]:u32 stats[m,h,2]:f32 do[m,h,d]:f32|bf16 -> dk[t,g,d]:f32|bf16 dv[t,g,d]:f32|bf16";
    const GRADIENT: Gradient = Gradient::None("it is a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "attention_grad_kv",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.g as usize * (op.t as usize).div_ceil(16)),
    }];
    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "mma",
            entries: &["attention_grad_kv_mma64", "attention_grad_kv_mma128"],
            hot: true,
            align: 16,
            when: |op, operands| mma_takes_gradient(&op.forward(), operands),
            launch: |op, _, _| mma_gradient(Side::Keys, &op.forward()),
        },
        Cuda {
            name: "tiled",
            entries: &[
                "attention_grad_kv_tiled64_f32",
                "attention_grad_kv_tiled128_f32",
                "attention_grad_kv_tiled256_f32",
                "attention_grad_kv_tiled256_bf16",
            ],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, operands, _| tiled_gradient(Side::Keys, &op.forward(), operands),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.forward().extents()
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.forward().conditions()
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [q, k, v, span, stats, d_o, dk, dv] = t else { return };
        let (p, d, h) = (self.forward(), self.d as usize, self.h as usize);
        let scale = f64::from(self.scale);
        dk.data.fill(0.0);
        dv.data.fill(0.0);
        for (i, head) in (0..self.m as usize).flat_map(|i| (0..h).map(move |head| (i, head))) {
            let (lse, delta) = (stats.data[2 * (i * h + head)], stats.data[2 * (i * h + head) + 1]);
            for key in p.reference_keys(span, i) {
                let (a, b) = p.starts(i, head, key);
                let dot = |x: &RefTensor, y: &RefTensor| (0..d).map(|l| x.data[a + l] * y.data[b + l]).sum::<f64>();
                let weight = (scale * dot(q, k) - lse).exp();
                let ds = scale * weight * (dot(d_o, v) - delta);
                for l in 0..d {
                    dk.data[b + l] += ds * q.data[a + l];
                    dv.data[b + l] += weight * d_o.data[a + l];
                }
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let p = self.forward();
        let (d, g) = (p.d as usize, p.g as usize);
        let inputs = Inputs {
            q: args.read(0),
            k: args.read(1),
            v: args.read(2),
            span: args.read(3),
            stats: args.read(4),
            d_o: args.read(5),
        };
        let (dk, dv) = (args.write::<f32>(6), args.write::<f32>(7));
        let (width, work) = (KEYS * g * d, 4 * KEYS * g * d * p.shared() * p.m as usize);
        parallel::rows2(dk, width, dv, width, work, |tile, dk, dv| {
            let keys = tile * KEYS..(tile * KEYS + KEYS).min(p.t as usize);
            let mut scratch = Scratch::new(&p);
            for kv in 0..g {
                scratch.run(&p, &inputs, keys.clone(), kv);
                for (key, (dk, dv)) in dk.chunks_exact_mut(g * d).zip(dv.chunks_exact_mut(g * d)).enumerate() {
                    let row = key * padded_columns(d)..key * padded_columns(d) + d;
                    dk[kv * d..(kv + 1) * d].copy_from_slice(&scratch.dk[row.clone()]);
                    dv[kv * d..(kv + 1) * d].copy_from_slice(&scratch.dv[row]);
                }
            }
        });
    }

    fn operations(&self) -> u64 {
        8 * self.forward().pairs() * u64::from(self.d)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 2e-5,
            why: "as the forward row (1e-5), times a difference of two sums of d products, summed over all queries",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        gradient_cases(size, AttentionGradKv::from)
    }
}

struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    span: &'a [u32],
    stats: &'a [f32],
    d_o: &'a [f32],
}

/// Working memory for a tile of keys of one head; everything is turned: keys are rows, queries columns.
struct Scratch {
    tokens: usize,
    columns: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    upstream: Vec<f32>,
    turned: Vec<f32>,
    weights: Vec<f32>,
    slopes: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Scratch {
    fn new(p: &Attention) -> Self {
        let (d, wide) = (p.d as usize, padded_columns(p.d as usize));
        let tokens = (ROWS / p.shared()).max(1);
        let columns = padded_columns(tokens * p.shared());
        let zeros = |n: usize| vec![0f32; n];
        Scratch {
            tokens,
            columns,
            keys: zeros(KEYS * d),
            values: zeros(KEYS * d),
            queries: zeros(columns * wide),
            upstream: zeros(columns * wide),
            turned: zeros(d * columns),
            weights: zeros(KEYS * columns),
            slopes: zeros(KEYS * columns),
            dk: zeros(KEYS * wide),
            dv: zeros(KEYS * wide),
        }
    }

    fn run(&mut self, p: &Attention, x: &Inputs<'_>, keys: Range<usize>, kv: usize) {
        let (d, g, wide, columns) = (p.d as usize, p.g as usize, padded_columns(p.d as usize), self.columns);
        let place = |r: usize| (r < keys.len()).then(|| ((keys.start + r) * g + kv) * d);
        gather(&mut self.keys, d, |r| place(r).map(|at| &x.k[at..at + d]));
        gather(&mut self.values, d, |r| place(r).map(|at| &x.v[at..at + d]));
        self.dk.fill(0.0);
        self.dv.fill(0.0);
        let sees = |i: &usize| {
            let Keys { sinks, window, .. } = p.visible(x.span, *i);
            let meets = |r: Range<u32>| !r.is_empty() && (r.start as usize) < keys.end && r.end as usize > keys.start;
            meets(sinks) || meets(window)
        };
        let tokens = 0..p.m as usize;
        let (Some(first), Some(last)) = (tokens.clone().find(sees), tokens.rev().find(sees)) else { return };
        for token in (first..=last).step_by(self.tokens) {
            let queries = Queries::new(p, x.span, token..(token + self.tokens).min(last + 1));
            gather(&mut self.queries, wide, |r| queries.row(x.q, r, kv));
            gather(&mut self.upstream, wide, |r| queries.row(x.d_o, r, kv));
            for (tile, left, out) in
                [(&self.queries, &self.keys, &mut self.weights), (&self.upstream, &self.values, &mut self.slopes)]
            {
                transpose(&mut self.turned, tile, wide);
                out.fill(0.0);
                multiply_add(out, left, &self.turned, d, columns);
            }
            self.weigh(p, &queries, x.stats, keys.start, kv);
            multiply_add(&mut self.dv, &self.weights, &self.upstream, columns, wide);
            multiply_add(&mut self.dk, &self.slopes, &self.queries, columns, wide);
        }
    }

    /// Scores to weights, and gradients of weights to gradients of scores.
    fn weigh(&mut self, p: &Attention, queries: &Queries, stats: &[f32], first_key: usize, kv: usize) {
        // A column past the last row sees nothing.
        let mut columns = vec![([0u32; 4], 0f32, 0f32); self.columns];
        for (r, column) in columns.iter_mut().enumerate().take(queries.rows()) {
            let (keys, at) = (queries.keys(r), 2 * queries.index(r, kv));
            let ([a, b], len) = ([&keys.sinks, &keys.window], |r: &Range<u32>| r.end - r.start);
            *column = ([a.start, len(a), b.start, len(b)], stats[at], stats[at + 1]);
        }
        let rows = self.weights.chunks_exact_mut(self.columns).zip(self.slopes.chunks_exact_mut(self.columns));
        for (key, (weights, slopes)) in rows.enumerate() {
            let key = (first_key + key) as u32;
            for ((weight, slope), &([sink, sinks, first, count], lse, delta)) in
                weights.iter_mut().zip(slopes).zip(&columns)
            {
                let visible = (key.wrapping_sub(first) < count) | (key.wrapping_sub(sink) < sinks);
                let w = exp(p.scale * *weight - lse);
                *weight = if visible { w } else { 0.0 };
                *slope = if visible { p.scale * w * (*slope - delta) } else { 0.0 };
            }
        }
    }
}
