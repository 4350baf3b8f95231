//! Metadata of a file and the [`Config`] that they stand for.
//!
//! Keys are llama.cpp's (`gguf-py/gguf/constants.py`), under the architecture's name:
//!
//! | architecture | written by | block | activation | rows of q and k |
//! |---|---|---|---|---|
//! | `llama` | llama.cpp, bitnet.cpp | Llama | SiLU | interleaved, see [`super::names`] |
//! | `bitnet` | llama.cpp | BitNet | `hidden_activation`, else SiLU | as they are |
//! | `bitnet-b1.58`, `bitnet-25` | bitnet.cpp | BitNet | squared ReLU | as they are |
//!
//! **Which models are ternary.** A BitNet architecture is. `llama` is if the file says so
//! (`tritter.ternary`), or if it has projections of a ternary type and each of them has one scale. If
//! their blocks differ in scale (groups of 64 or 128, TriLM), it is a dense model whose weights happen
//! to be stored so: it is read as dense floats, activations are not quantised.
//!
//! **Windows.** `{architecture}.attention.sliding_window` is W keys for each token, itself among them, as here and in
//! transformers (`is_masked_swa` in `src/llama-hparams.h` hides keys that lie W or more behind). A `llama` file that
//! has one is a Mistral model; llama.cpp itself does not look at it there, nor in the BitNet architectures.
//!
//! Keys of this program's own, which others ignore: `tritter.ternary` (bool), `tritter.family` (`mistral`, where
//! there is no window to tell), `tritter.eos_token_ids` (where there are several) and `tritter.rope_scaling`
//! ([`super::rope`]).

use super::matrix::{Matrix, Scale};
use super::names::{EMBEDDING, HEAD, RowOrder, is_known};
use super::rope::read_scaling;
use super::tokenizer::{BOS_ID, EOS_ID, EOT_ID, PAD_ID, TOKENS};
use super::{Gguf, Metadata};
use crate::config::{Activation, Config, Family, LinearClass, MAX_INDEX, Quantization, Rope, RopeScaling};
use crate::error::{Error, Result};

/// The key that names the architecture.
pub(crate) const ARCHITECTURE: &str = "general.architecture";
pub(crate) const TERNARY: &str = "tritter.ternary";
pub(crate) const EOS_IDS: &str = "tritter.eos_token_ids";
pub(crate) const FAMILY: &str = "tritter.family";

/// Tensors that every layer has: two norms and seven projections.
const LEAST_IN_LAYER: usize = 9;

/// An architecture of llama.cpp or its forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama.
    Llama,
    /// BitNet in llama.cpp.
    Bitnet,
    /// BitNet in bitnet.cpp.
    BitnetB158,
    /// Its first name, read only.
    Bitnet25,
}

impl Architecture {
    const ALL: [Self; 4] = [Self::Llama, Self::Bitnet, Self::BitnetB158, Self::Bitnet25];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Bitnet => "bitnet",
            Self::BitnetB158 => "bitnet-b1.58",
            Self::Bitnet25 => "bitnet-25",
        }
    }

    /// The architecture that a file names.
    pub fn of(metadata: &Metadata) -> Result<Self> {
        let name = metadata.text(ARCHITECTURE)?.unwrap_or_default();
        Self::ALL
            .into_iter()
            .find(|a| a.name() == name)
            .ok_or_else(|| metadata.error(ARCHITECTURE, "this program knows llama, bitnet, bitnet-b1.58 and bitnet-25"))
    }

    /// Whether rows of q and k are interleaved.
    pub fn interleaved(self) -> bool {
        self == Self::Llama
    }

    /// The key of the window.
    pub(crate) fn window_key(self) -> String {
        format!("{}.attention.sliding_window", self.name())
    }
}

