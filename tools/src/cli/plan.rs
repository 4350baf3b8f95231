//! Options of `plan`.

use super::shared::{CacheArgs, Precision, WeightArgs};
use crate::plan::budget::DesktopName;
use crate::plan::training::Method;
use crate::sizes;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// Model folder or preset
    #[arg(required_unless_present = "matrix")]
    pub(crate) model: Option<String>,
    /// Positions of the cache, or tokens in a sequence when training: 4096, 32k, 128K, 1m
    #[arg(short, long, value_name = "N", value_parser = sizes::count)]
    pub(crate) context: Option<usize>,
    /// Plan training instead of inference
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "qat", value_name = "METHOD")]
    pub(crate) train: Option<Method>,
    /// Rank of the adapters of lora and qlora
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) rank: usize,
    /// Sequences in the cache, or in a micro-batch
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Plan with recomputed layers
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Dtype of activations in training, on a device that has kernels for it
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) formats: WeightArgs,
    /// Memory of the card, e.g. 16GiB, of which the safe part is the budget: exit 3 where the plan does not fit
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes, conflicts_with = "memory_limit")]
    pub(crate) device_memory: Option<u64>,
    /// What else uses the card [default: as here]
    #[arg(long, value_enum)]
    pub(crate) desktop: Option<DesktopName>,
    /// Let layers that do not fit come from the system's memory in every step
    #[arg(long)]
    pub(crate) stream: bool,
    /// Write a picture of memory against context, SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Hold all presets, or the one named, against common cards
    #[arg(long, conflicts_with_all = ["train", "plot", "stream", "device_memory", "memory_limit"])]
    pub(crate) matrix: bool,
}
