//! A tensor of an open file as this program's rows: as floats, or as ternary codes with one scale.
//!
//! A matrix is ternary if it has a ternary type and all its blocks have the same scale, or a float type
//! and no other values than `-s`, 0 and `s`: then it was written so because its width does not fit a
//! block type. A block of nothing but zeros may have any scale that is not negative, since llama.cpp's
//! quantiser gives it 0. Scales that are negative, NaN or infinite, or 0 under codes that are not zero, are
//! damage. A tensor `….scale` of one element beside a projection (older converters) multiplies it.

use half::f16;

use super::names::{RowOrder, gguf_name};
use super::types::{I2S_TAIL, TensorType};
use super::{Gguf, TensorInfo, codes, floats};
use crate::error::{Error, Result};
use crate::tensor_names::TensorSpec;

/// A tensor as rows `[rows, width]` in this program's order; a vector has rows of one element.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    gguf: &'a Gguf,
    info: &'a TensorInfo,
    bytes: &'a [u8],
    order: RowOrder,
    factor: f32,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
}

/// Whether one scale serves a whole matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// It does, and the matrix is ternary.
    One(f32),
    /// It does not: blocks have several, or float values more than one magnitude.
    Several {
        /// The first.
        first: f32,
        /// Another.
        other: f32,
        /// The row in the file where it stands.
        row: usize,
    },
}

impl<'a> Matrix<'a> {
    /// The tensor that a file has for `spec`; an error where it is missing or of another shape.
    pub fn of(gguf: &'a Gguf, spec: &TensorSpec, order: RowOrder) -> Result<Self> {
        let fail = |name: &str, problem: String| Err(Error::tensor(gguf.path(), name, problem));
        let Some(name) = gguf_name(&spec.name) else {
            return fail(&spec.name, "is no tensor that a GGUF file has".to_owned());
        };
        let info = gguf.tensor(&name)?;
        // Converters keep or drop extents of 1.
        let plain = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        if plain(&info.shape) != plain(&spec.shape) {
            let problem =
                format!("has shape {:?}, expected {:?}; it and the metadata disagree", info.shape, spec.shape);
            return fail(&name, problem);
        }
        let (rows, width) = match spec.shape[..] {
            [n] if order == RowOrder::Same => (1, n),
            [n] => (n, 1),
            [rows, width] => (rows, width),
            _ => return fail(&name, format!("has shape {:?}, which no tensor of a model has", info.shape)),
        };
        let bytes = gguf.bytes(info)?;
        let mut matrix = Matrix { gguf, info, bytes, order, factor: 1.0, rows, width };
        if matrix.row_bytes().checked_mul(rows).is_none_or(|n| n > bytes.len()) {
            return fail(&name, format!("of type {} cannot be read in rows of {width}", info.dtype.name()));
        }
        matrix.factor = matrix.read_factor(&name)?;
        Ok(matrix)
    }

    /// What multiplies every value: `….scale` and the scale of an `I2_S` tensor.
    fn read_factor(&self, name: &str) -> Result<f32> {
        let mut factor = 1.0;
        if let Some(part) = name.strip_suffix(".weight") {
            let name = format!("{part}.scale");
            if self.gguf.contains(&name) {
                let info = self.gguf.tensor(&name)?;
                let bytes = self.gguf.bytes(info)?;
                let (Some(bytes), TensorType::F32, 4) = (bytes.first_chunk(), info.dtype, bytes.len()) else {
                    return Err(Error::tensor(self.gguf.path(), &name, "should be one f32"));
                };
                factor *= self.positive(&name, f32::from_le_bytes(*bytes))?;
            }
        }
        if self.info.dtype == TensorType::I2S {
            let tail = self.bytes.len().checked_sub(I2S_TAIL).and_then(|at| self.bytes.get(at..));
            let scale = tail.and_then(|tail| tail.first_chunk()).map_or(f32::NAN, |b| f32::from_le_bytes(*b));
            factor *= self.positive(name, scale)?;
        }
        Ok(factor)
    }

    fn positive(&self, name: &str, scale: f32) -> Result<f32> {
        if scale.is_finite() && scale > 0.0 {
            return Ok(scale);
        }
        let problem = format!("has the scale {scale}, a scale must be a positive number; the file is damaged");
        Err(Error::tensor(self.gguf.path(), name, problem))
    }

