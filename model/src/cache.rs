//! The cache of keys and values: one pair of states a layer, in which every sequence has a region of rows.

use crate::config::Config;
use tritter_runtime::{DType, Tensor};

/// Keys and values of all layers, `[capacity, KV heads, head]` each.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Keys, rotated, by layer.
    pub keys: Vec<Tensor>,
    /// Values by layer.
    pub values: Vec<Tensor>,
    /// Rows: positions of all sequences together.
    pub capacity: usize,
    /// f32 or f16.
    pub dtype: DType,
}

impl Cache {
    /// Describes a cache. Takes no device memory.
    pub fn new(config: &Config, capacity: usize, dtype: DType) -> Cache {
        let shape = [capacity, config.num_kv_heads, config.head_dim];
        let states = |what: &str| {
            let state = |i| Tensor::state(format!("cache.{i}.{what}"), shape, dtype);
            (0..config.num_layers).map(state).collect()
        };
        Cache { keys: states("keys"), values: states("values"), capacity, dtype }
    }

    /// Bytes on a device.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(|t| t.spec().bytes()).sum()
    }

    /// Bytes of one token.
    pub fn row_bytes(&self) -> u64 {
        self.bytes() / self.capacity.max(1) as u64
    }

    /// Keys, then values, by layer.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.keys.iter().chain(&self.values)
    }
}
