//! Attention with grouped heads over contiguous spans of keys (FlashAttention, Dao 2023).
//!
//! Query token `i` sees of the keys `span[i][0] ..= span[i][1]` what the mask leaves ([`Mask`]); query head `j` reads key-value head
//! `j / (h/g)`. With `s_ik = scale · q_i·k_k`, `lse_i = ln Σ_k exp(s_ik)` and
//! `o_i = Σ_k exp(s_ik − lse_i) · v_k`, by online softmax over tiles of keys: no `m × t` array.
//!
//! Contract: both columns of `span` are non-decreasing and below `t` (a last key past the end
//! counts as `t − 1`). Where first > last the row sees nothing: `o = 0`, `lse = −1e30`. Keys that
//! no query sees never matter, whatever they hold; keys that are seen must be finite. Caches have rows of their
//! own ([`super::paged`]).

mod cases;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod mask;
pub(crate) mod tile;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::{attention_grad_kv, attention_grad_q, attention_stats};
use crate::reference::RefTensor;

pub(crate) use cases::gradient_cases;
pub use mask::{Keys, Mask};

/// `lse` of a row that sees nothing.
pub const NOTHING: f32 = -1e30;

/// Largest head size.
pub const MAX_HEAD: u32 = 256;

/// Parameters; the same for the gradients of `q` and of `k` and `v`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Attention {
    /// Query tokens.
    pub m: u32,
    /// Query heads.
    pub h: u32,
    /// Elements of a head.
    pub d: u32,
    /// Key tokens, or the capacity of the cache.
    pub t: u32,
    /// Key-value heads.
    pub g: u32,
    /// Factor of the scores, usually `d^-0.5`.
    pub scale: f32,
    /// Keys that are seen from the end of a span, see [`Mask`].
    pub window: u32,
    /// Keys that are seen from its beginning, see [`Mask`].
    pub sinks: u32,
}

/// Records attention over what `mask` leaves of the spans and returns `o[m,h,d]`.
pub fn attention(g: &mut Graph, [q, k, v]: [Value; 3], span: Value, mask: Mask, scale: f32) -> Result<Value> {
    let (&[m, h, d], &[t, groups, _]) = (&g.spec(q).shape[..], &g.spec(k).shape[..]) else {
        let message = format!("attention: q ({}) and k ({}) must be [tokens, heads, head size]", g.spec(q), g.spec(k));
        return Err(Error::Record { graph: g.name().into(), message });
    };
    if g.spec(k).dtype != g.spec(v).dtype {
        let message = format!("attention: k ({}) and v ({}) must have one dtype", g.spec(k), g.spec(v));
        return Err(Error::Record { graph: g.name().into(), message });
    }
    let o = g.activation([m, h, d], g.spec(q).dtype);
    let lse = g.activation([m, h], DType::F32);
    let [m, h, d, t, groups] = [m, h, d, t, groups].map(|n| n as u32);
    let Mask { window, sinks } = mask;
    g.record(Attention { m, h, d, t, g: groups, scale, window, sinks }, &[q, k, v, span, o, lse])?;
    Ok(o)
}

impl Attention {
    /// Query heads that share a key-value head.
    pub(crate) fn shared(&self) -> usize {
        (self.h / self.g.max(1)).max(1) as usize
    }

    /// What is seen of a span.
    pub(crate) fn mask(&self) -> Mask {
        Mask { window: self.window, sinks: self.sinks }
    }

    /// Keys that query token `i` sees.
    pub(crate) fn visible(&self, span: &[u32], i: usize) -> Keys {
        self.mask().keys([span[2 * i], span[2 * i + 1]], self.t)
    }

    /// As [`Attention::visible`] for the reference's values.
    pub(crate) fn reference_keys(&self, span: &RefTensor, i: usize) -> impl Iterator<Item = usize> + use<> {
        let keys = self.visible(&[span.data[2 * i] as u32, span.data[2 * i + 1] as u32], 0);
        keys.sinks.chain(keys.window).map(|key| key as usize)
    }

    /// Extents of the signature.
    pub(crate) fn extents(&self) -> Vec<(&'static str, usize)> {
        let Attention { m, h, d, t, g, .. } = *self;
        [("m", m), ("h", h), ("d", d), ("t", t), ("g", g)].map(|(name, n)| (name, n as usize)).to_vec()
    }

    /// Conditions that the gradients share.
    pub(crate) fn conditions(&self) -> std::result::Result<(), String> {
        let Attention { h, d, g, .. } = *self;
        if g == 0 || h % g != 0 {
            return Err(format!("attention: {h} query heads cannot share {g} key-value heads evenly"));
        }
        if d == 0 || d % 2 != 0 || d > MAX_HEAD {
            return Err(format!("attention: the head size {d} must be even and at most {MAX_HEAD}"));
        }
        if self.window == 0 {
            return Err("attention: a window of 0 keys sees nothing; it must be 1 at least".into());
        }
        Ok(())
    }

