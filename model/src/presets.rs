//! The shapes behind `--preset`, one table for model, planner and tests.
//!
//! All divide their query heads evenly over the key and value heads. 7B is
//! Mistral's shape, 10B the same grown to 48 layers (depth up-scaling), 3B
//! Llama 3.2's, 70B Llama's; the last two rows are other projects' shapes, for
//! comparison.

use crate::config::{Activation, Config, Family, Quantization, Rope, RopeScaling};

/// A named shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset {
    /// Name; compared without regard to case.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Vocabulary assumed where no tokenizer says otherwise.
    pub vocab_size: usize,
    /// Positions assumed where nothing says otherwise.
    pub max_positions: usize,
    /// Rotary base.
    pub rope_theta: f64,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
}

/// Every preset, from small to large, then the shapes for comparison.
pub const PRESETS: &[Preset] = &[
    shape("test", 256, 4, [4, 2, 64], 512),
    shape("125M", 768, 12, [12, 4, 64], 2048),
    shape("350M", 1024, 24, [16, 8, 64], 2816),
    shape("1B", 2048, 18, [16, 8, 128], 5632),
    shape("3B", 3072, 28, [24, 8, 128], 8192),
    shape("7B", 4096, 32, [32, 8, 128], 14336),
    shape("10B", 4096, 48, [32, 8, 128], 14336),
    shape("13B", 5120, 40, [40, 8, 128], 16384),
    shape("30B", 6656, 64, [52, 4, 128], 17920),
    shape("33B", 7168, 60, [56, 8, 128], 19456),
    shape("40B", 8192, 56, [64, 8, 128], 22016),
    shape("65B", 8192, 80, [64, 8, 128], 26624),
    shape("70B", 8192, 80, [64, 8, 128], 28672),
    Preset { vocab_size: 128_256, max_positions: 4096, ..shape("bitnet-2b4t", 2560, 30, [20, 5, 128], 6912) },
    Preset {
        vocab_size: 32_000,
        max_positions: 4096,
        rope_theta: 10_000.0,
        tie_embeddings: false,
        ..shape("llama2-7b", 4096, 32, [32, 32, 128], 11008)
    },
];

const fn shape(
    name: &'static str,
    hidden_size: usize,
    num_layers: usize,
    [num_heads, num_kv_heads, head_dim]: [usize; 3],
    intermediate_size: usize,
) -> Preset {
    Preset {
        name,
        hidden_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        intermediate_size,
        vocab_size: 65_536,
        max_positions: 131_072,
        rope_theta: 500_000.0,
        tie_embeddings: true,
    }
}

/// The preset of that name, in any case.
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name.eq_ignore_ascii_case(name))
}

impl Preset {
    /// A config of this shape; `None` takes the preset's own vocabulary or
    /// positions. `bitnet` and `tritter` train online, `llama` is dense. The
    /// special token ids are left empty for the tokenizer to fill.
    pub fn config(&self, family: Family, vocab_size: Option<usize>, max_positions: Option<usize>) -> Config {
        let (activation, quantization) = match family {
            Family::Llama | Family::Mistral => (Activation::Silu, Quantization::None),
            Family::Bitnet | Family::Tritter => (Activation::Relu2, Quantization::Online),
        };
        Config {
            family,
            vocab_size: vocab_size.unwrap_or(self.vocab_size),
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: self.rope_theta, scaling: RopeScaling::None },
            window: None,
            max_positions: max_positions.unwrap_or(self.max_positions),
            tie_embeddings: self.tie_embeddings,
            attention_bias: false,
            mlp_bias: false,
            activation,
            quantization,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Name, ternary weights and all parameters in 10^9 (the latter without an
    /// untied head), bytes of an INT4 cache for one token: the design's table.
    const FIGURES: &[(&str, f64, f64, u64)] = &[
        ("test", 0.002359, 0.01914, 512),
        ("125M", 0.0755, 0.1258, 3_072),
        ("350M", 0.2831, 0.3502, 12_288),
        ("1B", 0.8493, 0.9836, 18_432),
        ("3B", 2.819, 3.02, 28_672),
        ("7B", 6.979, 7.248, 32_768),
        ("10B", 10.47, 10.74, 49_152),
        ("13B", 12.58, 12.92, 40_960),
        ("30B", 29.01, 29.44, 32_768),
        ("33B", 32.15, 32.62, 61_440),
        ("40B", 38.76, 39.29, 57_344),
        ("65B", 64.42, 64.96, 81_920),
        ("70B", 68.45, 68.99, 81_920),
        ("bitnet-2b4t", 2.084, 2.412, 19_200),
        ("llama2-7b", 6.476, 6.607, 131_072),
    ];

    /// The figures have four digits, so half a unit of the fourth is allowed.
    fn four_digits(value: f64, figure: f64) -> bool {
        let unit = 10f64.powf(figure.log10().floor() - 3.0);
        (value / unit).round() == (figure / unit).round()
    }

    #[test]
    fn derived_columns_are_the_table() {
        assert_eq!(FIGURES.len(), PRESETS.len());
        for &(name, ternary, all, cache) in FIGURES {
            let config = preset(name).unwrap().config(Family::Bitnet, None, None);
            config.validate().unwrap();
            let count = config.parameters();
            let weights = count.ternary + count.embedding;
            assert!(four_digits(count.ternary as f64 / 1e9, ternary), "{name} {count:?}");
            assert!(four_digits(weights as f64 / 1e9, all), "{name} {count:?}");
            assert_eq!(config.kv_elements_per_token() / 2, cache, "{name}");
            let rest = count.norm + count.dense;
            let head = if config.tie_embeddings { 0 } else { count.embedding };
            assert!(rest - head < weights / 1000, "{name}: norms are a rounding error");
        }
    }

    #[test]
    fn names_ignore_case_and_unknown_ones_are_none() {
        assert_eq!(preset("125m").unwrap().name, "125M");
        assert_eq!(preset("TEST").unwrap().hidden_size, 256);
        assert!(preset("126M").is_none());
    }
}
