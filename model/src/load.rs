//! Putting weights onto a device: tensor by tensor and, in each, by chunks of rows over all threads,
//! from where the source has them straight into the device's memory. Nothing large is held twice: a
//! chunk is about a megabyte, and pages of a mapped file are given back once they were read.

use crate::error::{Error, Result};
use crate::online::{Codes, finite};
use crate::packed::row_words;
use crate::quantized::Groups;
use crate::save::quantised;
use crate::source::{Source, Stored, rows, width};
use crate::tensor_names::TensorSpec;
use crate::weights::{Dense, Linear, Matrix, Model, Ternary};
use half::f16;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use tritter_runtime::layout::{pack_ternary, ternary_words};
use tritter_runtime::{DType, Device, Tensor};

/// Elements of a chunk, about.
const CHUNK: usize = 1 << 18;
/// Bytes of a chunk that is copied as it lies.
const COPY: usize = 1 << 22;

/// Told of bytes that are done and of all there are, from any thread; a break ends the loading.
pub type Progress<'a> = dyn Fn(u64, u64) -> ControlFlow<()> + Sync + 'a;

/// A tensor of a checkpoint and where it goes.
struct Place<'a> {
    spec: TensorSpec,
    tensor: &'a Tensor,
    /// Its first row there: matrices of one input lie one below the other.
    first: usize,
    scales: Scales<'a>,
}

/// Where scales go.
#[derive(Clone, Copy)]
enum Scales<'a> {
    /// The tensor is float.
    None,
    /// One scale, f32, an element of this tensor.
    Matrix(&'a Tensor, usize),
    /// One scale a group of so many elements of a row, f16.
    Groups(&'a Tensor, usize),
}

impl Model {
    /// Allocates all weights on a device and fills them. Masters of a model in running form are
    /// ternarised on the way ([`crate::online`]).
    pub fn load(&self, device: &Device, source: &dyn Source) -> Result<()> {
        self.load_with(device, source, &|_, _| ControlFlow::Continue(()))
    }

    /// As [`Model::load`], with progress. After an error the device holds only a part of the weights,
    /// which goes when the model is dropped.
    pub fn load_with(&self, device: &Device, source: &dyn Source, progress: &Progress<'_>) -> Result<()> {
        self.load_some(device, source, progress, &|_| true)
    }

    /// As [`Model::load_with`], of the tensors that are wanted alone.
    pub(crate) fn load_some(
        &self,
        device: &Device,
        source: &dyn Source,
        progress: &Progress<'_>,
        wanted: &(dyn Fn(&Tensor) -> bool + Sync),
    ) -> Result<()> {
        let tensors: Vec<Tensor> = self.tensors().into_iter().filter(|tensor| wanted(tensor)).collect();
        let total = tensors.iter().map(|tensor| tensor.spec().bytes()).sum();
        device.check_budget("the weights", total, "choose a smaller model or another device")?;
        let places = self.places(&tensors);
        // Before anything is written, since several matrices may share a tensor. Memory is zeroed, so the
        // threads share this too.
        tensors.par_iter().try_for_each(|tensor| device.allocate(tensor))?;
        let loader = Loader { device, source, progress, done: AtomicU64::new(0), total };
        places.par_iter().try_for_each(|place| loader.load(place))?;
        for (tensor, values) in
            [(&self.rope.coarse, &self.rope.values.coarse), (&self.rope.fine, &self.rope.values.fine)]
        {
            if wanted(tensor) {
                device.write(tensor, values)?;
            }
        }
        Ok(device.backend().wait()?)
    }

    fn places<'a>(&'a self, tensors: &'a [Tensor]) -> Vec<Place<'a>> {
        let tensors: HashMap<&str, &Tensor> = tensors.iter().map(|t| (t.name(), t)).collect();
        let ternary: HashMap<&str, &Ternary> = self.ternary_matrices().map(|part| (part.name.as_str(), part)).collect();
        let groups: HashMap<&str, (&Tensor, usize)> = self.dense_matrices().filter_map(in_groups).collect();
        let place = |spec: TensorSpec| {
            let name = spec.name.as_str();
            if let Some(part) = ternary.get(name) {
                let scales = Scales::Matrix(&part.scales, part.index);
                let tensor = *tensors.get(part.codes.name())?;
                return Some(Place { tensor, first: part.first, scales, spec });
            }
            let scales = groups.get(name).map_or(Scales::None, |&(scales, group)| Scales::Groups(scales, group));
            Some(Place { tensor: *tensors.get(name)?, first: 0, scales, spec })
        };
        self.config.tensors().into_iter().filter_map(place).collect()
    }

    /// Ternary matrices in running form.
    pub fn ternary_matrices(&self) -> impl Iterator<Item = &Ternary> {
        let linears = self.layers.iter().flat_map(|layer| layer.linears());
        linears.filter_map(|Linear { matrix, .. }| match matrix {
            Matrix::Ternary(part) => Some(part),
            _ => None,
        })
    }

    /// Embedding, head and dense projections.
    fn dense_matrices(&self) -> impl Iterator<Item = &Dense> {
        let linears = self.layers.iter().flat_map(|layer| layer.linears());
        let dense = linears.filter_map(|Linear { matrix, .. }| match matrix {
            Matrix::Dense(dense) => Some(dense),
            _ => None,
        });
        std::iter::once(&self.embedding).chain(&self.head).chain(dense)
    }
}

/// Name, scales and group of a matrix of integers.
fn in_groups(dense: &Dense) -> Option<(&str, (&Tensor, usize))> {
    Some((dense.values.name(), (dense.scales.as_ref()?, dense.group)))
}

struct Loader<'a> {
    device: &'a Device,
    source: &'a dyn Source,
    progress: &'a Progress<'a>,
    done: AtomicU64,
    total: u64,
}

