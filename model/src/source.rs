//! Where weights come from, as the loader and the writers see it: a tensor by name, read by ranges of
//! rows, from several threads at once. A checkpoint is here; random weights are in [`crate::seeded`].
//!
//! A row is the last axis; norms and biases are one row. Codes are `t + 1` in the runtime's plain words
//! (`t2`, see [`tritter_runtime::dtype`]): 16 a word, lowest bits first, rows padded to words with code 1.

use crate::config::{LinearClass, Quantization};
use crate::error::{Error, Result};
use crate::packed::{dequantise_row, row_words, unpack_row};
use crate::quantized::{Groups, check_scales, scales_name};
use crate::tensor_names::{Kind, TensorSpec, scale_name};
use crate::tensors::{Checkpoint, Dtype};
use half::f16;
use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::path::Path;
use tritter_runtime::DType;
use tritter_runtime::layout::has_code_three;

/// How a source holds a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    /// Floats: f32, f16 or bf16. Any other width counts as f32, which it is rounded to.
    Floats(DType),
    /// Ternary codes and the factor that multiplies them, a positive number.
    Ternary {
        /// Factor of all codes.
        scale: f32,
    },
    /// Groups of integers with a scale each.
    Groups(Groups),
}

/// Rows in groups of integers.
#[derive(Clone, Debug)]
pub struct GroupRows<'a> {
    /// Stored words of the rows, see [`tritter_runtime::dtype`].
    pub codes: Cow<'a, [u8]>,
    /// Scales, finite, row by row.
    pub scales: Vec<f16>,
}

/// A source of weights by Hugging Face name.
pub trait Source: Sync {
    /// How a tensor is held. Checks that it is there with the shape of `spec`, and its scale.
    fn stored(&self, spec: &TensorSpec) -> Result<Stored>;

    /// Values of whole rows from row `first`, as many as `out` takes; of codes, code × scale.
    fn floats(&self, spec: &TensorSpec, first: usize, out: &mut [f32]) -> Result<()>;

    /// Codes of whole rows from row `first`, as many as `out` takes, of a [`Stored::Ternary`]. Code 3 is
    /// refused.
    fn codes(&self, spec: &TensorSpec, first: usize, out: &mut [u32]) -> Result<()>;

    /// Rows of a [`Stored::Groups`].
    fn groups(&self, spec: &TensorSpec, _rows: Range<usize>) -> Result<GroupRows<'_>> {
        Err(Error::tensor(Path::new("weights"), &spec.name, "is not stored in groups of integers"))
    }

    /// The little-endian bytes of rows of [`Stored::Floats`] in the dtype stated there, without gaps;
    /// `None` where they do not lie so.
    fn in_place(&self, _spec: &TensorSpec, _rows: Range<usize>) -> Option<&[u8]> {
        None
    }

    /// Says that these rows will not be read soon, so that the memory which maps them can go.
    fn release(&self, _spec: &TensorSpec, _rows: Range<usize>) {}
}

/// Rows of a tensor: the product of all extents but the last.
pub fn rows(spec: &TensorSpec) -> usize {
    spec.shape.iter().rev().skip(1).product()
}

/// Elements of one of its rows.
pub fn width(spec: &TensorSpec) -> usize {
    spec.shape.last().copied().unwrap_or(1)
}

/// Weights of a checkpoint, borrowed (`&Checkpoint`) or owned (`Arc<Checkpoint>`).
pub struct FromCheckpoint<C> {
    /// The open files.
    pub checkpoint: C,
    /// How ternary matrices are stored there.
    pub quantization: Quantization,
}

impl<C: Deref<Target = Checkpoint>> FromCheckpoint<C> {
    /// The convention of its scale, if a tensor is packed.
    fn packed(&self, spec: &TensorSpec) -> Option<LinearClass> {
        match (self.quantization, spec.kind) {
            (Quantization::Offline { linear_class }, Kind::Linear { ternary: true }) => Some(linear_class),
            // A reader that makes a dense model of packed projections knows them as dense ones.
            (Quantization::Offline { linear_class }, Kind::Linear { ternary: false }) => {
                let bytes = self.checkpoint.get(&spec.name).is_ok_and(|view| view.dtype == Dtype::U8);
                bytes.then_some(linear_class)
            }
            _ => None,
        }
    }

    fn scale(&self, spec: &TensorSpec, class: LinearClass) -> Result<f32> {
        let name = scale_name(&spec.name);
        let stored = self.checkpoint.f32(&name, &[1])?.first().copied().unwrap_or_default();
        let scale = match class {
            LinearClass::AutoBitLinear => stored,
            LinearClass::BitLinear => 1.0 / stored,
        };
        if scale.is_normal() && scale > 0.0 {
            return Ok(scale);
        }
        let problem = format!("is {stored}, a scale must be a positive number; the file is damaged");
        Err(Error::tensor(self.checkpoint.path(), &name, problem))
    }

