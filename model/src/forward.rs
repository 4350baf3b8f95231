//! The transformer, recorded: embedding, layers, final norm, logits.
//!
//! `x` is `[M, D]`: M tokens in one stream. Which keys a token sees is its *span*
//! (first and last visible key, inclusive), so documents, batch rows, prefill chunks
//! and single steps are the same program with other inputs. Blocks are those of
//! Llama (Touvron et al. 2023) and BitNet b1.58 2B4T (Ma et al. 2025), and our own
//! `tritter` block: see `ARCHITECTURE.md`.

mod inputs;

pub use inputs::{Cached, Places, Stream};

use crate::fused::{Fused, activation};
use crate::weights::{Dense, Layer, Linear, Matrix, Model};
use tritter_runtime::ops::paged::Paged;
use tritter_runtime::ops::{
    add, add_bias, attention, attention_join, cache_append, cache_quantize, cast, gate, gather, matmul_nt,
    paged_attention, quantize_int8, quantized_attention, quantized_gather, quantized_matmul, reduce, rms_norm, rope,
    ternarize, ternary_matmul,
};
use tritter_runtime::{DType, Graph, Result, Tensor, Value};

/// Named values that a run passes through, for tests that look inside.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Name (`layers.0.q_proj`) and value.
    pub points: Vec<(String, Value)>,
    /// Number of recorded nodes at the start of each layer, and after the last.
    pub boundaries: Vec<usize>,
}

/// Records the embedding, all layers and the final norm; gives `[M, D]`. Activations are `dtype`: f32,
/// or bf16 in training (caches take f32 only).
pub fn hidden(
    g: &mut Graph,
    model: &Model,
    stream: &Stream,
    cache: Option<Cached<'_>>,
    dtype: DType,
    trace: &mut Trace,
) -> Result<Value> {
    let mut x = embed(g, model, stream, dtype, trace)?;
    for index in 0..model.layers.len() {
        x = layer(g, model, index, stream, cache, x, trace)?;
    }
    finish(g, model, x, trace)
}

/// Records the embedding `[M, D]`.
pub fn embed(g: &mut Graph, model: &Model, stream: &Stream, dtype: DType, trace: &mut Trace) -> Result<Value> {
    let (table, ids) = (g.bind(&model.embedding.values), g.bind(&stream.ids));
    let x = match &model.embedding.scales {
        Some(scales) => {
            let scales = g.bind(scales);
            quantized_gather::quantized_gather(g, table, scales, model.embedding.group, ids)?
        }
        None => gather::gather(g, table, ids, dtype)?,
    };
    trace.points.push(("embed_tokens".into(), x));
    Ok(x)
}

/// Records layer `index` of `x[M, D]`.
pub fn layer(
    g: &mut Graph,
    model: &Model,
    index: usize,
    stream: &Stream,
    cache: Option<Cached<'_>>,
    x: Value,
    trace: &mut Trace,
) -> Result<Value> {
    trace.boundaries.push(g.nodes().len());
    let x = Block { model, layer: &model.layers[index], index, stream, cache }.record(g, x, trace)?;
    trace.points.push((format!("layers.{index}"), x));
    Ok(x)
}

/// Records the final norm of `x[M, D]`.
pub fn finish(g: &mut Graph, model: &Model, x: Value, trace: &mut Trace) -> Result<Value> {
    trace.boundaries.push(g.nodes().len());
    let x = norm(g, model, x, &model.norm)?;
    trace.points.push(("norm".into(), x));
    Ok(x)
}

/// Records logits `[M, V]` of `x[M, D]`, in the dtype of `x`.
pub fn logits(g: &mut Graph, model: &Model, x: Value) -> Result<Value> {
    dense(g, x, model.head.as_ref().unwrap_or(&model.embedding))
}

/// `x wᵀ`: of f32 weights in the dtype of `x`, of weights in fewer bits in f32.
fn dense(g: &mut Graph, x: Value, weight: &Dense) -> Result<Value> {
    let w = g.bind(&weight.values);
    match &weight.scales {
        Some(scales) => {
            let scales = g.bind(scales);
            quantized_matmul::quantized_matmul(g, x, w, scales, weight.group)
        }
        None if g.spec(w).dtype == DType::F32 => {
            let w = cast::cast(g, w, g.spec(x).dtype)?;
            matmul_nt::matmul_nt(g, x, w)
        }
        None => matmul_nt::matmul_nt(g, x, w),
    }
}

fn norm(g: &mut Graph, model: &Model, x: Value, weight: &Tensor) -> Result<Value> {
    let weight = g.bind(weight);
    rms_norm::rms_norm(g, x, weight, model.config.rms_norm_eps as f32)
}

/// The input of projections: quantised once, however many projections read it.
struct Input {
    x: Value,
    codes: Option<(Value, Value)>,
}