    /// The tensor as the file describes it.
    pub(crate) fn info(&self) -> &'a TensorInfo {
        self.info
    }

    /// Stored bytes of these rows, where they lie in this program's order and nothing multiplies them.
    pub(crate) fn in_place(&self, rows: std::ops::Range<usize>) -> Option<&'a [u8]> {
        let size = self.row_bytes();
        let plain = self.order == RowOrder::Same && self.factor == 1.0;
        self.bytes.get(rows.start.checked_mul(size)?..rows.end.checked_mul(size)?).filter(|_| plain)
    }

    /// The tensor's type in the file.
    pub fn dtype(&self) -> TensorType {
        self.info.dtype
    }

    fn row_bytes(&self) -> usize {
        // Of whole blocks, or the header would not have been taken; a vector cut into elements is f32.
        self.info.dtype.row_bytes(self.width).unwrap_or(usize::MAX)
    }

    fn stored(&self, row_in_file: usize) -> &'a [u8] {
        let size = self.row_bytes();
        self.bytes.get(row_in_file * size..).and_then(|rest| rest.get(..size)).unwrap_or_default()
    }

    fn fault(&self, problem: String) -> Error {
        Error::tensor(self.gguf.path(), &self.info.name, problem)
    }

    /// Values of row `row`; `values` has the row's width.
    pub fn floats(&self, row: usize, values: &mut [f32]) {
        floats::decode_row(self.info.dtype, self.stored(self.order.in_file(row)), values);
        if self.factor != 1.0 {
            values.iter_mut().for_each(|v| *v *= self.factor);
        }
    }

    /// All values.
    pub fn all_floats(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.width];
        for (row, values) in values.chunks_exact_mut(self.width.max(1)).enumerate() {
            self.floats(row, values);
        }
        values
    }

    /// Whether the matrix is ternary, and its scale. Reads the whole tensor unless it is `I2_S`.
    pub fn scale(&self) -> Result<Scale> {
        match self.info.dtype {
            TensorType::I2S => Ok(Scale::One(self.factor)),
            dtype if dtype.is_ternary() => self.block_scale(dtype),
            _ => Ok(self.float_scale()),
        }
    }

    fn block_scale(&self, dtype: TensorType) -> Result<Scale> {
        let (elements, size) = dtype.block();
        let mut first: Option<f16> = None;
        for row in 0..self.rows {
            for block in self.stored(row).chunks_exact(size) {
                let scale = codes::scale_at(dtype, block);
                if Some(scale) == first {
                    continue;
                }
                if !scale.is_finite() || scale < f16::ZERO {
                    let problem = format!("has the scale {scale} in row {row}; the file is damaged");
                    return Err(self.fault(problem));
                }
                let codes = &mut [0; 256][..elements];
                codes::decode_row(dtype, block, codes);
                if codes.iter().all(|&code| code == 1) {
                    continue;
                }
                match first {
                    _ if scale == f16::ZERO => {
                        let problem = format!("has the scale 0 over codes that are not zero in row {row}");
                        return Err(self.fault(format!("{problem}; the file is damaged")));
                    }
                    None => first = Some(scale),
                    Some(first) => {
                        let (first, other) = (first.to_f32() * self.factor, scale.to_f32() * self.factor);
                        return Ok(Scale::Several { first, other, row });
                    }
                }
            }
        }
        Ok(Scale::One(first.map_or(1.0, f16::to_f32) * self.factor))
    }

    fn float_scale(&self) -> Scale {
        let mut first = 0.0;
        let mut values = vec![0.0; self.width];
        for row in 0..self.rows {
            floats::decode_row(self.info.dtype, self.stored(row), &mut values);
            for other in values.iter().map(|v| v.abs()).filter(|&v| v != 0.0) {
                if first == 0.0 && other.is_finite() {
                    first = other;
                } else if other != first {
                    return Scale::Several { first, other, row };
                }
            }
        }
        Scale::One(if first == 0.0 { 1.0 } else { first } * self.factor)
    }

    /// Codes `t + 1` of row `row` of a matrix whose [`Matrix::scale`] is one; `codes` has the row's width.
    pub fn codes(&self, row: usize, codes: &mut [u8]) -> Result<()> {
        let stored = self.stored(self.order.in_file(row));
        if self.info.dtype.is_ternary() {
            if codes::decode_row(self.info.dtype, stored, codes) {
                return Ok(());
            }
            let what = match self.info.dtype {
                TensorType::Tq1_0 => "holds a byte that stands for no five trits",
                _ => "holds the code 3, which no ternary weight has",
            };
            return Err(self.fault(format!("{what}, in row {row}; the file is damaged or of another bit order")));
        }
        let mut values = vec![0.0; self.width];
        floats::decode_row(self.info.dtype, stored, &mut values);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = if value == 0.0 { 1 } else { 2 * u8::from(value > 0.0) };
        }
        Ok(())
    }

    /// The error about a matrix that should have one scale and does not.
    pub(crate) fn not_ternary(&self, first: f32, other: f32, row: usize) -> Error {
        self.fault(format!(
            "is no ternary matrix with one scale: {first} and {other} both occur (row {row}); in a model of this \
             architecture every projection has one"
        ))
    }
}

#[cfg(test)]
#[path = "matrix_test.rs"]
mod tests;
