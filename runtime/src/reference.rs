//! The oracle: graphs run in f64 by the rows' references, and the conversion
//! between f64 values and stored words.

use crate::dtype::{DType, INTERLEAVED, Spec};
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
        encode_row(spec.dtype, row, &mut words);
    }
    if spec.dtype.row_group() == 1 {
        return words;
    }
    for _ in spec.rows()..spec.rows().next_multiple_of(INTERLEAVED) {
        encode_row(spec.dtype, &vec![0.0; k], &mut words);
    }
    let row_words = spec.row_bytes() as usize / 4;
    let at = |i: usize| i / (INTERLEAVED * row_words) * INTERLEAVED + i % INTERLEAVED;
    (0..words.len()).map(|i| words[at(i) * row_words + i / INTERLEAVED % row_words]).collect()
}

fn encode_row(dtype: DType, row: &[f64], words: &mut Vec<u32>) {
    let (k, ternary) = (row.len(), |v: f64| (v as i32 + 1) as u32 & 3);
    let at = |i: usize| row.get(i).copied().unwrap_or(0.0);
    match dtype {
        DType::F32 => words.extend(row.iter().map(|&v| (v as f32).to_bits())),
        DType::U32 => words.extend(row.iter().map(|&v| v as u32)),
        DType::F16 => pairs(row, words, |v| f16::from_f64(v).to_bits()),
        // By way of f32, as every device rounds.
        DType::Bf16 => pairs(row, words, |v| bf16::from_f32(v as f32).to_bits()),
        DType::I8 => encode_codes(row, 4, 8, 16, words, |v| u32::from(v as i8 as u8)),
        DType::I4 => encode_codes(row, 8, 4, 8, words, |v| (v as i32 + 8) as u32 & 15),
        DType::T2 => encode_codes(row, 16, 2, 16, words, ternary),
        DType::I6 => words.extend((0..k).step_by(16).flat_map(|first| {
            let code = |i: usize| (at(first + i) as i32 + 32) as u32 & 63;
            let low = |half: usize| (0..8).map(|i| (code(half * 8 + i) & 15) << (4 * i)).sum();
            [low(0), low(1), (0..16).map(|i| (code(i) >> 4) << (2 * i)).sum::<u32>()]
        })),
        DType::T2x16 => words.extend((0..k).step_by(16).map(|first| {
            let code = |i: usize| ternary(at(first + i)) << (8 * (i % 4) + 2 * (i / 4));
            (0..16).map(code).sum::<u32>()
        })),
        DType::T1 | DType::T1x16 => words.extend((0..k).step_by(20).map(|first| {
            let byte = |j: usize| (0..5).fold(0, |v, s| 3 * v + ternary(at(first + 4 * s + j)));
            (0..4).map(|j| (byte(j) * 256).div_ceil(243) << (8 * j)).sum::<u32>()
        })),
    }
}

fn pairs(row: &[f64], words: &mut Vec<u32>, bits: fn(f64) -> u16) {
    words.extend(row.chunks(2).map(|pair| {
        let half = |i: usize| pair.get(i).map_or(0, |&v| u32::from(bits(v)));
        half(0) | half(1) << 16
    }));
}

/// Rows are padded with zeros to a multiple of `pad` elements.
fn encode_codes(row: &[f64], per_word: usize, bits: usize, pad: usize, words: &mut Vec<u32>, code: fn(f64) -> u32) {
    for first in (0..row.len().next_multiple_of(pad)).step_by(per_word) {
        let at = |i: usize| code(row.get(first + i).copied().unwrap_or(0.0)) << (i * bits);
        words.push((0..per_word).map(at).fold(0, |a, b| a | b));
    }
}

/// Stored words to values, without padding.
pub fn decode(spec: &Spec, words: &[u32]) -> Vec<f64> {
    let (k, row_words) = (spec.cols(), spec.row_bytes() as usize / 4);
    let mut data = Vec::with_capacity(spec.elements());
    let group = spec.dtype.row_group();
    for r in 0..spec.rows() {
        let first = r / group * group * row_words + r % group;
        let row = |w: usize| words[first + w * group];
        data.extend((0..k).map(|i| match spec.dtype {
            DType::F32 => f64::from(f32::from_bits(row(i))),
            DType::U32 => f64::from(row(i)),
            DType::F16 => f16::from_bits((row(i / 2) >> (i % 2 * 16)) as u16).to_f64(),
            DType::Bf16 => bf16::from_bits((row(i / 2) >> (i % 2 * 16)) as u16).to_f64(),
            DType::I8 => f64::from((row(i / 4) >> (i % 4 * 8)) as u8 as i8),
            DType::I4 => f64::from((row(i / 8) >> (i % 8 * 4)) & 15) - 8.0,
            DType::I6 => {
                let low = row(i / 16 * 3 + i % 16 / 8) >> (i % 8 * 4) & 15;
                f64::from(low | (row(i / 16 * 3 + 2) >> (i % 16 * 2) & 3) << 4) - 32.0
            }
            DType::T2 => f64::from((row(i / 16) >> (i % 16 * 2)) & 3) - 1.0,
            DType::T2x16 => f64::from((row(i / 16) >> (i % 4 * 8 + i % 16 / 4 * 2)) & 3) - 1.0,
            DType::T1 | DType::T1x16 => {
                let byte = row(i / 20) >> (i % 4 * 8) & 255;
                let digit = byte * 3u32.pow((i % 20 / 4) as u32) % 256;
                f64::from((digit * 3) >> 8) - 1.0
            }
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
