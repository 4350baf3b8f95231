//! What a model is: family, sizes, rotary embedding and quantisation, the same
//! for a folder read from disk ([`Config::load`]) and for a preset.
//!
//! Axis letters: `D` hidden width, `F` feed-forward width, `H` query heads,
//! `G` key and value heads, `d` head width, `V` vocabulary. The JSON spellings
//! are in [`crate::config_json`], the tensors that follow in
//! [`crate::tensor_names`].

use std::path::Path;

use crate::error::{Error, Result};
pub use crate::rope_scaling::{Rope, RopeExtension, RopeScaling, Yarn};
use tritter_runtime::ops::attention::Mask;

/// Which block the layers are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// BitNet b1.58 (`BitNetForCausalLM`): sub-norms before `o_proj` and `down_proj`.
    Bitnet,
    /// Llama (`LlamaForCausalLM`), dense or with BitLinear layers.
    Llama,
    /// Mistral (`MistralForCausalLM`): Llama's block with a sliding window in every layer.
    Mistral,
    /// BitNet plus QK-norm and a norm after the feed-forward branch.
    Tritter,
}

/// The gate's activation in the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `relu(x)^2`.
    Relu2,
    /// `x * sigmoid(x)`.
    Silu,
}

/// How a packed linear layer's `weight_scale` is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinearClass {
    /// `weight_scale` is `mean|W|`, multiplied.
    AutoBitLinear,
    /// `weight_scale` is `1 / mean|W|`, divided.
    BitLinear,
}

/// How the projections are stored and computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// Dense float weights.
    None,
    /// Float master weights, made ternary at load or at every step.
    Online,
    /// Ternary codes packed four to a byte, with a scale.
    Offline {
        /// The scale's convention.
        linear_class: LinearClass,
    },
}

/// A model's shape and rules. Sizes are in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Block type.
    pub family: Family,
    /// Rows of the embedding, `V`.
    pub vocab_size: usize,
    /// Width of the residual stream, `D`.
    pub hidden_size: usize,
    /// Width of the feed-forward block, `F`.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Query heads, `H`.
    pub num_heads: usize,
    /// Key and value heads, `G`; divides `H`.
    pub num_kv_heads: usize,
    /// Width of a head, `d`; even.
    pub head_dim: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Newest keys that a token sees, itself included, in every layer; at least 1. `None`: all before it.
    pub window: Option<usize>,
    /// Longest context that the model was made for, in tokens.
    pub max_positions: usize,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down (Llama and Mistral).
    pub mlp_bias: bool,
    /// Activation of the gate.
    pub activation: Activation,
    /// Storage and arithmetic of the projections.
    pub quantization: Quantization,
    /// Token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills a batch.
    pub pad_token_id: Option<u32>,
}

/// Largest parameter count taken seriously: beyond it a config is wrong, and
/// products of its sizes might overflow.
pub const MAX_PARAMETERS: u128 = 10_000_000_000_000;
/// Most layers; bounds the list of tensor names before any file is compared.
pub const MAX_LAYERS: usize = 10_000;
/// Positions and ids are kept in 32-bit state on the device.
pub(crate) const MAX_INDEX: usize = i32::MAX as usize;