    fn bytes(&self, spec: &TensorSpec) -> Result<&[u8]> {
        self.checkpoint.u8(&spec.name, &[rows(spec) / 4, width(spec)])
    }

    fn outside(&self, spec: &TensorSpec) -> Error {
        Error::tensor(self.checkpoint.path(), &spec.name, "was asked for rows that it does not have")
    }
}

impl<C: Deref<Target = Checkpoint> + Sync> Source for FromCheckpoint<C> {
    fn stored(&self, spec: &TensorSpec) -> Result<Stored> {
        if let Some(class) = self.packed(spec) {
            self.bytes(spec)?;
            return Ok(Stored::Ternary { scale: self.scale(spec, class)? });
        }
        if let Some(groups) = self.checkpoint.quantized().of(spec) {
            self.checkpoint.groups(spec, groups)?;
            return Ok(Stored::Groups(groups));
        }
        Ok(Stored::Floats(match self.checkpoint.floats(&spec.name, &spec.shape)?.dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            _ => DType::F32,
        }))
    }

    fn floats(&self, spec: &TensorSpec, first: usize, out: &mut [f32]) -> Result<()> {
        let k = width(spec);
        let stored = self.stored(spec)?;
        if let Stored::Groups(groups) = stored {
            let found = self.groups(spec, first..first.saturating_add(out.len() / k))?;
            let codes = found.codes.chunks(groups.dtype.row_bytes(k)).zip(found.scales.chunks(groups.scales(k)));
            codes.zip(out.chunks_mut(k)).for_each(|((codes, scales), out)| groups.dequantise(codes, scales, out));
            return Ok(());
        }
        if let Stored::Ternary { scale } = stored {
            let mut words = vec![0; row_words(k)];
            for (i, row) in out.chunks_mut(k).enumerate() {
                self.codes(spec, first + i, &mut words)?;
                dequantise_row(&words, scale, row);
            }
            return Ok(());
        }
        let view = self.checkpoint.floats(&spec.name, &spec.shape)?;
        view.read_f32(first.saturating_mul(k), out).ok_or_else(|| self.outside(spec))
    }

    fn codes(&self, spec: &TensorSpec, first: usize, out: &mut [u32]) -> Result<()> {
        let (bytes, quarter, k) = (self.bytes(spec)?, rows(spec) / 4, width(spec));
        for (i, words) in out.chunks_mut(row_words(k)).enumerate() {
            let (row, place) = ((first + i) % quarter, (first + i) / quarter);
            let bytes = bytes.get(row * k..(row + 1) * k).filter(|_| place < 4);
            unpack_row(bytes.ok_or_else(|| self.outside(spec))?, place, words);
        }
        if has_code_three(out) {
            let problem = "holds the code 3, which no ternary weight has; the file is damaged";
            return Err(Error::tensor(self.checkpoint.path(), &spec.name, problem));
        }
        Ok(())
    }

    fn groups(&self, spec: &TensorSpec, part: Range<usize>) -> Result<GroupRows<'_>> {
        let Some(groups) = self.checkpoint.quantized().of(spec) else {
            return Err(Error::tensor(self.checkpoint.path(), &spec.name, "is not stored in groups of integers"));
        };
        let [codes, scales] = self.checkpoint.groups(spec, groups)?;
        let cut = |bytes: usize| {
            let row = bytes / rows(spec).max(1);
            part.start.saturating_mul(row)..part.end.saturating_mul(row)
        };
        let codes = codes.bytes.get(cut(codes.bytes.len())).ok_or_else(|| self.outside(spec))?;
        let bytes = scales.bytes.get(cut(scales.bytes.len())).ok_or_else(|| self.outside(spec))?;
        let scales: Vec<f16> = bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
        check_scales(self.checkpoint.path(), &scales_name(&spec.name), &scales)?;
        Ok(GroupRows { codes: codes.into(), scales })
    }

    fn in_place(&self, spec: &TensorSpec, rows: Range<usize>) -> Option<&[u8]> {
        let view = self.checkpoint.floats(&spec.name, &spec.shape).ok()?;
        let size = match view.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            _ => return None,
        };
        let row = width(spec) * size;
        view.bytes.get(rows.start.checked_mul(row)?..rows.end.checked_mul(row)?)
    }

    fn release(&self, spec: &TensorSpec, part: Range<usize>) {
        let Ok(view) = self.checkpoint.get(&spec.name) else { return };
        let row = view.bytes.len() / rows(spec).max(1);
        // The bytes of packed rows hold three other rows each, which may be read at the same time.
        let whole = part == (0..rows(spec));
        if whole {
            self.checkpoint.release(&spec.name, 0..view.bytes.len());
        } else if self.packed(spec).is_none() {
            self.checkpoint.release(&spec.name, part.start * row..part.end * row);
        }
    }
}