    /// Pairs of query and key over all heads, as if the queries were the last of the keys and
    /// causal: the op does not know the spans.
    pub(crate) fn pairs(&self) -> u64 {
        let (m, t) = (u64::from(self.m), u64::from(self.t));
        let pairs = if m <= t { m * t - m * (m - 1) / 2 } else { m * t };
        pairs * u64::from(self.h)
    }

    /// Workgroups of the tiled shaders: 16 rows of (token, sharing head) each.
    pub(crate) fn query_tiles(&self) -> usize {
        self.g as usize * (self.m as usize * self.shared()).div_ceil(16)
    }

    /// The reference's start of q row, and of the k and v row.
    pub(crate) fn starts(&self, i: usize, head: usize, key: usize) -> (usize, usize) {
        let (h, d, g) = (self.h as usize, self.d as usize, self.g as usize);
        ((i * h + head) * d, (key * g + head / self.shared()) * d)
    }
}

impl Kernel for Attention {
    const NAME: &'static str = "attention";
    const SIGNATURE: &'static str =
        "q[m,h,d]:f32|bf16 k[t,g,d]:f32|bf16 v[t,g,d]:f32|bf16 span[m,2]:u32 -> o[m,h,d]:f32|bf16 lse[m,h]:f32";
    const GRADIENT: Gradient = Gradient::Rule;
    const SAVED: &'static [&'static str] = &["lse"];
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "attention",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.query_tiles()),
    }];
    const CUDA: &'static [Cuda<Self>] = cuda::FORWARD;

    fn dims(&self) -> Vec<(&'static str, usize)> {
        self.extents()
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.conditions()
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [q, k, v, span, o, lse] = t else { return };
        let (h, d) = (self.h as usize, self.d as usize);
        for (i, head) in (0..self.m as usize).flat_map(|i| (0..h).map(move |head| (i, head))) {
            let keys: Vec<usize> = self.reference_keys(span, i).collect();
            let out = &mut o.data[(i * h + head) * d..][..d];
            out.fill(0.0);
            if keys.is_empty() {
                lse.data[i * h + head] = f64::from(NOTHING);
                continue;
            }
            let score = |key: usize| {
                let (a, b) = self.starts(i, head, key);
                f64::from(self.scale) * (0..d).map(|l| q.data[a + l] * k.data[b + l]).sum::<f64>()
            };
            let scores: Vec<f64> = keys.iter().map(|&key| score(key)).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            lse.data[i * h + head] = most + total.ln();
            for (key, s) in keys.into_iter().zip(scores) {
                let (_, b) = self.starts(i, head, key);
                for (l, out) in out.iter_mut().enumerate() {
                    *out += (s - most).exp() / total * v.data[b + l];
                }
            }
        }
    }

    fn cpu(&self, args: Args<'_>) {
        cpu::forward(self, args);
    }

    fn operations(&self) -> u64 {
        4 * self.pairs() * u64::from(self.d)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 1e-5,
            why: "f32 scores (d products) go through exp: an error of 1e-6 in a score is one of 1e-6 in its weight; WGSL's exp adds 3 + 2|x| ULP where weights are small",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        cases::forward_cases(size)
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(d_o) = cx.upstream(4) else { return Ok(()) };
        let Attention { m, h, d, t, g, scale, window, sinks } = *self;
        let (q, k, v, span) = (cx.operand(0), cx.operand(1), cx.operand(2), cx.operand(3));
        let stats = attention_stats::AttentionStats { m, h, d };
        let stats = cx.graph.apply(stats, &[cx.operand(4), d_o, cx.operand(5)])?;
        if cx.wanted(0) {
            let op = attention_grad_q::AttentionGradQ { m, h, d, t, g, scale, window, sinks };
            let dq = cx.graph.apply(op, &[q, k, v, span, stats, d_o])?;
            cx.give(0, dq);
        }
        if cx.wanted(1) || cx.wanted(2) {
            let op = attention_grad_kv::AttentionGradKv { m, h, d, t, g, scale, window, sinks };
            let shape = [t as usize, g as usize, d as usize];
            let dtype = cx.graph.spec(k).dtype;
            let (dk, dv) = (cx.graph.activation(shape, dtype), cx.graph.activation(shape, dtype));
            cx.graph.record(op, &[q, k, v, span, stats, d_o, dk, dv])?;
            for (i, value) in [(1, dk), (2, dv)] {
                if cx.wanted(i) {
                    cx.give(i, value);
                }
            }
        }
        Ok(())
    }
}
