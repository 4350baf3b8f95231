//! Which tensors a model of a config has, in which form and format.

use super::{Dense, Form, Formats, Layer, Linear, Matrix, Model, RopeTables, Ternary};
use crate::config::Config;
use crate::tensor_names::TensorSpec;
use std::collections::HashMap;
use tritter_runtime::ops::rope;
use tritter_runtime::{DType, Tensor};

impl Model {
    /// Describes a model whose RoPE tables reach `positions` positions. Takes no device memory.
    pub fn new(config: &Config, form: Form, positions: usize) -> Model {
        Model::with_formats(config, form, Formats::PLAIN, positions)
    }

    /// As [`Model::new`], its matrices stored as `formats` says where the model is in running form.
    pub fn with_formats(config: &Config, form: Form, formats: Formats, positions: usize) -> Model {
        let formats = if form == Form::Run { formats } else { Formats::PLAIN };
        let shapes = config.tensors().into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        let parts = Parts { config, form, formats, shapes };
        let table = [config.vocab_size, config.hidden_size];
        Model {
            form,
            formats,
            embedding: Dense::new("model.embed_tokens.weight".into(), &table, formats.table),
            layers: (0..config.num_layers).map(|i| parts.layer(i)).collect(),
            norm: parts.tensor("model.norm.weight", &[config.hidden_size]),
            head: (!config.tie_embeddings).then(|| Dense::new("lm_head.weight".into(), &table, formats.table)),
            rope: rope_tables(config, positions),
            positions,
            config: config.clone(),
        }
    }
}

/// What a model is put together from.
struct Parts<'a> {
    config: &'a Config,
    form: Form,
    formats: Formats,
    shapes: HashMap<String, TensorSpec>,
}

impl Parts<'_> {
    /// A tensor that every config lists; the shape is only a fallback that keeps this total.
    fn tensor(&self, name: &str, shape: &[usize]) -> Tensor {
        self.find(name).unwrap_or_else(|| Tensor::weight(name, shape.to_vec(), DType::F32))
    }

    fn find(&self, name: &str) -> Option<Tensor> {
        self.shapes.get(name).map(|spec| Tensor::weight(name, spec.shape.clone(), DType::F32))
    }

    /// Projections of one input, by names of modules of layer `i`.
    fn linears<const N: usize>(&self, i: usize, modules: [&str; N]) -> [Linear; N] {
        let names = modules.map(|module| format!("model.layers.{i}.{module}"));
        let shape = |name: &String| self.shapes.get(&format!("{name}.weight")).map_or(vec![1, 1], |s| s.shape.clone());
        let bias = |name: &String| self.find(&format!("{name}.bias"));
        let ternary = self.config.is_ternary();
        if ternary && self.form == Form::Run {
            let parts = self.ternary(&names, names.each_ref().map(shape));
            let mut parts = parts.into_iter();
            return names.each_ref().map(|name| {
                let part = parts.next().unwrap_or_else(|| ternary_alone(self.formats.ternary, name, &shape(name)));
                Linear { matrix: Matrix::Ternary(part), bias: bias(name) }
            });
        }
        names.each_ref().map(|name| {
            let weight = format!("{name}.weight");
            let matrix = match ternary {
                true => Matrix::Master(Tensor::weight(weight, shape(name), DType::F32)),
                false => Matrix::Dense(Dense::new(weight, &shape(name), self.formats.dense)),
            };
            Linear { matrix, bias: bias(name) }
        })
    }

    /// One below the other in one tensor, where each begins at a place that kernels can start from; else each
    /// in a tensor of its own.
    fn ternary<const N: usize>(&self, names: &[String; N], shapes: [Vec<usize>; N]) -> Vec<Ternary> {
        let dtype = self.formats.ternary;
        let k = shapes.first().and_then(|s| s.last()).copied().unwrap_or(1);
        let mut firsts = Vec::with_capacity(N);
        let mut rows = 0;
        for shape in &shapes {
            firsts.push(rows);
            rows += shape[0];
        }
        let starts = |first: &usize| {
            let aligned = (first * dtype.row_bytes(k)).is_multiple_of(256);
            first.is_multiple_of(dtype.row_group()) && (aligned || dtype.only_cpu())
        };
        if !firsts.iter().all(starts) {
            let alone = names.iter().zip(&shapes).map(|(name, shape)| ternary_alone(dtype, name, shape));
            return alone.collect();
        }
        let all = if N == 1 { names[0].clone() } else { names.join("+") };
        let codes = Tensor::weight(format!("{all}.weight"), [rows, k], dtype);
        let scales = Tensor::weight(format!("{all}.weight_scale"), [N], DType::F32);
        let part = |(index, name): (usize, &String)| Ternary {
            name: format!("{name}.weight"),
            codes: codes.clone(),
            first: firsts[index],
            rows: shapes[index][0],
            scales: scales.clone(),
            index,
        };
        names.iter().enumerate().map(part).collect()
    }

    fn layer(&self, i: usize) -> Layer {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        let norm = |part: &str| self.find(&name(&format!("{part}.weight")));
        let [q, k, v] = self.linears(i, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
        let [gate, up] = self.linears(i, ["mlp.gate_proj", "mlp.up_proj"]);
        let [o] = self.linears(i, ["self_attn.o_proj"]);
        let [down] = self.linears(i, ["mlp.down_proj"]);
        let hidden = [self.config.hidden_size];
        Layer {
            attn_norm: self.tensor(&name("input_layernorm.weight"), &hidden),
            q,
            k,
            v,
            o,
            q_norm: norm("self_attn.q_norm"),
            k_norm: norm("self_attn.k_norm"),
            attn_sub_norm: norm("self_attn.attn_sub_norm"),
            ffn_norm: self.tensor(&name("post_attention_layernorm.weight"), &hidden),
            gate,
            up,
            down,
            ffn_sub_norm: norm("mlp.ffn_sub_norm"),
            ffn_post_norm: norm("mlp.ffn_post_norm"),
        }
    }
}

fn ternary_alone(dtype: DType, name: &str, shape: &[usize]) -> Ternary {
    Ternary {
        name: format!("{name}.weight"),
        codes: Tensor::weight(format!("{name}.weight"), shape.to_vec(), dtype),
        first: 0,
        rows: shape[0],
        scales: Tensor::weight(format!("{name}.weight_scale"), [1], DType::F32),
        index: 0,
    }
}

fn rope_tables(config: &Config, positions: usize) -> RopeTables {
    let values = rope::tables(&config.rope.frequencies(config.head_dim), positions);
    RopeTables {
        coarse: Tensor::weight("rope.coarse", [values.c, config.head_dim], DType::F32),
        fine: Tensor::weight("rope.fine", [values.f, config.head_dim], DType::F32),
        values: std::sync::Arc::new(values),
    }
}