impl Loader<'_> {
    fn load(&self, place: &Place<'_>) -> Result<()> {
        match place.scales {
            Scales::Matrix(scales, index) => self.ternary(place, scales, index),
            Scales::Groups(scales, group) => self.groups(place, scales, group),
            Scales::None if self.lies_alike(place)? => self.copy(place),
            Scales::None => self.convert(place),
        }
    }

    /// Whether rows lie in the file as on the device: of the same type and without padding.
    fn lies_alike(&self, place: &Place<'_>) -> Result<bool> {
        let (dtype, row) = (place.tensor.spec().dtype, place.tensor.spec().row_bytes());
        let size = if dtype == DType::F32 { 4 } else { 2 };
        let same =
            self.source.stored(&place.spec)? == Stored::Floats(dtype) && row == (width(&place.spec) * size) as u64;
        Ok(same && self.source.in_place(&place.spec, 0..1).is_some())
    }

    /// Calls `f` for chunks of rows over all threads, then gives the memory of all that was read back.
    fn chunks(&self, place: &Place<'_>, most: usize, f: impl Fn(Range<usize>) -> Result<()> + Sync) -> Result<()> {
        let n = rows(&place.spec);
        // Rows that are interleaved are written together.
        let most = most.max(1).next_multiple_of(place.tensor.spec().dtype.row_group());
        (0..n.div_ceil(most)).into_par_iter().try_for_each(|i| {
            let part = i * most..((i + 1) * most).min(n);
            f(part.clone())?;
            self.source.release(&place.spec, part);
            Ok::<(), Error>(())
        })?;
        // Bytes that hold codes of several rows are not given back by parts.
        self.source.release(&place.spec, 0..n);
        Ok(())
    }

    fn write(&self, tensor: &Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        self.device.write_at(tensor, first as u64 * tensor.spec().row_bytes(), bytes)?;
        let done = self.done.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        match (self.progress)(done, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }

    fn copy(&self, place: &Place<'_>) -> Result<()> {
        let (spec, tensor) = (&place.spec, place.tensor);
        self.chunks(place, COPY / tensor.spec().row_bytes() as usize, |part| {
            let gone = || Error::tensor(Path::new("weights"), &spec.name, "cannot be read in place");
            let bytes = self.source.in_place(spec, part.clone()).ok_or_else(gone)?;
            finite_bytes(spec, part.start * width(spec), tensor.spec().dtype, bytes)?;
            self.write(tensor, part.start, bytes)
        })
    }

    fn values(&self, spec: &TensorSpec, part: &Range<usize>) -> Result<Vec<f32>> {
        let k = width(spec);
        let mut values = vec![0.0; part.len() * k];
        self.source.floats(spec, part.start, &mut values)?;
        finite(spec, part.start * k, &values)?;
        Ok(values)
    }

    fn convert(&self, place: &Place<'_>) -> Result<()> {
        let (spec, tensor) = (&place.spec, place.tensor);
        self.chunks(place, CHUNK / width(spec), |part| {
            let values = self.values(spec, &part)?;
            match tensor.spec().dtype {
                DType::F32 => self.write(tensor, part.start, bytemuck::cast_slice(&values)),
                dtype => self.write(tensor, part.start, &halves(dtype, &values, width(spec))),
            }
        })
    }

    fn groups(&self, place: &Place<'_>, scales: &Tensor, group: usize) -> Result<()> {
        let (spec, tensor, k) = (&place.spec, place.tensor, width(&place.spec));
        let groups = Groups { dtype: tensor.spec().dtype, group };
        let alike = self.source.stored(spec)? == Stored::Groups(groups);
        self.chunks(place, CHUNK / k, |part| {
            if alike {
                let found = self.source.groups(spec, part.clone())?;
                self.write(scales, part.start, &padded(&found.scales, groups.scales(k)))?;
                return self.write(tensor, part.start, &found.codes);
            }
            let (words, found) = quantised(self.source, spec, groups, part.start, part.len())?;
            self.write(scales, part.start, &padded(&found, groups.scales(k)))?;
            self.write(tensor, part.start, bytemuck::cast_slice(&words))
        })
    }

    fn ternary(&self, place: &Place<'_>, scales: &Tensor, index: usize) -> Result<()> {
        let (spec, tensor, k) = (&place.spec, place.tensor, width(&place.spec));
        let matrix = Codes::new(self.source, spec)?;
        self.device.write_at(scales, 4 * index as u64, bytemuck::bytes_of(&matrix.scale))?;
        let dtype = tensor.spec().dtype;
        self.chunks(place, CHUNK / k, |part| {
            let mut codes = vec![0u32; part.len() * row_words(k)];
            matrix.read(part.start, &mut codes)?;
            let first = place.first + part.start;
            if dtype == DType::T2 {
                return self.write(tensor, first, bytemuck::cast_slice(&codes));
            }
            let mut packed = vec![0u32; ternary_words(dtype, part.len(), k)];
            pack_ternary(dtype, &codes, k, &mut packed);
            self.write(tensor, first, bytemuck::cast_slice(&packed))
        })
    }
}