/// The config of a file. Every tensor that it asks for is there with the right shape, and no tensor
/// is there that this program would ignore.
pub fn read_config(gguf: &Gguf) -> Result<Config> {
    let metadata = gguf.metadata();
    let architecture = Architecture::of(metadata)?;
    if let Some(tensor) = gguf.tensors().find(|t| !is_known(&t.name)) {
        let problem = format!("is no part of a {} model that this program can compute", architecture.name());
        return Err(Error::tensor(gguf.path(), &tensor.name, problem));
    }
    let mut config = sizes(gguf, architecture)?;
    // Before anything is listed by layer: a small file must not ask for ten thousand of them.
    if config.num_layers.saturating_mul(LEAST_IN_LAYER) > gguf.tensors().count() {
        let key = format!("{}.block_count", architecture.name());
        return Err(gguf.metadata().error(&key, "the file has fewer tensors than that takes; it is damaged"));
    }
    config.rope.scaling = read_scaling(gguf, &config)?;
    config.validate_from(gguf.path())?;
    config.quantization = quantization(gguf, architecture, &config)?;
    config.validate_from(gguf.path())?;
    for spec in config.tensors() {
        Matrix::of(gguf, &spec, RowOrder::Same)?;
    }
    Ok(config)
}

fn sizes(gguf: &Gguf, architecture: Architecture) -> Result<Config> {
    let m = gguf.metadata();
    let key = |name: &str| format!("{}.{name}", architecture.name());
    let hidden_size = m.required_size(&key("embedding_length"))?;
    let num_heads = m.required_size(&key("attention.head_count"))?;
    let eps = key("attention.layer_norm_rms_epsilon");
    Ok(Config {
        family: family(gguf, architecture)?,
        vocab_size: vocabulary(gguf, &key("vocab_size"))?,
        hidden_size,
        intermediate_size: m.required_size(&key("feed_forward_length"))?,
        num_layers: m.required_size(&key("block_count"))?,
        num_heads,
        num_kv_heads: m.size(&key("attention.head_count_kv"))?.unwrap_or(num_heads),
        head_dim: head_dim(m, &key, hidden_size, num_heads)?,
        rms_norm_eps: m.number(&eps)?.ok_or_else(|| m.error(&eps, "the file must give it"))?,
        rope: Rope { theta: m.number(&key("rope.freq_base"))?.unwrap_or(10_000.0), scaling: RopeScaling::None },
        window: window(gguf, architecture)?,
        max_positions: m.required_size(&key("context_length"))?,
        tie_embeddings: !gguf.contains(HEAD),
        attention_bias: gguf.contains("blk.0.attn_q.bias"),
        mlp_bias: gguf.contains("blk.0.ffn_up.bias"),
        activation: activation(m, architecture, &key("hidden_activation"))?,
        quantization: Quantization::None,
        bos_token_id: m.id(BOS_ID)?,
        eos_token_ids: eos_ids(gguf)?,
        pad_token_id: m.id(PAD_ID)?,
    })
}

/// Llama's block is Mistral's, too: with a window, or where this program wrote so.
fn family(gguf: &Gguf, architecture: Architecture) -> Result<Family> {
    let m = gguf.metadata();
    match (architecture, m.text(FAMILY)?) {
        (Architecture::Llama, None) if m.get(&architecture.window_key()).is_none() => Ok(Family::Llama),
        (Architecture::Llama, None | Some("mistral")) => Ok(Family::Mistral),
        (_, None) => Ok(Family::Bitnet),
        _ => Err(m.error(FAMILY, "only mistral is written, in the architecture llama; the file is damaged")),
    }
}

/// Keys that a token sees in every layer, where the file bounds them.
fn window(gguf: &Gguf, architecture: Architecture) -> Result<Option<usize>> {
    let (m, key) = (gguf.metadata(), architecture.window_key());
    let pattern = format!("{key}_pattern");
    if m.get(&pattern).is_some() && gguf.numbers(&pattern)?.is_none_or(|layers| layers.contains(&0.0)) {
        return Err(m.error(&pattern, "only windows in every layer are supported"));
    }
    match m.size(&key)? {
        None => Ok(None),
        Some(_) if architecture != Architecture::Llama => {
            Err(m.error(&key, "BitNet models have no window; leave it out to let tokens see all before them"))
        }
        Some(window) if window == 0 || window > MAX_INDEX => {
            Err(m.error(&key, &format!("it should be a window from 1 to {MAX_INDEX}, or be left out for none")))
        }
        window => Ok(window),
    }
}

