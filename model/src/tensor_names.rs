//! The tensors that a checkpoint of a [`Config`] must hold, with their Hugging
//! Face names and logical (unpacked) shapes, and the parameter counts that
//! follow from them. Linear weights are `[out, in]`.

use crate::config::{Config, Family, Quantization};

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Weight of a projection, `[out, in]`.
    Linear {
        /// Whether it computes with ternary values.
        ternary: bool,
    },
    /// Weight of an RMSNorm.
    Norm,
    /// Token embedding, `[V, D]`.
    Embedding,
    /// Bias of a projection, `[out]`.
    Bias,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face name.
    pub name: String,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// Purpose.
    pub kind: Kind,
}

/// How a tensor lies in a checkpoint file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredAs {
    /// f32, f16, bf16 or f64.
    Float,
    /// `u8`, four ternary codes to a byte.
    Packed,
}

/// One tensor as it lies in a checkpoint file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Hugging Face name.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// Kind of elements.
    pub stored_as: StoredAs,
}

/// Parameter counts by purpose; biases are counted with their `dense` matrices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ParameterCount {
    /// Weights that compute as -1, 0 or 1.
    pub ternary: u64,
    /// Projections (with an untied head) that stay float, and all biases.
    pub dense: u64,
    /// Embedding, which is also the head where tied.
    pub embedding: u64,
    /// Norm weights.
    pub norm: u64,
}

impl ParameterCount {
    /// All parameters.
    pub fn total(&self) -> u64 {
        self.ternary + self.dense + self.embedding + self.norm
    }
}

impl TensorSpec {
    fn new(name: String, shape: &[usize], kind: Kind) -> Self {
        Self { name, shape: shape.to_vec(), kind }
    }

    /// Elements; `None` where the product does not fit.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))
    }

    /// How the tensor lies in a file under `quantization`: a packed projection
    /// is `u8 [out/4, in]` with a `weight_scale [1]`, everything else is float.
    pub fn stored(&self, quantization: Quantization) -> Vec<StoredTensor> {
        let packed =
            matches!(quantization, Quantization::Offline { .. }) && self.kind == Kind::Linear { ternary: true };
        let mut shape = self.shape.clone();
        if !packed {
            let name = self.name.clone();
            return vec![StoredTensor { name, shape, stored_as: StoredAs::Float }];
        }
        if let Some(rows) = shape.first_mut() {
            *rows /= 4;
        }
        let scale = scale_name(&self.name);
        vec![
            StoredTensor { name: self.name.clone(), shape, stored_as: StoredAs::Packed },
            StoredTensor { name: scale, shape: vec![1], stored_as: StoredAs::Float },
        ]
    }
}

/// Name of the scale that belongs to a packed projection's `….weight`.
pub fn scale_name(weight: &str) -> String {
    format!("{}.weight_scale", weight.strip_suffix(".weight").unwrap_or(weight))
}

impl Config {
    /// Every tensor of a checkpoint: embedding, layers in order (each in the
    /// order of use), final norm, head where untied. The config must be valid.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (vocab, hidden) = (self.vocab_size, self.hidden_size);
        let name = "model.embed_tokens.weight".to_owned();
        let mut all = vec![TensorSpec::new(name, &[vocab, hidden], Kind::Embedding)];
        for layer in 0..self.num_layers {
            all.extend(self.layer_tensors(layer));
        }
        all.push(TensorSpec::new("model.norm.weight".to_owned(), &[hidden], Kind::Norm));
        if !self.tie_embeddings {
            let kind = Kind::Linear { ternary: false };
            all.push(TensorSpec::new("lm_head.weight".to_owned(), &[vocab, hidden], kind));
        }
        all
    }

    /// The tensors of one layer, in the order of use.
    pub fn layer_tensors(&self, layer: usize) -> Vec<TensorSpec> {
        let mut list = LayerList { layer, ternary: self.is_ternary(), tensors: Vec::new() };
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let (queries, keys, bias) = (self.query_width(), self.kv_width(), self.attention_bias);
        let ours = self.family == Family::Tritter;
        list.norm("input_layernorm", hidden);
        list.linear("self_attn.q_proj", queries, hidden, bias);
        list.linear("self_attn.k_proj", keys, hidden, bias);
        list.linear("self_attn.v_proj", keys, hidden, bias);
        if ours {
            list.norm("self_attn.q_norm", self.head_dim);
            list.norm("self_attn.k_norm", self.head_dim);
        }
        if self.has_sub_norms() {
            list.norm("self_attn.attn_sub_norm", hidden);
        }
        list.linear("self_attn.o_proj", hidden, queries, bias);
        list.norm("post_attention_layernorm", hidden);
        list.linear("mlp.gate_proj", ffn, hidden, self.mlp_bias);
        list.linear("mlp.up_proj", ffn, hidden, self.mlp_bias);
        if self.has_sub_norms() {
            list.norm("mlp.ffn_sub_norm", ffn);
        }
        list.linear("mlp.down_proj", hidden, ffn, self.mlp_bias);
        if ours {
            list.norm("mlp.ffn_post_norm", hidden);
        }
        list.tensors
    }

    /// Parameters by purpose. The config must be valid.
    pub fn parameters(&self) -> ParameterCount {
        let mut count = ParameterCount::default();
        let layers = self.num_layers as u64;
        for spec in self.layer_tensors(0) {
            count.add(&spec, layers);
        }
        let outside = Self { num_layers: 0, ..self.clone() };
        for spec in outside.tensors() {
            count.add(&spec, 1);
        }
        count
    }

    /// All parameters, or `None` where the count overflows: safe on any sizes.
    pub(crate) fn parameters_checked(&self) -> Option<u128> {
        let sum = |specs: Vec<TensorSpec>| {
            specs.iter().try_fold(0u128, |total, spec| total.checked_add(spec.elements()? as u128))
        };
        let outside = Self { num_layers: 0, ..self.clone() };
        let layers = sum(self.layer_tensors(0))?.checked_mul(self.num_layers as u128)?;
        layers.checked_add(sum(outside.tensors())?)
    }
}