impl Config {
    /// Reads `config.json` of a model folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let file = folder.join("config.json");
        Self::from_json(&file, &crate::error::read_json(&file)?)
    }

    /// Width of all query heads together, `H * d`.
    pub fn query_width(&self) -> usize {
        self.num_heads.saturating_mul(self.head_dim)
    }

    /// Width of all key (or value) heads together, `G * d`.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads.saturating_mul(self.head_dim)
    }

    /// What a token sees of its span: the model's window.
    pub fn mask(&self) -> Mask {
        self.window.and_then(|window| u32::try_from(window).ok()).map_or(Mask::WHOLE, Mask::window)
    }

    /// Factor of the scores in attention: `d^-0.5`, and the factor that the rotary rule puts on cosines and sines of
    /// queries and keys, squared. It is not in the tables, so a query may be turned more than once.
    pub fn attention_scale(&self) -> f32 {
        let factor = self.rope.attention_factor();
        (self.head_dim as f32).powf(-0.5) * (factor * factor) as f32
    }

    /// Whether the block has norms before `o_proj` and `down_proj`.
    pub fn has_sub_norms(&self) -> bool {
        matches!(self.family, Family::Bitnet | Family::Tritter)
    }

    /// Whether the projections compute with ternary weights.
    pub fn is_ternary(&self) -> bool {
        self.quantization != Quantization::None
    }

    /// Key and value elements that one token adds to the cache over all layers.
    pub fn kv_elements_per_token(&self) -> u64 {
        (2 * self.num_layers as u64).saturating_mul(self.kv_width() as u64)
    }

    /// Checks that the sizes can be computed with; the error names the field.
    pub fn validate(&self) -> Result<()> {
        self.validate_from(Path::new("config"))
    }

    /// As [`Config::validate`], naming `file` in errors.
    pub(crate) fn validate_from(&self, file: &Path) -> Result<()> {
        let fail = |field: &str, value: &dyn ToString, problem: String| {
            Err(Error::field(file, field, value.to_string(), problem))
        };
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_INDEX),
            ("hidden_size", self.hidden_size, MAX_INDEX),
            ("intermediate_size", self.intermediate_size, MAX_INDEX),
            ("num_hidden_layers", self.num_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_heads, MAX_INDEX),
            ("num_key_value_heads", self.num_kv_heads, MAX_INDEX),
            ("head_dim", self.head_dim, MAX_INDEX),
            ("max_position_embeddings", self.max_positions, MAX_INDEX),
        ];
        for (field, value, most) in sizes {
            if value == 0 || value > most {
                return fail(field, &value, format!("give a size from 1 to {most}"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let problem = format!("it must divide num_attention_heads ({})", self.num_heads);
            return fail("num_key_value_heads", &self.num_kv_heads, problem);
        }
        if !self.head_dim.is_multiple_of(2) {
            let problem = "it must be even, because rotary embedding works on pairs".to_owned();
            return fail("head_dim", &self.head_dim, problem);
        }
        if self.has_sub_norms() && self.query_width() != self.hidden_size {
            let problem =
                format!("num_attention_heads * head_dim must equal hidden_size ({}) in this family", self.hidden_size);
            return fail("head_dim", &self.head_dim, problem);
        }
        if self.has_sub_norms() && self.mlp_bias {
            return fail("mlp_bias", &true, "only the llama family has it; set it to false".into());
        }
        if self.parameters_checked().is_none_or(|n| n > MAX_PARAMETERS) {
            let problem = "the sizes together give more than 10^13 parameters; correct them";
            return fail("hidden_size", &self.hidden_size, problem.to_owned());
        }
        self.validate_numbers(file)?;
        self.validate_packing(file)
    }

    fn validate_numbers(&self, file: &Path) -> Result<()> {
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(Error::field(file, "rms_norm_eps", self.rms_norm_eps, "give a finite number above zero"));
        }
        self.rope.validate(file)?;
        match self.window {
            Some(window) if window == 0 || window > MAX_INDEX => {
                let problem = format!("give a window from 1 to {MAX_INDEX}, or null for none");
                Err(Error::field(file, "sliding_window", window, problem))
            }
            _ => Ok(()),
        }
    }

    /// Four output rows share a byte, so packed widths must be multiples of 4.
    fn validate_packing(&self, file: &Path) -> Result<()> {
        if !matches!(self.quantization, Quantization::Offline { .. }) {
            return Ok(());
        }
        let widths = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("head_dim", self.query_width()),
            ("head_dim", self.kv_width()),
        ];
        for (field, width) in widths {
            if !width.is_multiple_of(4) {
                let problem = format!(
                    "a packed projection of {width} rows is not a whole number of bytes; \
                     use a multiple of 4 or keep the model unpacked"
                );
                return Err(Error::field(file, field, width, problem));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::presets::preset;

    fn sample() -> Config {
        preset("test").unwrap().config(Family::Bitnet, Some(512), None)
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Config), field: &str) {
        let mut config = sample();
        change(&mut config);
        let message = config.validate().unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }

    #[test]
    fn a_preset_is_valid() {
        for family in [Family::Bitnet, Family::Llama, Family::Mistral, Family::Tritter] {
            preset("test").unwrap().config(family, None, None).validate().unwrap();
        }
    }

    #[test]
    fn impossible_sizes_are_named() {
        refused(|c| c.vocab_size = 0, "vocab_size");
        refused(|c| c.num_layers = 0, "num_hidden_layers");
        refused(|c| c.num_layers = MAX_LAYERS + 1, "num_hidden_layers");
        refused(|c| c.hidden_size = usize::MAX, "hidden_size");
        refused(|c| c.num_kv_heads = 3, "num_key_value_heads");
        refused(|c| c.head_dim = 63, "head_dim");
        refused(|c| c.head_dim = 32, "head_dim");
        refused(|c| c.mlp_bias = true, "mlp_bias");
        refused(|c| c.max_positions = 0, "max_position_embeddings");
        refused(|c| c.window = Some(0), "sliding_window");
        refused(|c| c.window = Some(usize::MAX), "sliding_window");
        refused(|c| (c.intermediate_size, c.num_layers) = (1 << 30, 10_000), "hidden_size");
    }

    #[test]
    fn impossible_numbers_are_named() {
        refused(|c| c.rms_norm_eps = f64::NAN, "rms_norm_eps");
        refused(|c| c.rms_norm_eps = 0.0, "rms_norm_eps");
        refused(|c| c.rope.theta = f64::INFINITY, "rope_theta");
        let scaling = |high| RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: high,
            original_max_position_embeddings: 32,
        };
        refused(|c| c.rope.scaling = scaling(1.0), "rope_parameters.high_freq_factor");
    }

    #[test]
    fn packed_rows_must_fill_bytes() {
        let offline = Quantization::Offline { linear_class: LinearClass::BitLinear };
        refused(|c| (c.quantization, c.intermediate_size) = (offline, 510), "intermediate_size");
    }
}
