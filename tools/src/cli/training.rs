//! Options of the commands that train: `train` and `demo`.

use super::shared::{Arch, Precision};
use crate::sizes;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Seconds to train
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// Folder for the model [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Seed of weights and batches
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Dtype of activations and their gradients; master weights stay f32
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
}

#[derive(Args, Debug)]
pub(crate) struct Train {
    /// Text: files, folders (ignore files are honoured) or .jsonl with `text`
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Shape: test, 125M, 350M, 1B, 3B, 7B, …
    #[arg(long, default_value = "test", value_name = "NAME")]
    pub(crate) preset: String,
    /// Block
    #[arg(long, value_enum, default_value_t = Arch::Bitnet)]
    pub(crate) arch: Arch,
    /// tokenizer.json
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: PathBuf,
    /// Folder of the run: a loadable model at every moment
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Optimiser steps in all (resuming counts those done)
    #[arg(long, default_value_t = 1000)]
    pub(crate) steps: u64,
    /// Sequences in a micro-batch
    #[arg(long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// Micro-batches whose gradients are added up for one step
    #[arg(long, default_value_t = 1)]
    pub(crate) accumulate: usize,
    /// Tokens in a sequence
    #[arg(long, default_value = "256", value_parser = sizes::count)]
    pub(crate) context: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 1.5e-3)]
    pub(crate) lr: f64,
    /// Course of the learning rate
    #[arg(long, value_enum, default_value_t = Course::TwoStage)]
    pub(crate) schedule: Course,
    /// Steps of linear warm-up [default: 2 % of the steps, at most 500]
    #[arg(long, value_name = "N")]
    pub(crate) warmup: Option<u64>,
    /// Weight decay of matrices
    #[arg(long, default_value_t = 0.1)]
    pub(crate) weight_decay: f64,
    /// Largest gradient norm; 0 does not clip
    #[arg(long, default_value_t = 1.0)]
    pub(crate) clip: f64,
    /// Seed of weights and batches
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Steps between checkpoints; 0 saves at the end only
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub(crate) checkpoint_every: u64,
    /// Steps between evaluations on held-out text
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) evaluate_every: u64,
    /// Share of the text that is held out
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    pub(crate) validation: f64,
    /// Compute each layer again in the backward pass instead of keeping it
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Dtype of activations and their gradients; master weights stay f32
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// Memory that weights, moments, gradients and activations may take, e.g. 12.6GB [default: what is safe on
    /// the device]. Where that is short, micro-batches become smaller, then layers are computed again
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
    pub(crate) memory_limit: Option<u64>,
    /// Go on with the run in --out
    #[arg(long)]
    pub(crate) resume: bool,
}

/// Course of the learning rate.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Warm-up, then cosine to a tenth
    Cosine,
    /// Warm-up, then constant
    Constant,
    /// Two stages with weight decay that ends (BitNet b1.58)
    TwoStage,
}