impl ParameterCount {
    fn add(&mut self, spec: &TensorSpec, times: u64) {
        let elements = spec.elements().map_or(u64::MAX, |n| n as u64);
        let all = elements.saturating_mul(times);
        let counter = match spec.kind {
            Kind::Linear { ternary: true } => &mut self.ternary,
            Kind::Linear { ternary: false } | Kind::Bias => &mut self.dense,
            Kind::Embedding => &mut self.embedding,
            Kind::Norm => &mut self.norm,
        };
        *counter = counter.saturating_add(all);
    }
}

struct LayerList {
    layer: usize,
    ternary: bool,
    tensors: Vec<TensorSpec>,
}

impl LayerList {
    fn push(&mut self, part: &str, suffix: &str, shape: &[usize], kind: Kind) {
        let name = format!("model.layers.{}.{part}.{suffix}", self.layer);
        self.tensors.push(TensorSpec::new(name, shape, kind));
    }

    fn norm(&mut self, part: &str, width: usize) {
        self.push(part, "weight", &[width], Kind::Norm);
    }

    fn linear(&mut self, part: &str, rows: usize, columns: usize, bias: bool) {
        let kind = Kind::Linear { ternary: self.ternary };
        self.push(part, "weight", &[rows, columns], kind);
        if bias {
            self.push(part, "bias", &[rows], Kind::Bias);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::LinearClass;
    use crate::presets::preset;

    fn names(family: Family) -> Vec<String> {
        let config = preset("test").unwrap().config(family, None, None);
        config.layer_tensors(1).into_iter().map(|spec| spec.name).collect()
    }

    #[test]
    fn families_differ_by_their_norms() {
        assert_eq!(names(Family::Llama).len(), 9);
        assert_eq!(names(Family::Bitnet).len(), 11);
        let ours = names(Family::Tritter);
        assert_eq!(ours.len(), 14);
        assert_eq!(ours[4], "model.layers.1.self_attn.q_norm.weight");
        assert_eq!(ours[13], "model.layers.1.mlp.ffn_post_norm.weight");
    }

    #[test]
    fn counts_agree_with_the_list() {
        for family in [Family::Llama, Family::Bitnet, Family::Tritter] {
            let mut config = preset("test").unwrap().config(family, None, None);
            (config.attention_bias, config.tie_embeddings) = (true, false);
            let listed: usize = config.tensors().iter().map(|s| s.elements().unwrap()).sum();
            assert_eq!(config.parameters().total(), listed as u64);
            assert_eq!(config.parameters_checked(), Some(listed as u128));
        }
    }

    #[test]
    fn packed_projections_bring_a_scale() {
        let config = preset("test").unwrap().config(Family::Bitnet, None, None);
        let offline = Quantization::Offline { linear_class: LinearClass::AutoBitLinear };
        let query = &config.layer_tensors(0)[1];
        let stored = query.stored(offline);
        assert_eq!(stored[0].shape, [64, 256]);
        assert_eq!(stored[0].stored_as, StoredAs::Packed);
        assert_eq!(stored[1].name, "model.layers.0.self_attn.q_proj.weight_scale");
        assert_eq!(query.stored(Quantization::Online)[0].shape, [256, 256]);
    }
}
