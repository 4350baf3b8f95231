//! Options of the commands that write models: `init`, `pack`, `unpack`, `quantize` and `convert`.

use super::shared::Arch;
use crate::sizes;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// Shape: test, 125M, 350M, …, bitnet-2b4t, llama2-7b
    pub(crate) preset: String,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seed of the weights: equal seeds give equal files
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Block
    #[arg(long, value_enum, default_value_t = Arch::Bitnet)]
    pub(crate) arch: Arch,
    /// How the projections are stored
    #[arg(long, value_enum, default_value_t = WeightForm::Packed)]
    pub(crate) form: WeightForm,
    /// Tokens of the vocabulary [default: the preset's]
    #[arg(long, value_name = "N")]
    pub(crate) vocab: Option<usize>,
    /// Type of the embedding and all other floats
    #[arg(long, value_enum, default_value_t = FloatType::Bf16)]
    pub(crate) embedding: FloatType,
    /// How packed scales are to be read [default: bitlinear for llama, else autobitlinear]
    #[arg(long, value_enum)]
    pub(crate) scale_class: Option<ScaleClass>,
    /// Begin another file after this many bytes, e.g. 2GB [default: one file]
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
    pub(crate) shard_size: Option<u64>,
}

/// Form of `--form`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightForm {
    /// Ternary codes, four to a byte, with a scale
    Packed,
    /// Floats: masters of a ternary model, which are made ternary at load; a llama is dense
    Master,
}

/// Float type of `--embedding`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatType {
    /// 4 bytes
    F32,
    /// 2 bytes, as the released checkpoints have it
    Bf16,
}

/// Convention of `--scale-class`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleClass {
    /// Codes are multiplied by the scale (microsoft/bitnet-b1.58-2B-4T)
    Autobitlinear,
    /// Codes are divided by the scale (HF1BitLLM)
    Bitlinear,
}

#[derive(Args, Debug)]
pub(crate) struct Pack {
    /// Model folder with master weights
    pub(crate) model: String,
    /// Folder to write
    pub(crate) out: PathBuf,
    /// Store scales, norms and embedding in bf16 and print how much logits change
    #[arg(long)]
    pub(crate) bf16: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Unpack {
    /// Packed model folder
    pub(crate) model: String,
    /// Folder to write
    pub(crate) out: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Quantize {
    /// Model folder, or a Hub id that is in the local cache
    pub(crate) model: String,
    /// Folder to write
    pub(crate) out: PathBuf,
    /// What the projections of the layers become [default: kept as they are]
    #[arg(long, value_enum)]
    pub(crate) to: Option<ProjectionType>,
    /// What embedding and head become [default: kept as they are]
    #[arg(long, value_enum)]
    pub(crate) head: Option<HeadType>,
    /// Weights of a row that share a scale; a multiple of 16
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) group: usize,
    /// Text whose perplexity is measured before and after
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Tokens of it to measure at most
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub(crate) tokens: usize,
}

/// Weights of `quantize --to`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProjectionType {
    /// -1, 0 and 1 with one scale a matrix (absmean)
    Ternary,
    /// 8 bits, one scale a group
    Int8,
    /// 4 bits, one scale a group
    Int4,
}

/// Weights of `quantize --head`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadType {
    /// 8 bits, one scale a group
    Int8,
    /// 6 bits, one scale a group
    Int6,
}

#[derive(Args, Debug)]
pub(crate) struct Convert {
    /// Model folder, Hub id in the local cache, or .gguf file
    pub(crate) from: String,
    /// A file that ends with .gguf, or a folder: of a file a folder is made, of a folder a file
    pub(crate) to: PathBuf,
    /// Type of the projections of a .gguf file [default: i2_s, of a dense model f16]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub(crate) weights: Option<WeightType>,
    /// Type of embedding and head of a .gguf file
    #[arg(long, value_enum, default_value_t = TableType::F16, value_name = "TYPE")]
    pub(crate) embedding: TableType,
    /// Write a .gguf file also where llama.cpp would not look at a sliding window, or at bounds of YaRN other than 32
    /// and 1, and so compute other logits; this program heeds them
    #[arg(long)]
    pub(crate) unheeded: bool,
}

/// Type of a GGUF file's projections.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
pub(crate) enum WeightType {
    /// Two bits, one f32 scale a matrix (bitnet.cpp); widths in multiples of 128
    #[value(name = "i2_s")]
    I2S,
    /// 1.69 bits with an f16 scale for 256 (llama.cpp); widths in multiples of 256
    #[value(name = "tq1_0")]
    Tq1_0,
    /// 2.06 bits with an f16 scale for 256 (llama.cpp); widths in multiples of 256
    #[value(name = "tq2_0")]
    Tq2_0,
    /// 2.25 bits with an f16 scale for 64 (llama.cpp); widths in multiples of 64
    #[value(name = "q2_0")]
    Q2_0,
    /// Half floats, code × scale
    F16,
    /// Floats, code × scale
    F32,
}

/// Type of a GGUF file's embedding and head.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableType {
    /// Half floats
    F16,
    /// The upper halves of floats
    Bf16,
    /// Floats
    F32,
    /// 8 bits, a scale for 32
    #[value(name = "q8_0")]
    Q8_0,
    /// 6 bits, scales for 16 and 256
    #[value(name = "q6_k")]
    Q6K,
    /// 4 bits, a scale for 32
    #[value(name = "q4_0")]
    Q4_0,
}
