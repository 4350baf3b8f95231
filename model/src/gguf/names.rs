//! Tensor names of llama.cpp and the Hugging Face names that they stand for, and the order of rows.
//!
//! llama.cpp rotates pairs `(2i, 2i + 1)` in its architecture `llama`, so its converter reorders the
//! rows of the query and key projections: within a head of `d` rows, row `i + h·d/2` (`h` 0 or 1)
//! becomes row `2i + h` (`LlamaModel.permute` in `conversion/llama.py`). The BitNet architectures rotate
//! halves, as transformers and this program do (`LLAMA_ROPE_TYPE_NEOX` in `src/llama-model.cpp`), and
//! keep their rows.

use crate::tensor_names::TensorSpec;

/// Parts of a layer: Hugging Face, GGUF.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.attn_sub_norm", "attn_sub_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.ffn_sub_norm", "ffn_sub_norm"),
    ("mlp.down_proj", "ffn_down"),
];

/// Tensors outside layers: Hugging Face, GGUF.
const OUTSIDE: [(&str, &str); 3] =
    [("model.embed_tokens.weight", EMBEDDING), ("model.norm.weight", "output_norm.weight"), ("lm_head.weight", HEAD)];

/// The embedding.
pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// The output matrix where it is not the embedding.
pub(crate) const HEAD: &str = "output.weight";
/// Divisors of the rotary frequencies, `[d/2]`.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// The name in a GGUF file; `None` for a tensor that the architectures of llama.cpp do not have.
pub fn gguf_name(name: &str) -> Option<String> {
    if let Some((_, there)) = OUTSIDE.iter().find(|(here, _)| *here == name) {
        return Some((*there).to_owned());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, suffix) = part.rsplit_once('.')?;
    let (_, there) = PARTS.iter().find(|(here, _)| *here == part)?;
    Some(format!("blk.{layer}.{there}.{suffix}"))
}

/// Whether a tensor means something to this program: a part of a layer or the model, a scale of a
/// ternary matrix, or the divisors of the rotary frequencies.
pub(crate) fn is_known(name: &str) -> bool {
    if name == ROPE_FREQS || OUTSIDE.iter().any(|(_, there)| *there == name) {
        return true;
    }
    let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let part = part.and_then(|(_, part)| part.rsplit_once('.'));
    part.is_some_and(|(part, suffix)| {
        matches!(suffix, "weight" | "bias" | "scale") && PARTS.iter().any(|(_, there)| *there == part)
    })
}

/// How the rows of a tensor in a file follow from the rows of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Row for row.
    Same,
    /// Halves of each head of that many rows interleaved.
    Interleaved(usize),
}

impl RowOrder {
    /// The order of a tensor in an architecture that interleaves heads of `head_dim` rows, or not.
    pub fn of(spec: &TensorSpec, interleaved: bool, head_dim: usize) -> Self {
        let rotated = [".self_attn.q_proj.", ".self_attn.k_proj."].iter().any(|part| spec.name.contains(part));
        if interleaved && rotated && head_dim > 0 { Self::Interleaved(head_dim) } else { Self::Same }
    }

    /// The row in the file that is row `row` here.
    pub fn in_file(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Interleaved(d) => row / d * d + 2 * (row % d % (d / 2)) + row % d / (d / 2),
        }
    }

    /// The row here that is row `row` in the file.
    pub fn from_file(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Interleaved(d) => row / d * d + row % d / 2 + row % 2 * (d / 2),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Family;
    use crate::presets::preset;

    #[test]
    fn every_tensor_of_bitnet_and_llama_has_a_known_name_of_its_own() {
        for family in [Family::Bitnet, Family::Llama] {
            let mut config = preset("test").unwrap().config(family, None, None);
            (config.tie_embeddings, config.attention_bias) = (false, true);
            let specs = config.tensors();
            let names: std::collections::HashSet<String> = specs.iter().map(|s| gguf_name(&s.name).unwrap()).collect();
            assert_eq!(names.len(), specs.len());
            assert!(names.iter().all(|name| is_known(name)));
        }
        assert_eq!(gguf_name("model.layers.12.self_attn.o_proj.bias").unwrap(), "blk.12.attn_output.bias");
        assert_eq!(gguf_name("model.layers.1.self_attn.q_norm.weight"), None);
        for name in ["blk.0.attn_q_norm.weight", "blk.0.ffn_gate_exps.weight", "blk.0.attn_q", "x"] {
            assert!(!is_known(name), "{name}");
        }
        assert!(is_known("blk.0.attn_q.scale") && is_known(ROPE_FREQS));
    }

    #[test]
    fn interleaving_pairs_rows_that_rotate_together() {
        let order = RowOrder::Interleaved(6);
        let there: Vec<usize> = (0..12).map(|row| order.in_file(row)).collect();
        assert_eq!(there, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert!((0..60).all(|row| order.from_file(order.in_file(row)) == row));
    }
}
