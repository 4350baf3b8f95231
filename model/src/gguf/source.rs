//! An open file as a source of weights.

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::sync::{Mutex, PoisonError};

use super::Gguf;
use super::config::Architecture;
use super::matrix::{Matrix, Scale};
use super::names::RowOrder;
use super::types::TensorType;
use crate::config::{Config, Quantization};
use crate::error::{Error, Result};
use crate::packed::row_words;
use crate::source::{Source, Stored, width};
use crate::tensor_names::{Kind, TensorSpec};
use tritter_runtime::DType;

/// Weights of a GGUF file, borrowed (`&Gguf`) or owned (`Arc<Gguf>`).
pub struct FromGguf<G> {
    gguf: G,
    interleaved: bool,
    head_dim: usize,
    /// Whether floats in place of a ternary matrix are damage rather than masters.
    only_ternary: bool,
    /// Scales found so far: finding one may read a whole tensor.
    scales: Mutex<HashMap<String, Option<f32>>>,
}

impl<G: Deref<Target = Gguf>> FromGguf<G> {
    /// The weights of `gguf`, whose config (of [`super::config::read_config`]) is `config`.
    pub fn new(gguf: G, config: &Config) -> Result<Self> {
        let interleaved = Architecture::of(gguf.metadata())?.interleaved();
        let only_ternary = matches!(config.quantization, Quantization::Offline { .. });
        Ok(FromGguf { gguf, interleaved, head_dim: config.head_dim, only_ternary, scales: Mutex::default() })
    }

    /// The tensor of that name as rows.
    pub fn matrix(&self, spec: &TensorSpec) -> Result<Matrix<'_>> {
        Matrix::of(&self.gguf, spec, RowOrder::of(spec, self.interleaved, self.head_dim))
    }

    /// The scale of a ternary matrix; `None` for another tensor.
    pub fn scale(&self, spec: &TensorSpec) -> Result<Option<f32>> {
        if spec.kind != (Kind::Linear { ternary: true }) {
            return Ok(None);
        }
        // A lock is poisoned by a panic elsewhere; the map is whole all the same.
        let known = self.scales.lock().unwrap_or_else(PoisonError::into_inner).get(&spec.name).copied();
        if let Some(scale) = known {
            return Ok(scale);
        }
        let matrix = self.matrix(spec)?;
        let scale = match matrix.scale()? {
            Scale::One(scale) => Some(scale),
            Scale::Several { first, other, row } if self.only_ternary || matrix.dtype().is_ternary() => {
                return Err(matrix.not_ternary(first, other, row));
            }
            Scale::Several { .. } => None,
        };
        self.scales.lock().unwrap_or_else(PoisonError::into_inner).insert(spec.name.clone(), scale);
        Ok(scale)
    }

    fn outside(&self, spec: &TensorSpec) -> Error {
        Error::tensor(self.gguf.path(), &spec.name, "was asked for rows that it does not have")
    }
}

impl<G: Deref<Target = Gguf> + Sync> Source for FromGguf<G> {
    fn stored(&self, spec: &TensorSpec) -> Result<Stored> {
        if let Some(scale) = self.scale(spec)? {
            return Ok(Stored::Ternary { scale });
        }
        Ok(Stored::Floats(match self.matrix(spec)?.dtype() {
            TensorType::F16 => DType::F16,
            TensorType::Bf16 => DType::Bf16,
            _ => DType::F32,
        }))
    }

    fn floats(&self, spec: &TensorSpec, first: usize, out: &mut [f32]) -> Result<()> {
        let matrix = self.matrix(spec)?;
        // A vector whose elements were reordered is read in rows of one: `first` is 0.
        let step = if spec.shape.len() == 1 { matrix.width } else { width(spec) };
        for (i, values) in out.chunks_mut(step.max(1)).enumerate() {
            if first + i >= matrix.rows || values.len() != step {
                return Err(self.outside(spec));
            }
            matrix.floats(first + i, values);
        }
        Ok(())
    }

    fn codes(&self, spec: &TensorSpec, first: usize, out: &mut [u32]) -> Result<()> {
        let matrix = self.matrix(spec)?;
        let mut codes = vec![0; matrix.width];
        for (i, words) in out.chunks_mut(row_words(matrix.width).max(1)).enumerate() {
            if first + i >= matrix.rows {
                return Err(self.outside(spec));
            }
            matrix.codes(first + i, &mut codes)?;
            pack(&codes, words);
        }
        Ok(())
    }

    fn in_place(&self, spec: &TensorSpec, rows: Range<usize>) -> Option<&[u8]> {
        let matrix = self.matrix(spec).ok()?;
        let plain = matches!(matrix.dtype(), TensorType::F32 | TensorType::F16 | TensorType::Bf16);
        if plain { matrix.in_place(rows) } else { None }
    }

    fn release(&self, spec: &TensorSpec, rows: Range<usize>) {
        let order = RowOrder::of(spec, self.interleaved, self.head_dim);
        if let Ok(matrix) = Matrix::of(&self.gguf, spec, RowOrder::Same)
            && (order == RowOrder::Same || rows == (0..matrix.rows))
        {
            self.gguf.release(matrix.info(), rows);
        }
    }
}

/// Codes of a row in words of 16, the first in the lowest bits, filled up with the code 1.
pub(crate) fn pack(codes: &[u8], words: &mut [u32]) {
    for (word, codes) in words.iter_mut().zip(codes.chunks(16)) {
        let mut filled = [1; 16];
        filled[..codes.len()].copy_from_slice(codes);
        *word = filled.iter().rev().fold(0, |word, code| word << 2 | u32::from(*code));
    }
}

/// The inverse of [`pack`].
pub(crate) fn unpack(words: &[u32], codes: &mut [u8]) {
    for (word, codes) in words.iter().zip(codes.chunks_mut(16)) {
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (word >> (2 * i) & 3) as u8;
        }
    }
}
