//! An open file as a source of weights.
//!
//! Embedding and head stay what they are where they are floats of 16 or 32 bits or, all of them, `Q8_0`: that is int8
//! in groups of 32 with an f16 scale each, as this program computes with. Everything else is widened to f32.

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
use crate::quantized::{Groups, check_scales};
use crate::source::{GroupRows, Source, Stored, width};
use crate::tensor_names::{Kind, TensorSpec};
use half::f16;
use tritter_runtime::DType;

/// Weights of a GGUF file, borrowed (`&Gguf`) or owned (`Arc<Gguf>`).
pub struct FromGguf<G> {
    gguf: G,
    interleaved: bool,
    head_dim: usize,
    /// Whether floats in place of a ternary matrix are damage rather than masters.
    only_ternary: bool,
    /// Whether embedding and head are read as groups of int8.
    grouped_tables: bool,
    /// Scales found so far: finding one may read a whole tensor.
    scales: Mutex<HashMap<String, Option<f32>>>,
}

impl<G: Deref<Target = Gguf>> FromGguf<G> {
    /// The weights of `gguf`, whose config (of [`super::config::read_config`]) is `config`.
    pub fn new(gguf: G, config: &Config) -> Result<Self> {
        let interleaved = Architecture::of(gguf.metadata())?.interleaved();
        let only_ternary = matches!(config.quantization, Quantization::Offline { .. });
        let head_dim = config.head_dim;
        let mut source =
            FromGguf { gguf, interleaved, head_dim, only_ternary, grouped_tables: false, scales: Mutex::default() };
        // A head of other groups or none would have to be quantised anew, which loses something.
        let tables: Vec<TensorSpec> = config.tensors().into_iter().filter(is_table).collect();
        let grouped = tables.iter().map(|spec| {
            let matrix = source.matrix(spec)?;
            Ok(matrix.dtype() == TensorType::Q8_0 && matrix.in_place(0..0).is_some())
        });
        source.grouped_tables = grouped.collect::<Result<Vec<bool>>>()?.into_iter().all(|grouped| grouped);
        Ok(source)
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
        if self.grouped_tables && is_table(spec) {
            return Ok(Stored::Groups(Q8_0));
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

    fn groups(&self, spec: &TensorSpec, rows: Range<usize>) -> Result<GroupRows<'_>> {
        let matrix = self.matrix(spec)?;
        let blocks = matrix.in_place(rows).filter(|_| self.grouped_tables && is_table(spec));
        let blocks = blocks.ok_or_else(|| self.outside(spec))?.as_chunks::<34>().0;
        let scales: Vec<f16> = blocks.iter().map(|block| f16::from_le_bytes([block[0], block[1]])).collect();
        check_scales(self.gguf.path(), &spec.name, &scales)?;
        let codes: Vec<u8> = blocks.iter().flat_map(|block| &block[2..]).copied().collect();
        Ok(GroupRows { codes: codes.into(), scales })
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

/// What a block of `Q8_0` is: 32 codes after their scale. Rows are whole blocks, so their stored words have no padding.
const Q8_0: Groups = Groups { dtype: DType::I8, group: 32 };

/// Embedding and head.
fn is_table(spec: &TensorSpec) -> bool {
    spec.kind == Kind::Embedding || spec.name == "lm_head.weight"
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Family;
    use crate::gguf::config::read_config;
    use crate::gguf::export::{Types, export};
    use crate::presets::preset;
    use crate::seeded::Synthetic;
    use crate::weights::{DenseFormat, Form, Formats, Model};
    use tritter_runtime::cpu;

    /// A llama with a head of its own, in a file whose tables are of that type.
    fn file(tables: TensorType) -> Gguf {
        let mut config = preset("test").unwrap().config(Family::Llama, Some(48), Some(64));
        (config.num_layers, config.quantization, config.tie_embeddings) = (1, Quantization::None, false);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let types = Types::new(TensorType::F32, tables);
        export(&path, &config, &Synthetic::new(&config, 4, DType::F32), types, Vec::new()).unwrap();
        Gguf::from_bytes(std::fs::read(&path).unwrap()).unwrap()
    }

    #[test]
    fn tables_of_q8_0_stay_codes_and_scales() {
        let gguf = file(TensorType::Q8_0);
        let config = read_config(&gguf).unwrap();
        let source = FromGguf::new(&gguf, &config).unwrap();
        for spec in config.tensors().into_iter().filter(is_table) {
            assert_eq!(source.stored(&spec).unwrap(), Stored::Groups(Q8_0));
            let k = width(&spec);
            let found = source.groups(&spec, 3..7).unwrap();
            let (mut expected, mut row) = (vec![0.0; 4 * k], vec![0.0; k]);
            source.floats(&spec, 3, &mut expected).unwrap();
            for (i, expected) in expected.chunks(k).enumerate() {
                Q8_0.dequantise(&found.codes[i * k..], &found.scales[i * k / 32..], &mut row);
                assert_eq!(row, expected, "{} {i}", spec.name);
            }
            assert!(source.groups(&spec, 47..49).is_err());
        }
        let projection = config.tensors().into_iter().find(|spec| spec.name.ends_with("q_proj.weight")).unwrap();
        assert!(source.groups(&projection, 0..1).is_err());
        // The model's memory holds them as they are.
        let formats = Formats { table: DenseFormat::groups(DType::I8, 32), ..Formats::PLAIN };
        let model = Model::with_formats(&config, Form::Run, formats, 16);
        model.load(&cpu::open(), &source).unwrap();
        let whole = Model::new(&config, Form::Run, 16).bytes();
        let elements = (2 * 48 * config.hidden_size) as u64;
        assert_eq!(whole - model.bytes(), elements * 4 - elements - elements / 16);
    }

    #[test]
    fn other_tables_are_floats() {
        for (tables, floats) in [(TensorType::Q4_0, DType::F32), (TensorType::F16, DType::F16)] {
            let gguf = file(tables);
            let config = read_config(&gguf).unwrap();
            let source = FromGguf::new(&gguf, &config).unwrap();
            for spec in config.tensors().into_iter().filter(is_table) {
                assert_eq!(source.stored(&spec).unwrap(), Stored::Floats(floats));
                assert!(source.groups(&spec, 0..1).is_err());
            }
        }
    }
}