impl Input {
    fn new(x: Value) -> Self {
        Input { x, codes: None }
    }

    fn codes(&mut self, g: &mut Graph) -> Result<(Value, Value)> {
        if let Some(codes) = self.codes {
            return Ok(codes);
        }
        let codes = quantize_int8::quantize_int8(g, self.x)?;
        self.codes = Some(codes);
        Ok(codes)
    }
}

/// `y = x Wᵀ + b`, by the matrix's own kernel, in the dtype of `x`.
fn project(g: &mut Graph, linear: &Linear, input: &mut Input) -> Result<Value> {
    let dtype = g.spec(input.x).dtype;
    let y = match &linear.matrix {
        Matrix::Dense(weight) => dense(g, input.x, weight)?,
        Matrix::Master(master) => {
            let master = g.bind(master);
            let scale = abs_mean(g, master)?;
            let codes = ternarize::ternarize(g, master, scale)?;
            let (q, s) = input.codes(g)?;
            ternary_matmul::ternary_matmul(g, codes, (scale, 0), q, s, dtype)?
        }
        Matrix::Ternary(part) => {
            let (codes, scales) = (g.bind(&part.codes), g.bind(&part.scales));
            let codes = if part.is_whole() { codes } else { g.rows(codes, part.first, part.rows)? };
            let (q, s) = input.codes(g)?;
            ternary_matmul::ternary_matmul(g, codes, (scales, part.index), q, s, dtype)?
        }
    };
    match &linear.bias {
        Some(bias) => {
            let bias = g.bind(bias);
            add_bias::add_bias(g, y, bias)
        }
        None => Ok(y),
    }
}

/// The scale of absmean ternarisation, `max(mean|w|, 1e-5)` (Ma et al. 2024, equation 3).
pub(crate) fn abs_mean(g: &mut Graph, master: Value) -> Result<Value> {
    let n = g.spec(master).elements() as f32;
    reduce::reduce_to_scalar(g, master, reduce::Kind::Abs, 1.0 / n, 1e-5)
}

struct Block<'a> {
    model: &'a Model,
    layer: &'a Layer,
    index: usize,
    stream: &'a Stream,
    cache: Option<Cached<'a>>,
}