/// Rows of f16, padded to words.
fn padded(values: &[f16], columns: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * 2);
    for row in values.chunks(columns.max(1)) {
        bytes.extend(row.iter().flat_map(|v| v.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Rows of 16-bit floats, padded to words.
fn halves(dtype: DType, values: &[f32], k: usize) -> Vec<u8> {
    let round = |v: f32| match dtype {
        DType::F16 => half::f16::from_f32(v).to_bits(),
        _ => half::bf16::from_f32(v).to_bits(),
    };
    let mut bytes = Vec::with_capacity(values.len() / k.max(1) * dtype.row_bytes(k));
    for row in values.chunks(k.max(1)) {
        bytes.extend(row.iter().flat_map(|&v| round(v).to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// As [`finite`] for stored floats.
fn finite_bytes(spec: &TensorSpec, first: usize, dtype: DType, bytes: &[u8]) -> Result<()> {
    let bad16 = |exponent: u16| {
        let halves = bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        halves.fold(false, |seen, h| seen | (h & exponent == exponent))
    };
    let bad = match dtype {
        DType::F16 => bad16(0x7C00),
        DType::Bf16 => bad16(0x7F80),
        _ => {
            let words = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
            words.fold(false, |seen, w| seen | (w & 0x7F80_0000 == 0x7F80_0000))
        }
    };
    if !bad {
        return Ok(());
    }
    let values: Vec<f32> = match dtype {
        DType::F16 => bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        DType::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    };
    finite(spec, first, &values)
}

#[cfg(test)]
#[path = "load_test.rs"]
mod tests;
