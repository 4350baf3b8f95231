//! Post-training quantisation: a folder in f32, f16 or bf16 becomes one of ternary codes (absmean, Ma et al.
//! 2024), or of groups of 8- or 4-bit integers ([`crate::quantized`]), tensor by tensor.
//!
//! The error of a matrix is relative: `‖W − Ŵ‖ / ‖W‖` in the Frobenius norm. A model that was not trained
//! with ternary weights is of no use with them; the perplexity says so.

use crate::config::{Config, LinearClass, Quantization};
use crate::error::{Error, Result};
use crate::online::{Codes, finite};
use crate::packed::{dequantise_row, row_words};
use crate::quantized::{Groups, Quantized};
use crate::save::{Floats, Item, config_json, packed_items, quantised, write_items, write_json};
use crate::source::{Source, Stored, rows, width};
use crate::tensor_names::{Kind, TensorSpec};
use half::f16;
use rayon::prelude::*;
use std::path::Path;
use tritter_runtime::DType;

/// What is done with the projections of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// Kept as they are.
    Keep,
    /// Ternary codes and one scale a matrix.
    Ternary,
    /// Groups of integers.
    Groups(Groups),
}

/// What a quantisation does.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Projections of the layers.
    pub projections: Projections,
    /// Groups of embedding and head; `None` keeps their floats.
    pub head: Option<Groups>,
    /// Type of all that stays float.
    pub floats: Floats,
}

/// How far a tensor moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    /// Its name.
    pub tensor: String,
    /// `‖W − Ŵ‖ / ‖W‖`.
    pub error: f64,
}

/// Config and parts in groups of what [`write_quantized`] writes; the error says why a model cannot be
/// quantised so.
pub fn target(folder: &Path, config: &Config, job: &Job) -> Result<(Config, Quantized)> {
    let dense = config.quantization == Quantization::None;
    let refuse = |why: &str| Err(Error::checkpoint(folder, why));
    if !dense && job.projections != Projections::Keep {
        return refuse("its projections are ternary already; only embedding and head (--head) can be quantised");
    }
    if job.projections == Projections::Keep && job.head.is_none() {
        return refuse("nothing is to be quantised; say what the projections or the head become");
    }
    let mut config = config.clone();
    if job.projections == Projections::Ternary {
        config.quantization = Quantization::Offline { linear_class: LinearClass::AutoBitLinear };
    }
    let projections = match job.projections {
        Projections::Groups(groups) => Some(groups),
        _ => None,
    };
    let head = job.head.filter(|_| !config.tie_embeddings);
    Ok((config, Quantized { projections, embedding: job.head, head }))
}

/// Writes the weights and `config.json` of a quantised model; gives the error of every tensor that was
/// quantised, in the order of the model. `folder` is the source's, for messages.
pub fn write_quantized(
    folder: &Path,
    out: &Path,
    config: &Config,
    source: &dyn Source,
    job: &Job,
) -> Result<Vec<Moved>> {
    let (target, quantized) = target(folder, config, job)?;
    target.validate_from(&out.join("config.json"))?;
    let (mut items, mut moved) = (Vec::new(), Vec::new());
    for spec in target.tensors() {
        match (spec.kind, target.quantization, quantized.of(&spec)) {
            (Kind::Linear { ternary: true }, Quantization::Offline { linear_class }, _) => {
                if job.projections == Projections::Ternary {
                    moved.push(Moved { tensor: spec.name.clone(), error: ternary_error(source, &spec)? });
                }
                packed_items(spec, linear_class, source, job.floats, &mut items)?;
            }
            (_, _, Some(groups)) => {
                moved.push(Moved { tensor: spec.name.clone(), error: group_error(source, &spec, groups)? });
                items.extend(Item::groups(spec, groups));
            }
            _ => items.push(Item::floats(spec, job.floats)),
        }
    }
    write_items(out, &items, source, None)?;
    write_json(&out.join("config.json"), &config_json(&target, job.floats, &quantized))?;
    Ok(moved)
}

/// The type that floats of a source keep: bf16 or f16 where its embedding has it, else f32.
pub fn floats_of(source: &dyn Source, config: &Config) -> Result<Floats> {
    let embedding = config.tensors().into_iter().next();
    Ok(match embedding.map(|spec| source.stored(&spec)).transpose()? {
        Some(Stored::Floats(DType::Bf16)) => Floats::Bf16,
        Some(Stored::Floats(DType::F16)) => Floats::F16,
        _ => Floats::F32,
    })
}

fn ternary_error(source: &dyn Source, spec: &TensorSpec) -> Result<f64> {
    let codes = Codes::new(source, spec)?;
    relative_error(source, spec, |first, count, out| {
        let words = row_words(width(spec));
        let mut packed = vec![0; count * words];
        codes.read(first, &mut packed)?;
        for (words, out) in packed.chunks(words).zip(out.chunks_mut(width(spec))) {
            dequantise_row(words, codes.scale, out);
        }
        Ok(())
    })
}

fn group_error(source: &dyn Source, spec: &TensorSpec, groups: Groups) -> Result<f64> {
    let k = width(spec);
    relative_error(source, spec, |first, count, out| {
        let (words, scales): (Vec<u32>, Vec<f16>) = quantised(source, spec, groups, first, count)?;
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let rows = bytes.chunks(groups.dtype.row_bytes(k)).zip(scales.chunks(groups.scales(k)));
        rows.zip(out.chunks_mut(k)).for_each(|((codes, scales), out)| groups.dequantise(codes, scales, out));
        Ok(())
    })
}

/// `‖W − Ŵ‖ / ‖W‖` where `quantise(first, count, out)` gives rows of Ŵ; 0 for a matrix of zeros.
fn relative_error(
    source: &dyn Source,
    spec: &TensorSpec,
    quantise: impl Fn(usize, usize, &mut [f32]) -> Result<()> + Sync,
) -> Result<f64> {
    let (n, k) = (rows(spec), width(spec));
    let most = ((1 << 18) / k).max(1);
    let parts = (0..n.div_ceil(most)).into_par_iter().map(|i| {
        let first = i * most;
        let count = most.min(n - first);
        let (mut before, mut after) = (vec![0.0; count * k], vec![0.0; count * k]);
        source.floats(spec, first, &mut before)?;
        finite(spec, first * k, &before)?;
        quantise(first, count, &mut after)?;
        source.release(spec, first..first + count);
        let squares = before.iter().zip(&after).map(|(&a, &b)| (f64::from(a - b).powi(2), f64::from(a).powi(2)));
        Ok(squares.fold((0.0, 0.0), |(e, w), (de, dw)| (e + de, w + dw)))
    });
    // Collected, so that the sum has one order.
    let parts: Vec<(f64, f64)> = parts.collect::<Result<_>>()?;
    let (error, norm) = parts.iter().fold((0.0, 0.0), |(e, w), (de, dw)| (e + de, w + dw));
    Ok(if norm > 0.0 { (error / norm).sqrt() } else { 0.0 })
}

/// A llama keeps computing its projections from floats until it is made ternary; then they quantise their
/// inputs to int8 too. Said to users of `--to ternary`.
pub fn changes_activations(config: &Config, job: &Job) -> bool {
    job.projections == Projections::Ternary && config.family.is_llama()
}
