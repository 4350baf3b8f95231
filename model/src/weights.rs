//! The tensors of a model on a device: descriptions first, memory when loaded.

use crate::config::{Config, RopeScaling};
use crate::tensor_names::Kind;
use std::collections::HashMap;
use tritter_runtime::ops::rope;
use tritter_runtime::{DType, Tensor};

/// What the weights are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Master weights in f32, ternarised in every forward pass.
    Train,
    /// Ternary weights packed to two bits.
    Run,
}

/// The matrix of a projection, `[n, k]`.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// f32, used as it is.
    Dense(Tensor),
    /// f32 master of a ternary matrix.
    Master(Tensor),
    /// Ternary codes (`t2`) and the scale `[1]` that multiplies them.
    Ternary {
        /// Codes.
        codes: Tensor,
        /// Mean of the master's absolute values.
        scale: Tensor,
    },
}

/// A projection.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Its matrix.
    pub matrix: Matrix,
    /// Its bias `[n]`.
    pub bias: Option<Tensor>,
}

/// The tensors of one layer; the optional ones depend on the family.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Norm before attention.
    pub attn_norm: Tensor,
    /// Query projection.
    pub q: Linear,
    /// Key projection.
    pub k: Linear,
    /// Value projection.
    pub v: Linear,
    /// Output projection.
    pub o: Linear,
    /// Norm per query head.
    pub q_norm: Option<Tensor>,
    /// Norm per key head.
    pub k_norm: Option<Tensor>,
    /// Norm before the output projection.
    pub attn_sub_norm: Option<Tensor>,
    /// Norm before the feed-forward branch.
    pub ffn_norm: Tensor,
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
    /// Norm before the down projection.
    pub ffn_sub_norm: Option<Tensor>,
    /// Norm on the feed-forward branch.
    pub ffn_post_norm: Option<Tensor>,
}

/// RoPE tables (see [`rope`]).
#[derive(Clone, Debug)]
pub struct RopeTables {
    /// Coarse table.
    pub coarse: Tensor,
    /// Fine table.
    pub fine: Tensor,
    /// Their values.
    pub values: std::sync::Arc<rope::Tables>,
}

/// A model: config and tensors.
#[derive(Clone, Debug)]
pub struct Model {
    /// Shapes and family.
    pub config: Config,
    /// What the weights are for.
    pub form: Form,
    /// Token embedding `[V, D]`.
    pub embedding: Tensor,
    /// Layers.
    pub layers: Vec<Layer>,
    /// Final norm.
    pub norm: Tensor,
    /// Output matrix `[V, D]` where it is not the embedding.
    pub head: Option<Tensor>,
    /// RoPE tables for `positions` positions.
    pub rope: RopeTables,
    /// Positions that the tables serve.
    pub positions: usize,
}

impl Model {
    /// Describes a model whose RoPE tables reach `positions` positions. Takes no device memory.
    pub fn new(config: &Config, form: Form, positions: usize) -> Model {
        let mut named: HashMap<String, Tensor> = HashMap::new();
        let mut ternary = HashMap::new();
        for spec in config.tensors() {
            if spec.kind == (Kind::Linear { ternary: true }) && form == Form::Run {
                let scale = format!("{}_scale", spec.name);
                ternary.insert(spec.name.clone(), Tensor::weight(scale, [1], DType::F32));
                named.insert(spec.name.clone(), Tensor::weight(spec.name, spec.shape, DType::T2));
            } else {
                named.insert(spec.name.clone(), Tensor::weight(spec.name, spec.shape, DType::F32));
            }
        }
        let parts = Parts { config, form, named, ternary };
        Model {
            form,
            embedding: parts.tensor("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size]),
            layers: (0..config.num_layers).map(|i| parts.layer(i)).collect(),
            norm: parts.tensor("model.norm.weight", &[config.hidden_size]),
            head: parts.named.get("lm_head.weight").cloned(),
            rope: rope_tables(config, positions),
            positions,
            config: config.clone(),
        }
    }

    /// Float tensors of a checkpoint by their Hugging Face names, in its order: the parameters of
    /// a model in training form.
    pub fn parameters(&self) -> Vec<Tensor> {
        let all = self.tensors();
        let find = |name: &str| all.iter().find(|t| t.name() == name && t.spec().dtype == DType::F32).cloned();
        self.config.tensors().iter().filter_map(|spec| find(&spec.name)).collect()
    }

    /// Every weight, tables included.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut all = vec![self.embedding.clone()];
        for layer in &self.layers {
            all.extend(layer.tensors());
        }
        all.push(self.norm.clone());
        all.extend(self.head.clone());
        all.extend([self.rope.coarse.clone(), self.rope.fine.clone()]);
        all
    }

