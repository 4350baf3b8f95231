//! Options that several commands take.

use crate::plan::session::May;
use crate::sizes;
use clap::{Args, ValueEnum};
use tritter_model::cache::CacheFormat;
use tritter_model::config::RopeExtension;
use tritter_model::programs::Layout;

/// How a model is held in memory, and how far its positions reach.
#[derive(Args, Debug, Clone, Copy, Default)]
pub(crate) struct WeightArgs {
    /// Ternary weights in 2 or 1.6 bits; auto takes 1.6 where 2 do not fit
    #[arg(long, value_enum, default_value_t = TernaryFormat::Auto)]
    pub(crate) weights: TernaryFormat,
    /// Embedding and head in memory [default: as the file has them]
    #[arg(long, value_enum)]
    pub(crate) head: Option<TableFormat>,
    /// Reach beyond the positions that the model was made for: linear:F divides positions by F, yarn:F
    /// stretches slow frequencies by F (YaRN), theta:X takes another base
    #[arg(long, value_name = "KIND:X")]
    pub(crate) rope: Option<RopeExtension>,
}

/// Format of `--weights`.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TernaryFormat {
    /// 2 bits, or 1.6 where 2 do not fit
    #[default]
    Auto,
    /// 2 bits: 4 in a byte
    T2,
    /// 1.6 bits: 5 in a byte
    T1,
}

/// Format of `--head`; integers have a scale for 64 columns.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableFormat {
    /// 4 bytes
    F32,
    /// 2 bytes, IEEE half
    F16,
    /// 2 bytes, upper half of an f32
    Bf16,
    /// 8 bits
    I8,
    /// 6 bits
    I6,
    /// 4 bits
    I4,
}

/// Models that are larger than the memory.
#[derive(Args, Debug, Clone, Copy, Default)]
pub(crate) struct StreamArgs {
    /// Let layers that do not fit --memory-limit come from a file in every step: slower, and bit for bit the same. The
    /// file has no name and goes with the program; it is in the user's cache folder (XDG_CACHE_HOME moves it), or where
    /// that is kept in memory in a temporary folder on a disk
    #[arg(long)]
    pub(crate) stream: bool,
}

/// How the cache is stored, which keys a token sees, and the memory that there is.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct CacheArgs {
    /// Cache of keys and values: f32, f16, int8, int4 or int2
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    pub(crate) kv: CacheFormat,
    /// Newest tokens that a token sees, itself included, e.g. 4096 or 32k [default: all]
    #[arg(long, value_name = "N", value_parser = sizes::count)]
    pub(crate) window: Option<usize>,
    /// First tokens of the text that are seen whatever the window is
    #[arg(long, value_name = "N", default_value = "0", value_parser = sizes::count)]
    pub(crate) sinks: usize,
    /// Pages of 64 tokens that all texts share; one that finds none free ends with that reason [default: as many
    /// as all can fill]
    #[arg(long, value_name = "N")]
    pub(crate) pages: Option<usize>,
    /// Where memory is short, allow a smaller type of cache, which changes results a little
    #[arg(long)]
    pub(crate) kv_may_shrink: bool,
    /// Where nothing else makes it fit, let tokens see the newest N only, which changes results
    #[arg(long, value_name = "N", value_parser = sizes::count)]
    pub(crate) fallback_window: Option<usize>,
    /// Memory that weights, cache and activations may take, e.g. 12.6GB [default: what is safe on the device]
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
    pub(crate) memory_limit: Option<u64>,
}

impl CacheArgs {
    /// Room for one sequence.
    pub(crate) fn layout(&self, capacity: usize) -> Layout {
        // Sinks beside a window that is only fallen back on come with it.
        let sinks = if self.window.is_none() && self.fallback_window.is_some() { 0 } else { self.sinks };
        Layout { window: self.window, sinks, pages: self.pages, ..Layout::single(capacity, self.kv) }
    }

    /// The longest distance between tokens that meet in a context of so many: only distances count, and with a
    /// window none is longer.
    pub(crate) fn reach(&self, context: usize) -> usize {
        // A window of 0 is refused by the session, by its name.
        self.window.map_or(context, |window| context.min(window.max(1).saturating_add(self.sinks)))
    }

    /// What may be given up where memory is short.
    pub(crate) fn may(&self) -> May {
        let window = self.fallback_window.map(|window| (window, self.sinks));
        May { shrink: self.kv_may_shrink, window, ..May::default() }
    }
}

/// Block of `--arch`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    /// BitNet b1.58 (transformers' BitNetForCausalLM)
    Bitnet,
    /// Llama, dense
    Llama,
    /// BitNet with QK-norm and a norm on the feed-forward branch
    Tritter,
}

/// Dtype of `--precision`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32 throughout
    F32,
    /// bf16 activations and their gradients; master weights, optimiser and loss in f32
    Bf16,
}