impl Block<'_> {
    fn record(&self, g: &mut Graph, x: Value, trace: &mut Trace) -> Result<Value> {
        let h = self.attention(g, x, trace)?;
        self.feed_forward(g, h, trace)
    }

    fn fused(&self) -> Option<Fused<'_>> {
        self.cache.and_then(|_| Fused::new(self.model, self.layer, self.stream))
    }

    fn point(&self, trace: &mut Trace, name: &str, value: Value) {
        trace.points.push((format!("layers.{}.{name}", self.index), value));
    }

    /// Attention with its residual.
    fn attention(&self, g: &mut Graph, x: Value, trace: &mut Trace) -> Result<Value> {
        let (config, layer, m) = (&self.model.config, self.layer, self.stream.len());
        let (heads, width) = (config.num_heads, config.head_dim);
        let o = match self.cache {
            Some(cached) => self.attend(g, x, cached, trace)?,
            None => {
                let [q, k, v] = self.queries(g, x, trace)?;
                let span = g.bind(&self.stream.span);
                attention::attention(g, [q, k, v], span, config.mask(), config.attention_scale())?
            }
        };
        let mut o = g.view(o, [m, heads * width])?;
        if let Some(fused) = self.fused()
            && let Some(h) = fused.close(g, &layer.o, layer.attn_sub_norm.as_ref(), o, x)?
        {
            return Ok(h);
        }
        if let Some(weight) = &layer.attn_sub_norm {
            o = norm(g, self.model, o, weight)?;
            self.point(trace, "self_attn.attn_sub_norm", o);
        }
        let y = project(g, &layer.o, &mut Input::new(o))?;
        self.point(trace, "self_attn.o_proj", y);
        add::add(g, x, y)
    }

    /// Attention `[m, heads, d]` over the cache, to which the stream's own keys and values are appended.
    fn attend(&self, g: &mut Graph, x: Value, cached: Cached<'_>, trace: &mut Trace) -> Result<Value> {
        let (config, Cached { cache, places }) = (&self.model.config, cached);
        let shape = [self.stream.len(), config.num_heads, config.head_dim];
        let rows = g.bind(&cache.rows[self.index]);
        let q = match self.fused() {
            Some(fused) => fused.queries(g, x, cached, self.index)?,
            None => None,
        };
        let q = match q {
            Some(q) => g.view(q, shape)?,
            None => {
                let [q, k, v] = self.queries(g, x, trace)?;
                let slots = g.bind(&places.slots);
                cache_append::cache_append(g, [k, v], slots, rows)?;
                q
            }
        };
        let sink_q = if cache.shape.sinks > 0 { self.turn_back(g, q, places)? } else { q };
        let paged = Paged {
            q,
            sink_q,
            rows: g.bind(&places.seen),
            table: g.bind(&cache.table),
            page: cache.shape.format.page,
            scale: config.attention_scale(),
            mask: cache.mask(),
            parts: places.parts,
            prompt: places.prompt,
        };
        let parts = match (cache.shape.format.block(config.head_dim), cache.codes.get(self.index)) {
            (Some(block), Some(codes)) => {
                let (codes, groups) = (g.bind(codes), g.bind(&places.groups));
                cache_quantize::cache_quantize(g, rows, groups, block, codes)?;
                quantized_attention::quantized_attention(g, paged, block, codes, rows)?
            }
            _ => paged_attention::paged_attention(g, paged, rows)?,
        };
        attention_join::attention_join(g, parts)
    }

    /// Queries turned back from their place in the text to their place in the cache, for sinks.
    fn turn_back(&self, g: &mut Graph, q: Value, places: &Places) -> Result<Value> {
        let tables = &self.model.rope;
        let (turns, coarse, fine) = (g.bind(&places.turns), g.bind(&tables.coarse), g.bind(&tables.fine));
        rope::rope_back(g, q, turns, coarse, fine)
    }

    /// Queries `[m, heads, d]`, keys and values `[m, groups, d]`.
    fn queries(&self, g: &mut Graph, x: Value, trace: &mut Trace) -> Result<[Value; 3]> {
        let (config, layer, m) = (&self.model.config, self.layer, self.stream.len());
        let (heads, groups, width) = (config.num_heads, config.num_kv_heads, config.head_dim);
        let n = norm(g, self.model, x, &layer.attn_norm)?;
        self.point(trace, "input_layernorm", n);
        let mut n = Input::new(n);
        let q = project(g, &layer.q, &mut n)?;
        let k = project(g, &layer.k, &mut n)?;
        let v = project(g, &layer.v, &mut n)?;
        for (name, value) in [("self_attn.q_proj", q), ("self_attn.k_proj", k), ("self_attn.v_proj", v)] {
            self.point(trace, name, value);
        }
        let q = self.rotate(g, q, [m, heads, width], layer.q_norm.as_ref())?;
        let k = self.rotate(g, k, [m, groups, width], layer.k_norm.as_ref())?;
        let v = g.view(v, [m, groups, width])?;
        Ok([q, k, v])
    }

    /// Norm per head where the family has one, then RoPE.
    fn rotate(&self, g: &mut Graph, x: Value, shape: [usize; 3], weight: Option<&Tensor>) -> Result<Value> {
        let mut x = g.view(x, shape)?;
        if let Some(weight) = weight {
            x = norm(g, self.model, x, weight)?;
        }
        let tables = &self.model.rope;
        let (positions, coarse, fine) = (g.bind(&self.stream.positions), g.bind(&tables.coarse), g.bind(&tables.fine));
        rope::rope(g, x, positions, coarse, fine)
    }

    /// The feed-forward branch with its residual.
    fn feed_forward(&self, g: &mut Graph, h: Value, trace: &mut Trace) -> Result<Value> {
        let layer = self.layer;
        let mut a = self.gated(g, h, trace)?;
        if let (Some(fused), None) = (self.fused(), &layer.ffn_post_norm)
            && let Some(y) = fused.close(g, &layer.down, layer.ffn_sub_norm.as_ref(), a, h)?
        {
            return Ok(y);
        }
        if let Some(weight) = &layer.ffn_sub_norm {
            a = norm(g, self.model, a, weight)?;
            self.point(trace, "mlp.ffn_sub_norm", a);
        }
        let mut y = project(g, &layer.down, &mut Input::new(a))?;
        self.point(trace, "mlp.down_proj", y);
        if let Some(weight) = &layer.ffn_post_norm {
            y = norm(g, self.model, y, weight)?;
        }
        self.point(trace, "mlp", y);
        add::add(g, h, y)
    }

    fn gated(&self, g: &mut Graph, h: Value, trace: &mut Trace) -> Result<Value> {
        let layer = self.layer;
        if let Some(fused) = self.fused()
            && let Some(a) = fused.gate(g, h)?
        {
            return Ok(a);
        }
        let n = norm(g, self.model, h, &layer.ffn_norm)?;
        self.point(trace, "post_attention_layernorm", n);
        let mut n = Input::new(n);
        let gated = project(g, &layer.gate, &mut n)?;
        let up = project(g, &layer.up, &mut n)?;
        self.point(trace, "mlp.gate_proj", gated);
        self.point(trace, "mlp.up_proj", up);
        gate::gate(g, activation(&self.model.config), gated, up)
    }
}
