//! Attention by a device's own rows, for golden files of single operations: layouts, graphs of one operation, and
//! a query over a paged cache.

use anyhow::Result;
use tritter_runtime::ops::attention::Mask;
use tritter_runtime::ops::paged::Paged;
use tritter_runtime::ops::{attention_join, copy, paged_attention};
use tritter_runtime::{DType, Device, Graph, Tensor, Value};

/// Page of the caches here: the smallest, so that short texts have several.
pub(super) const PAGE: usize = 32;

/// Swaps the first two axes of `[a, b, width]`: heads and tokens.
pub(super) fn swapped(values: &[f32], [a, b]: [usize; 2], width: usize) -> Vec<f32> {
    let at = |i: usize, j: usize| &values[(i * b + j) * width..][..width];
    (0..b).flat_map(|j| (0..a).flat_map(move |i| at(i, j))).copied().collect()
}

/// Rows of a cache, one a token: its key heads, then its value heads.
pub(super) fn cache_rows(k: &[f32], v: &[f32], width: usize) -> Vec<Vec<f32>> {
    k.chunks(width).zip(v.chunks(width)).map(|(k, v)| [k, v].concat()).collect()
}

/// A graph with the values of its inputs.
pub(super) struct Task<'a> {
    device: &'a Device,
    pub(super) graph: Graph,
    inputs: Vec<(Tensor, Vec<u32>)>,
    outputs: Vec<Tensor>,
}

impl<'a> Task<'a> {
    pub(super) fn new(device: &'a Device) -> Task<'a> {
        Task { device, graph: Graph::new("golden"), inputs: Vec::new(), outputs: Vec::new() }
    }

    pub(super) fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Value {
        self.input(Tensor::input(name, shape, DType::F32), values.iter().map(|v| v.to_bits()).collect())
    }

    pub(super) fn integers(&mut self, name: &str, shape: &[usize], values: Vec<u32>) -> Value {
        self.input(Tensor::input(name, shape, DType::U32), values)
    }

    fn input(&mut self, tensor: Tensor, words: Vec<u32>) -> Value {
        let value = self.graph.bind(&tensor);
        self.inputs.push((tensor, words));
        value
    }

    /// A result that can be read after the run, with its place among the results.
    pub(super) fn result(&mut self, value: Value) -> Result<usize> {
        let spec = self.graph.spec(value);
        let tensor = Tensor::state(format!("result {}", self.outputs.len()), spec.shape.clone(), spec.dtype);
        let target = self.graph.bind(&tensor);
        copy::copy_into(&mut self.graph, value, target)?;
        self.outputs.push(tensor);
        Ok(self.outputs.len() - 1)
    }

    /// Words that the graph writes into, with their place among the results.
    pub(super) fn words(&mut self, shape: &[usize]) -> (Value, usize) {
        let tensor = Tensor::state(format!("words {}", self.outputs.len()), shape, DType::U32);
        self.outputs.push(tensor.clone());
        (self.graph.bind(&tensor), self.outputs.len() - 1)
    }

    /// Runs it; gives the words of every result.
    pub(super) fn run(self) -> Result<Vec<Vec<u32>>> {
        let program = self.device.prepare(&self.graph)?;
        for (tensor, words) in &self.inputs {
            self.device.write(tensor, words)?;
        }
        program.submit()?;
        self.outputs.iter().map(|tensor| Ok(self.device.read::<u32>(tensor)?)).collect()
    }
}

/// Words of a result as floats.
pub(super) fn as_floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&word| f32::from_bits(word)).collect()
}

/// The last token of a text, which meets all of it in a cache.
pub(super) struct Last<'a> {
    /// Query heads, their width and key-value heads.
    pub(super) heads: [usize; 3],
    /// Query `[heads, width]`.
    pub(super) q: &'a [f32],
    /// Query for sinks.
    pub(super) sink_q: &'a [f32],
    /// Rows of the cache, one a token.
    pub(super) rows: &'a [Vec<f32>],
    pub(super) mask: Mask,
}

impl Last<'_> {
    /// What `paged_attention` gives for it, `[heads, width]`. Pages lie in falling order, and what is not seen is
    /// NaN.
    pub(super) fn attend(&self, device: &Device) -> Result<Vec<f32>> {
        let ([h, d, g], t) = (self.heads, self.rows.len());
        let (entries, width) = (t.div_ceil(PAGE), 2 * g * d);
        let mut pool = vec![f32::NAN; entries * PAGE * width];
        for key in self.mask.keys([0, t as u32 - 1], t as u32).iter().map(|key| key as usize) {
            let row = (entries - 1 - key / PAGE) * PAGE + key % PAGE;
            pool[row * width..][..width].copy_from_slice(&self.rows[key]);
        }
        let mut task = Task::new(device);
        let q = task.floats("q", &[1, h, d], self.q);
        let sink_q = task.floats("sink q", &[1, h, d], self.sink_q);
        let cache = task.floats("cache", &[entries * PAGE, width], &pool);
        let rows = task.integers("rows", &[1, 4], vec![0, 0, t as u32 - 1, 0]);
        let table = task.integers("table", &[1, entries], (0..entries as u32).rev().collect());
        let scale = (d as f32).powf(-0.5);
        let paged = Paged { q, sink_q, rows, table, page: PAGE, scale, mask: self.mask, parts: 2, prompt: false };
        let parts = paged_attention::paged_attention(&mut task.graph, paged, cache)?;
        let y = attention_join::attention_join(&mut task.graph, parts)?;
        let at = task.result(y)?;
        Ok(as_floats(&task.run()?[at]))
    }
}
