//! The cache of keys and values: one pair of states a layer.

use crate::config::Config;
use tritter_runtime::{DType, Tensor};

/// Keys and values of all layers, `[capacity, KV heads, head]` each.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Keys, rotated, by layer.
    pub keys: Vec<Tensor>,
    /// Values by layer.
    pub values: Vec<Tensor>,
    /// Positions that it holds.
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
        self.keys.iter().chain(&self.values).map(|t| t.spec().bytes()).sum()
    }
}
