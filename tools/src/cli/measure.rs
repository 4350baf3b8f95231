//! Options of the commands that check and measure: `check`, `bench`, `perplexity` and `validate`.

use super::shared::{Arch, CacheArgs, Precision, StreamArgs, WeightArgs};
use crate::sizes;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Seed of the operands [default: of the clock; it is printed]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) row: Option<String>,
    /// Runs of one program of all rows, over which memory in use must not grow
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) replays: usize,
    /// Print what each row has (signature, kernels, gradient, cases) and check nothing
    #[arg(long)]
    pub(crate) coverage: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Bench {
    /// Every row at its bench sizes, with the share of the device's measured peaks
    Kernels {
        /// Only rows whose name contains this
        #[arg(long, value_name = "TEXT")]
        row: Option<String>,
        /// Seconds for each case, about
        #[arg(long, default_value_t = 0.3)]
        seconds: f64,
    },
    /// Our CUDA kernels against cuBLAS on one card, in one run
    Yardstick {
        /// Seconds for each of our kernels, about
        #[arg(long, default_value_t = 0.3)]
        seconds: f64,
    },
    /// Prefill and decode tokens per second
    #[command(after_help = "Examples:
  tritter bench decode bitnet-2b4t --head i8
  tritter bench decode 7B --head i8 --kv int4 --fill 131000 --prompt 0 -n 8
  tritter bench decode 125M --kv f16 --window 4096 --fill 1000000 --prompt 0")]
    Decode(BenchDecode),
    /// Training tokens per second
    Train {
        /// Preset
        #[arg(default_value = "125M")]
        preset: String,
        /// Sequences in a micro-batch
        #[arg(long, default_value_t = 1)]
        batch: usize,
        /// Tokens in a sequence
        #[arg(long, default_value_t = 256)]
        context: usize,
        /// Steps to time
        #[arg(long, default_value_t = 3)]
        steps: u64,
        /// Vocabulary
        #[arg(long)]
        vocab: Option<usize>,
        /// Block
        #[arg(long, value_enum, default_value_t = Arch::Bitnet)]
        arch: Arch,
        /// Dtype of activations and their gradients
        #[arg(long, value_enum, default_value_t = Precision::F32)]
        precision: Precision,
        /// Memory that it may take, e.g. 12.6GB [default: what is safe on the device]
        #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
        memory_limit: Option<u64>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct BenchDecode {
    /// Model folder or preset (random weights)
    pub(crate) model: String,
    /// Prompts whose prefill is timed, in tokens; 0 times none
    #[arg(long, value_delimiter = ',', default_value = "128,512", value_name = "N,N", value_parser = sizes::count)]
    pub(crate) prompt: Vec<usize>,
    /// Tokens to decode
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N")]
    pub(crate) tokens: usize,
    /// Tokens of random content that are in the cache before decoding begins; nothing is fed for them
    #[arg(long, default_value = "0", value_name = "N", value_parser = sizes::count)]
    pub(crate) fill: usize,
    /// Times that each is run; medians are printed
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) repeats: usize,
    /// Vocabulary of a preset
    #[arg(long)]
    pub(crate) vocab: Option<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) streaming: StreamArgs,
    #[command(flatten)]
    pub(crate) formats: WeightArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Perplexity {
    /// Model folder, or a Hub id that is in the local cache
    pub(crate) model: String,
    /// Text to measure
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Cache types (f32, f16, int8, int4, int2), or all
    #[arg(long, value_delimiter = ',', default_value = "all", value_name = "TYPE,TYPE")]
    pub(crate) kv: Vec<String>,
    /// Tokens of a window, in which each token sees those before it [default: those of the model, up to 1024]
    #[arg(short, long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// Tokens of the text to measure at most
    #[arg(long, default_value_t = 8192, value_name = "N")]
    pub(crate) tokens: usize,
    #[command(flatten)]
    pub(crate) formats: WeightArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Validate {
    /// Folder with a model or tokenizer and golden outputs
    pub(crate) folder: PathBuf,
}
