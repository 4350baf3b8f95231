//! The oracle: graphs run in f64 by the rows' references, and the conversion
//! between f64 values and stored words.

use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use half::{bf16, f16};
use std::collections::HashMap;

/// A tensor of logical values (no padding); integers and codes are exact in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct RefTensor {
    /// Shape and the dtype that a device would store.
    pub spec: Spec,
    /// Values, row-major.
    pub data: Vec<f64>,
}

impl RefTensor {
    /// A tensor of values.
    pub fn new(spec: Spec, data: Vec<f64>) -> Self {
        RefTensor { spec, data }
    }

    /// A tensor of one value everywhere.
    pub fn filled(spec: Spec, value: f64) -> Self {
        let data = vec![value; spec.elements()];
        RefTensor { spec, data }
    }

    /// Row `i` of the last axis.
    pub fn row(&self, i: usize) -> &[f64] {
        let k = self.spec.cols();
        &self.data[i * k..(i + 1) * k]
    }
}

/// Values to stored words (see [`crate::dtype`]). Floats round to nearest; codes must be exact.
pub fn encode(spec: &Spec, data: &[f64]) -> Vec<u32> {
    let k = spec.cols();
    let mut words = Vec::with_capacity(spec.bytes() as usize / 4);
    for row in data.chunks_exact(k) {
        match spec.dtype {
            DType::F32 => words.extend(row.iter().map(|&v| (v as f32).to_bits())),
            DType::U32 => words.extend(row.iter().map(|&v| v as u32)),
            DType::F16 => pairs(row, &mut words, |v| f16::from_f64(v).to_bits()),
            // By way of f32, as every device rounds.
            DType::Bf16 => pairs(row, &mut words, |v| bf16::from_f32(v as f32).to_bits()),
            DType::I8 => encode_codes(row, 4, 8, 0.0, &mut words, |v| u32::from(v as i8 as u8)),
            DType::T2 => encode_codes(row, 16, 2, 0.0, &mut words, |v| (v as i32 + 1) as u32 & 3),
        }
    }
    words
}

fn pairs(row: &[f64], words: &mut Vec<u32>, bits: fn(f64) -> u16) {
    words.extend(row.chunks(2).map(|pair| {
        let half = |i: usize| pair.get(i).map_or(0, |&v| u32::from(bits(v)));
        half(0) | half(1) << 16
    }));
}

fn encode_codes(row: &[f64], per_word: usize, bits: usize, pad: f64, words: &mut Vec<u32>, code: fn(f64) -> u32) {
    let padded = row.len().div_ceil(16) * 16;
    for first in (0..padded).step_by(per_word) {
        let at = |i: usize| code(row.get(first + i).copied().unwrap_or(pad)) << (i * bits);
        words.push((0..per_word).map(at).fold(0, |a, b| a | b));
    }
}

/// Stored words to values, without padding.
pub fn decode(spec: &Spec, words: &[u32]) -> Vec<f64> {
    let (k, row_words) = (spec.cols(), spec.row_bytes() as usize / 4);
    let mut data = Vec::with_capacity(spec.elements());
    for row in words.chunks_exact(row_words) {
        data.extend((0..k).map(|i| match spec.dtype {
            DType::F32 => f64::from(f32::from_bits(row[i])),
            DType::U32 => f64::from(row[i]),
            DType::F16 => f16::from_bits((row[i / 2] >> (i % 2 * 16)) as u16).to_f64(),
            DType::Bf16 => bf16::from_bits((row[i / 2] >> (i % 2 * 16)) as u16).to_f64(),
            DType::I8 => f64::from((row[i / 4] >> (i % 4 * 8)) as u8 as i8),
            DType::T2 => f64::from((row[i / 16] >> (i % 16 * 2)) & 3) - 1.0,
        }));
    }
    data
}

/// Runs graphs in f64.
#[derive(Default, Debug)]
pub struct Interpreter {
    values: HashMap<Value, Vec<f64>>,
}

impl Interpreter {
    /// Sets the value of a tensor (or any root value) of the graph.
    pub fn set(&mut self, value: Value, data: Vec<f64>) {
        self.values.insert(value, data);
    }

    /// The value of a root value after a run.
    pub fn get(&self, value: Value) -> Option<&[f64]> {
        self.values.get(&value).map(Vec::as_slice)
    }

    /// A slice or view of a root value, or a root value itself, as a tensor.
    pub fn tensor(&self, graph: &Graph, value: Value) -> Result<RefTensor> {
        let (root, first) = graph.root(value);
        let spec = graph.spec(value).clone();
        let data = self.values.get(&root).ok_or_else(|| Error::Record {
            graph: graph.name().into(),
            message: format!("value `{}` has no data in the reference run", graph.value_name(value)),
        })?;
        let data = data[first..first + spec.elements()].to_vec();
        Ok(RefTensor { spec, data })
    }

    /// Runs all nodes; `surrogate` takes the rows' differentiable stand-ins.
    pub fn run(&mut self, graph: &Graph, surrogate: bool) -> Result<()> {
        for node in graph.nodes() {
            let signature = &node.op.row().signature;
            let mut tensors = Vec::with_capacity(node.operands.len());
            for (operand, &value) in signature.operands.iter().zip(&node.operands) {
                let (root, _) = graph.root(value);
                if operand.access.writes() {
                    let n = graph.spec(root).elements();
                    self.values.entry(root).or_insert_with(|| vec![f64::NAN; n]);
                }
                tensors.push(self.tensor(graph, value)?);
            }
            if surrogate {
                node.op.surrogate(&mut tensors)
            } else {
                node.op.reference(&mut tensors)
            }
            for ((operand, &value), tensor) in signature.operands.iter().zip(&node.operands).zip(tensors) {
                let (root, first) = graph.root(value);
                if let (true, Some(data)) = (operand.access.writes(), self.values.get_mut(&root)) {
                    data[first..first + tensor.data.len()].copy_from_slice(&tensor.data);
                }
            }
        }
        Ok(())
    }
}
