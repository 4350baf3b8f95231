//! Decode steps by fused rows: what a layer does for a few tokens in five kernels.
//!
//! A step of few tokens reads the weights once and computes little, so what counts is how often a device is
//! asked and how often small vectors go through memory. Here a layer is `ternary_qkv`, attention,
//! `ternary_add`, `ternary_gate`, `ternary_add`. Each is taken where the block's projections allow
//! it (ternary, without biases or norms between projection and what follows); the rest is recorded
//! one op after the other as for many tokens.

use crate::config::{Activation, Config};
use crate::forward::{Cached, Stream};
use crate::weights::{Layer, Linear, Matrix, Model, Ternary};
use tritter_runtime::ops::ternary_qkv::Places;
use tritter_runtime::ops::{gate, ternary_add, ternary_gate, ternary_qkv};
use tritter_runtime::{Graph, Result, Tensor, Value};

/// Most tokens of a fused step: each of them is normed and quantised again by every workgroup.
pub const MOST_TOKENS: usize = 4;

/// Records fused rows for one layer.
pub(crate) struct Fused<'a> {
    model: &'a Model,
    layer: &'a Layer,
    stream: &'a Stream,
}

impl<'a> Fused<'a> {
    /// For a layer of a stream that is short enough, where the model's formats ask for it.
    pub(crate) fn new(model: &'a Model, layer: &'a Layer, stream: &'a Stream) -> Option<Self> {
        (model.formats.fused && stream.len() <= MOST_TOKENS).then_some(Fused { model, layer, stream })
    }

    fn norm(&self, g: &mut Graph, weight: Option<&Tensor>) -> Option<(Value, f32)> {
        weight.map(|weight| (g.bind(weight), self.model.config.rms_norm_eps as f32))
    }

    /// The rotated queries of `x`; keys and values are appended to layer `index` of the cache.
    pub(crate) fn queries(&self, g: &mut Graph, x: Value, cached: Cached<'_>, index: usize) -> Result<Option<Value>> {
        let layer = self.layer;
        let Some(all) = together([&layer.q, &layer.k, &layer.v]) else { return Ok(None) };
        if layer.q_norm.is_some() || layer.k_norm.is_some() {
            return Ok(None);
        }
        let Config { num_heads, num_kv_heads, .. } = self.model.config;
        let (tables, stream) = (&self.model.rope, self.stream);
        let to = Places {
            heads: [num_heads, num_kv_heads],
            pos: g.bind(&stream.positions),
            slot: g.bind(&cached.places.slots),
            tables: [g.bind(&tables.coarse), g.bind(&tables.fine)],
            cache: g.bind(&cached.cache.rows[index]),
        };
        let norm = self.norm(g, Some(&layer.attn_norm));
        let weights = (g.bind(&all.codes), g.bind(&all.scales));
        ternary_qkv::ternary_qkv(g, x, norm, weights, to).map(Some)
    }

    /// `residual` plus a projection of `x`, which goes through a norm where there is one.
    pub(crate) fn close(
        &self,
        g: &mut Graph,
        linear: &Linear,
        norm: Option<&Tensor>,
        x: Value,
        residual: Value,
    ) -> Result<Option<Value>> {
        let Some(part) = together([linear]) else { return Ok(None) };
        let norm = self.norm(g, norm);
        let weights = (g.bind(&part.codes), g.bind(&part.scales));
        ternary_add::ternary_add(g, x, norm, weights, residual).map(Some)
    }

    /// The gated activation of `h`.
    pub(crate) fn gate(&self, g: &mut Graph, h: Value) -> Result<Option<Value>> {
        let Some(both) = together([&self.layer.gate, &self.layer.up]) else { return Ok(None) };
        let norm = self.norm(g, Some(&self.layer.ffn_norm));
        let weights = (g.bind(&both.codes), g.bind(&both.scales));
        let activation = activation(&self.model.config);
        ternary_gate::ternary_gate(g, activation, h, norm, weights).map(Some)
    }
}

/// The activation of a config, as its row names it.
pub(crate) fn activation(config: &Config) -> gate::Activation {
    match config.activation {
        Activation::Relu2 => gate::Activation::Relu2,
        Activation::Silu => gate::Activation::Silu,
    }
}

/// The tensor in which ternary projections without biases lie one below the other, all that lie there.
fn together<'a, const N: usize>(linears: [&'a Linear; N]) -> Option<&'a Ternary> {
    let part = |linear: &'a Linear| match &linear.matrix {
        Matrix::Ternary(part) if linear.bias.is_none() => Some(part),
        _ => None,
    };
    let first = part(linears[0])?;
    let shared = first.scales.spec().elements() == N;
    let same = |linear: &&'a Linear| part(linear).is_some_and(|part| part.codes.name() == first.codes.name());
    (shared && linears.iter().all(same)).then_some(first)
}
