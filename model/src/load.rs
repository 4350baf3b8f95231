//! Putting weights onto a device: tensor by tensor and, in each, by chunks of rows over all threads,
//! from where the source has them straight into the device's memory. Nothing large is held twice: a
//! chunk is about a megabyte, and pages of a mapped file are given back once they were read.

use crate::error::{Error, Result};
use crate::online::{Codes, finite};
use crate::packed::row_words;
use crate::source::{Source, Stored, rows, width};
use crate::tensor_names::TensorSpec;
use crate::weights::{Linear, Matrix, Model, Ternary};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use tritter_runtime::dtype::INTERLEAVED;
use tritter_runtime::layout::{pack_ternary, ternary_words};
use tritter_runtime::{DType, Device, Tensor};

/// Elements of a chunk, about.
const CHUNK: usize = 1 << 18;
/// Bytes of a chunk that is copied as it lies.
const COPY: usize = 1 << 22;

/// Told of bytes that are done and of all there are, from any thread; a break ends the loading.
pub type Progress<'a> = dyn Fn(u64, u64) -> ControlFlow<()> + Sync + 'a;

/// One tensor of a checkpoint and where it goes.
enum Target<'a> {
    Floats(TensorSpec, &'a Tensor),
    Ternary { spec: TensorSpec, part: &'a Ternary },
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
        device.check_budget("the weights", self.bytes(), "choose a smaller model or another device")?;
        let tensors = self.tensors();
        let tensors: HashMap<&str, &Tensor> = tensors.iter().map(|t| (t.name(), t)).collect();
        let parts: HashMap<&str, &Ternary> = self.ternary_matrices().map(|part| (part.name.as_str(), part)).collect();
        for part in parts.values() {
            device.allocate(&part.codes)?;
            device.allocate(&part.scales)?;
        }
        let target = |spec: TensorSpec| match (parts.get(spec.name.as_str()), tensors.get(spec.name.as_str())) {
            (Some(part), _) => Some(Target::Ternary { spec, part }),
            (None, Some(tensor)) => Some(Target::Floats(spec, tensor)),
            (None, None) => None,
        };
        let targets: Vec<Target<'_>> = self.config.tensors().into_iter().filter_map(target).collect();
        let loader = Loader { device, source, progress, done: AtomicU64::new(0), total: self.bytes() };
        targets.par_iter().try_for_each(|target| loader.load(target))?;
        for (tensor, values) in
            [(&self.rope.coarse, &self.rope.values.coarse), (&self.rope.fine, &self.rope.values.fine)]
        {
            device.allocate(tensor)?;
            device.write(tensor, values)?;
        }
        Ok(device.backend().wait()?)
    }

    /// Ternary matrices in running form.
    pub fn ternary_matrices(&self) -> impl Iterator<Item = &Ternary> {
        let linears = self.layers.iter().flat_map(|layer| layer.linears());
        linears.filter_map(|Linear { matrix, .. }| match matrix {
            Matrix::Ternary(part) => Some(part),
            _ => None,
        })
    }
}

struct Loader<'a> {
    device: &'a Device,
    source: &'a dyn Source,
    progress: &'a Progress<'a>,
    done: AtomicU64,
    total: u64,
}

impl Loader<'_> {
    fn load(&self, target: &Target<'_>) -> Result<()> {
        match target {
            Target::Floats(spec, tensor) => {
                self.device.allocate(tensor)?;
                let stored = self.source.stored(spec)?;
                // Rows without padding lie in the file as on the device.
                let plain = tensor.spec().row_bytes() == (width(spec) * size(tensor.spec().dtype)) as u64;
                if stored == Stored::Floats(tensor.spec().dtype) && plain && self.source.in_place(spec, 0..1).is_some()
                {
                    self.copy(spec, tensor)
                } else {
                    self.convert(spec, tensor)
                }
            }
            Target::Ternary { spec, part } => {
                let matrix = Codes::new(self.source, spec)?;
                self.device.write_at(&part.scales, 4 * part.index as u64, bytemuck::bytes_of(&matrix.scale))?;
                self.ternary(spec, &matrix, part)
            }
        }
    }

    /// Calls `f` for chunks of rows over all threads, then gives the whole tensor's memory back.
    fn chunks(&self, spec: &TensorSpec, most: usize, f: impl Fn(Range<usize>) -> Result<()> + Sync) -> Result<()> {
        let n = rows(spec);
        let most = most.max(1);
        let all = (0..n.div_ceil(most)).into_par_iter();
        all.try_for_each(|i| f(i * most..((i + 1) * most).min(n)))?;
        self.source.release(spec, 0..n);
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

    fn copy(&self, spec: &TensorSpec, tensor: &Tensor) -> Result<()> {
        let row = tensor.spec().row_bytes() as usize;
        // Offsets and sizes of writes are multiples of four bytes, which padded rows always are.
        self.chunks(spec, COPY / row, |part| {
            let gone = || Error::tensor(Path::new("weights"), &spec.name, "cannot be read in place");
            let bytes = self.source.in_place(spec, part.clone()).ok_or_else(gone)?;
            finite_bytes(spec, part.start * width(spec), tensor.spec().dtype, bytes)?;
            self.write(tensor, part.start, bytes)?;
            self.source.release(spec, part);
            Ok(())
        })
    }

    fn convert(&self, spec: &TensorSpec, tensor: &Tensor) -> Result<()> {
        let k = width(spec);
        self.chunks(spec, CHUNK / k, |part| {
            let mut values = vec![0.0; part.len() * k];
            self.source.floats(spec, part.start, &mut values)?;
            finite(spec, part.start * k, &values)?;
            match tensor.spec().dtype {
                DType::F32 => self.write(tensor, part.start, bytemuck::cast_slice(&values))?,
                dtype => self.write(tensor, part.start, &halves(dtype, &values, k))?,
            }
            self.source.release(spec, part);
            Ok(())
        })
    }

    fn ternary(&self, spec: &TensorSpec, matrix: &Codes<'_>, to: &Ternary) -> Result<()> {
        let (k, dtype) = (width(spec), to.codes.spec().dtype);
        self.chunks(spec, (CHUNK / k).next_multiple_of(INTERLEAVED), |part| {
            let mut plain = vec![0u32; part.len() * row_words(k)];
            matrix.read(part.start, &mut plain)?;
            let mut packed = vec![0u32; ternary_words(dtype, part.len(), k)];
            pack_ternary(dtype, &plain, k, &mut packed);
            self.write(&to.codes, to.first + part.start, bytemuck::cast_slice(&packed))?;
            self.source.release(spec, part);
            Ok(())
        })
    }
}

/// Bytes of an unpadded float.
fn size(dtype: DType) -> usize {
    if dtype == DType::F32 { 4 } else { 2 }
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