    /// Bytes of all weights and tables on a device.
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(|t| t.spec().bytes()).sum()
    }
}

impl Layer {
    /// All its projections.
    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// Tensors that are not ternary: norms, biases, dense and master matrices.
    pub fn floats(&self) -> Vec<&Tensor> {
        let mut all = vec![&self.attn_norm, &self.ffn_norm];
        for linear in self.linears() {
            if let Matrix::Dense(w) | Matrix::Master(w) = &linear.matrix {
                all.push(w);
            }
            all.extend(&linear.bias);
        }
        let norms = [&self.q_norm, &self.k_norm, &self.attn_sub_norm, &self.ffn_sub_norm, &self.ffn_post_norm];
        all.extend(norms.into_iter().flatten());
        all
    }

    fn tensors(&self) -> Vec<Tensor> {
        let mut all: Vec<Tensor> = self.floats().into_iter().cloned().collect();
        for linear in self.linears() {
            if let Matrix::Ternary { codes, scale } = &linear.matrix {
                all.extend([codes.clone(), scale.clone()]);
            }
        }
        all
    }
}

/// Tensors by name, while a model is put together.
struct Parts<'a> {
    config: &'a Config,
    form: Form,
    named: HashMap<String, Tensor>,
    ternary: HashMap<String, Tensor>,
}

impl Parts<'_> {
    /// A tensor that every config lists; the shape is only a fallback that keeps this total.
    fn tensor(&self, name: &str, shape: &[usize]) -> Tensor {
        let found = self.named.get(name).cloned();
        found.unwrap_or_else(|| Tensor::weight(name, shape.to_vec(), DType::F32))
    }

    fn linear(&self, name: &str) -> Linear {
        let weight = format!("{name}.weight");
        let tensor = self.tensor(&weight, &[1, 1]);
        let matrix = match (self.ternary.get(&weight), self.config.is_ternary(), self.form) {
            (Some(scale), _, _) => Matrix::Ternary { codes: tensor, scale: scale.clone() },
            (None, true, Form::Train) => Matrix::Master(tensor),
            _ => Matrix::Dense(tensor),
        };
        Linear { matrix, bias: self.named.get(&format!("{name}.bias")).cloned() }
    }

    fn layer(&self, i: usize) -> Layer {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        let linear = |part: &str| self.linear(&name(part));
        let norm = |part: &str| self.named.get(&name(&format!("{part}.weight"))).cloned();
        let hidden = [self.config.hidden_size];
        Layer {
            attn_norm: self.tensor(&name("input_layernorm.weight"), &hidden),
            q: linear("self_attn.q_proj"),
            k: linear("self_attn.k_proj"),
            v: linear("self_attn.v_proj"),
            o: linear("self_attn.o_proj"),
            q_norm: norm("self_attn.q_norm"),
            k_norm: norm("self_attn.k_norm"),
            attn_sub_norm: norm("self_attn.attn_sub_norm"),
            ffn_norm: self.tensor(&name("post_attention_layernorm.weight"), &hidden),
            gate: linear("mlp.gate_proj"),
            up: linear("mlp.up_proj"),
            down: linear("mlp.down_proj"),
            ffn_sub_norm: norm("mlp.ffn_sub_norm"),
            ffn_post_norm: norm("mlp.ffn_post_norm"),
        }
    }
}

/// The frequencies that a config asks for.
pub fn inverse_frequencies(config: &Config) -> Vec<f64> {
    let plain = rope::inverse_frequencies(config.rope.theta, config.head_dim);
    match config.rope.scaling {
        RopeScaling::None => plain,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            rope::llama3(&plain, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings as f64)
        }
    }
}

fn rope_tables(config: &Config, positions: usize) -> RopeTables {
    let values = rope::tables(&inverse_frequencies(config), positions);
    RopeTables {
        coarse: Tensor::weight("rope.coarse", [values.c, config.head_dim], DType::F32),
        fine: Tensor::weight("rope.fine", [values.f, config.head_dim], DType::F32),
        values: std::sync::Arc::new(values),
    }
}