/// Rows of the embedding; what else the file says of the vocabulary must agree.
fn vocabulary(gguf: &Gguf, key: &str) -> Result<usize> {
    let m = gguf.metadata();
    let rows = gguf.tensor(EMBEDDING)?.rows();
    if m.size(key)?.is_some_and(|size| size != rows) {
        return Err(m.error(key, &format!("the embedding has {rows} rows; the file is damaged")));
    }
    if gguf.texts(TOKENS)?.is_some_and(|tokens| tokens.len() > rows) {
        return Err(m.error(TOKENS, &format!("the embedding has {rows} rows, too few for them; the file is damaged")));
    }
    Ok(rows)
}

fn head_dim(m: &Metadata, key: &impl Fn(&str) -> String, hidden: usize, heads: usize) -> Result<usize> {
    if heads == 0 {
        return Err(m.error(&key("attention.head_count"), "there must be one at least"));
    }
    let given = m.size(&key("attention.key_length"))?;
    let rotated = m.size(&key("rope.dimension_count"))?;
    let head_dim = given.or(rotated).unwrap_or(hidden / heads);
    for name in ["rope.dimension_count", "attention.value_length"] {
        if m.size(&key(name))?.is_some_and(|size| size != head_dim) {
            let problem = format!(
                "it should be the width of a head, {head_dim}: partly rotated heads and values of \
                                   another width are not supported"
            );
            return Err(m.error(&key(name), &problem));
        }
    }
    Ok(head_dim)
}

fn activation(m: &Metadata, architecture: Architecture, key: &str) -> Result<Activation> {
    match (architecture, m.text(key)?) {
        (Architecture::Llama, _) => Ok(Activation::Silu),
        (Architecture::Bitnet, None) => Ok(Activation::Silu),
        (_, None | Some("relu2" | "relu_sqr" | "squared_relu")) => Ok(Activation::Relu2),
        (_, Some("silu" | "swish")) => Ok(Activation::Silu),
        _ => Err(m.error(key, "silu and relu2 are supported")),
    }
}

fn eos_ids(gguf: &Gguf) -> Result<Vec<u32>> {
    let m = gguf.metadata();
    if let Some(ids) = gguf.numbers(EOS_IDS)? {
        return Ok(ids.into_iter().map(|id| id as u32).collect());
    }
    let mut ids: Vec<u32> = [m.id(EOS_ID)?, m.id(EOT_ID)?].into_iter().flatten().collect();
    ids.dedup();
    Ok(ids)
}

fn quantization(gguf: &Gguf, architecture: Architecture, config: &Config) -> Result<Quantization> {
    let offline = Quantization::Offline { linear_class: LinearClass::AutoBitLinear };
    let said = gguf.metadata().flag(TERNARY)?;
    if said == Some(true) {
        return Ok(offline);
    }
    let linears: Vec<_> = config.tensors().into_iter().filter(|s| s.name.ends_with("_proj.weight")).collect();
    let matrices = linears.iter().map(|spec| Matrix::of(gguf, spec, RowOrder::Same));
    let matrices = matrices.collect::<Result<Vec<_>>>()?;
    let typed = matrices.iter().filter(|matrix| matrix.dtype().is_ternary()).count();
    if architecture != Architecture::Llama {
        // Floats may be masters, which are made ternary at load, or ternary values.
        return Ok(if typed == matrices.len() { offline } else { Quantization::Online });
    }
    if typed == 0 || said == Some(false) {
        return Ok(Quantization::None);
    }
    for matrix in matrices.iter().filter(|matrix| matrix.dtype().is_ternary()) {
        if let Scale::Several { .. } = matrix.scale()? {
            return Ok(Quantization::None);
        }
    }
    Ok(offline)
}
