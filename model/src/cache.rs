//! The cache of keys and values: a pool of pages that all sequences share, and how its elements are stored.

use crate::config::Config;
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use tritter_runtime::ops::attention::Mask;
use tritter_runtime::ops::paged::codes::Block;
use tritter_runtime::{DType, Tensor};

/// How elements of a cache are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 8 bits and parameters of groups.
    Int8,
    /// 4 bits and parameters of groups.
    Int4,
    /// 2 bits and parameters of groups.
    Int2,
}

impl CacheKind {
    /// All of them, largest first.
    pub const ALL: [CacheKind; 5] = [CacheKind::F32, CacheKind::F16, CacheKind::Int8, CacheKind::Int4, CacheKind::Int2];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            CacheKind::F32 => "f32",
            CacheKind::F16 => "f16",
            CacheKind::Int8 => "int8",
            CacheKind::Int4 => "int4",
            CacheKind::Int2 => "int2",
        }
    }
}

/// Format of a cache. Integers follow KIVI (Liu et al. 2024): keys per channel over the tokens of a page, values
/// per token over groups of as many channels, the newest tokens in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheFormat {
    /// How elements are stored.
    pub kind: CacheKind,
    /// Tokens of a page, and elements that share parameters: 32, 64 or 128.
    pub page: usize,
    /// Parameters in f32 instead of f16.
    pub precise: bool,
    /// Newest tokens that stay in f32 at least, beside integers.
    pub residual: usize,
}

impl From<CacheKind> for CacheFormat {
    fn from(kind: CacheKind) -> CacheFormat {
        CacheFormat { kind, ..CacheFormat::F32 }
    }
}

impl FromStr for CacheFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<CacheFormat> {
        let kind = CacheKind::ALL.into_iter().find(|kind| kind.name() == text);
        let unknown = || Error::Session(format!("a cache in `{text}`: there are f32, f16, int8, int4 and int2"));
        kind.map(CacheFormat::from).ok_or_else(unknown)
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())
    }
}

impl CacheFormat {
    /// Single precision.
    pub const F32: CacheFormat = CacheFormat { kind: CacheKind::F32, page: 64, precise: false, residual: 64 };

    /// Half precision.
    pub const F16: CacheFormat = CacheFormat { kind: CacheKind::F16, ..CacheFormat::F32 };

    /// Bits of a code, of integers.
    pub fn bits(&self) -> Option<usize> {
        match self.kind {
            CacheKind::F32 | CacheKind::F16 => None,
            CacheKind::Int8 => Some(8),
            CacheKind::Int4 => Some(4),
            CacheKind::Int2 => Some(2),
        }
    }

    /// The block of a page and head of `d` channels, of integers.
    pub fn block(&self, d: usize) -> Option<Block> {
        let CacheFormat { page, precise, .. } = *self;
        self.bits().map(|bits| Block { page, d, bits, precise })
    }

    /// Dtype of whole rows: of the cache, or beside integers of the newest tokens.
    pub fn rows(&self) -> DType {
        if self.kind == CacheKind::F16 { DType::F16 } else { DType::F32 }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if ![32, 64, 128].contains(&self.page) {
            return Err(Error::Session(format!("pages of {} tokens; there are pages of 32, 64 and 128", self.page)));
        }
        if self.residual > 4096 {
            let message = format!("{} newest tokens in full precision; at most 4096 are kept", self.residual);
            return Err(Error::Session(message));
        }
        Ok(())
    }

    /// Rows of a sequence's ring, if chunks have at most so many tokens: what a chunk writes, and behind it all
    /// keys that its first token sees in full precision.
    pub fn ring(&self, chunk: usize) -> usize {
        if self.bits().is_none() { 0 } else { (self.residual + self.page + chunk).next_power_of_two().max(self.page) }
    }
}

/// What the cache holds, and which of it a token sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// How elements are stored.
    pub format: CacheFormat,
    /// Sequences.
    pub sequences: usize,
    /// Pages that a sequence has at most, seen and gone by.
    pub entries: usize,
    /// Pages of the pool.
    pub pages: usize,
    /// Rows of a sequence's ring; 0 beside floats.
    pub ring: usize,
    /// Keys that a token sees, `NO_WINDOW` for all before it.
    pub window: u32,
    /// First keys of the text that a token sees whatever the window is.
    pub sinks: u32,
}

/// Bytes of a cache by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheBytes {
    /// Codes of integers, padding included.
    pub codes: u64,
    /// Scales and zeros of groups of codes.
    pub parameters: u64,
    /// Whole rows: all tokens, or beside integers the newest.
    pub rows: u64,
}

/// Keys and values of all layers.
#[derive(Clone, Debug)]
pub struct Cache {
    /// What it holds.
    pub shape: CacheShape,
    /// By layer whole rows `[rows, 2 · KV heads · head]`, keys (rotated) then values: of the pool's pages, or beside
    /// integers of the sequences' rings.
    pub rows: Vec<Tensor>,
    /// By layer the pages' codes `[pages · KV heads, words]`; none beside floats.
    pub codes: Vec<Tensor>,
    /// The block table `[sequences, entries]`.
    pub table: Tensor,
}

impl Cache {
    /// Describes a cache. Takes no device memory.
    pub fn new(config: &Config, shape: CacheShape) -> Cache {
        let CacheShape { format, sequences, entries, pages, ring, .. } = shape;
        let block = format.block(config.head_dim);
        let rows = if block.is_some() { sequences * ring } else { pages * format.page };
        let width = 2 * config.num_kv_heads * config.head_dim;
        let layers = 0..config.num_layers;
        let what = if block.is_some() { "newest" } else { "rows" };
        let whole = |i| Tensor::state(format!("cache.{i}.{what}"), [rows, width], format.rows());
        let codes = |block: Block| {
            let tensor =
                |i| Tensor::state(format!("cache.{i}.codes"), [pages * config.num_kv_heads, block.words()], DType::U32);
            layers.clone().map(tensor).collect()
        };
        Cache {
            shape,
            rows: layers.clone().map(whole).collect(),
            codes: block.map(codes).unwrap_or_default(),
            table: Tensor::input("cache.table", [sequences, entries], DType::U32),
        }
    }

    /// Bytes on a device, without the block table.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(|t| t.spec().bytes()).sum()
    }

    /// The same by what they hold, heads having `d` channels.
    pub fn parts(&self, d: usize) -> CacheBytes {
        let sum = |tensors: &[Tensor]| tensors.iter().map(|t| t.spec().bytes()).sum::<u64>();
        let all = sum(&self.codes);
        let sections = self.shape.format.block(d).map_or([0; 5], |block| block.sections());
        let parameters = (sections[2] - sections[1] + sections[4] - sections[3]) as u64;
        let parameters = if all == 0 { 0 } else { all / sections[4] as u64 * parameters };
        CacheBytes { codes: all - parameters, parameters, rows: sum(&self.rows) }
    }

    /// Bytes of one token in the pool.
    pub fn row_bytes(&self) -> u64 {
        let tokens = (self.shape.pages * self.shape.format.page).max(1) as u64;
        self.pool().iter().map(|t| t.spec().bytes()).sum::<u64>() / tokens
    }

    /// Whole rows, then codes, by layer.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.rows.iter().chain(&self.codes)
    }

    /// Which keys a token sees.
    pub fn mask(&self) -> Mask {
        Mask { window: self.shape.window, sinks: self.shape.sinks }
    }
}
