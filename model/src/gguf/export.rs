//! Writing a model as a GGUF file.
//!
//! Ternary projections are written as codes with their scale; a width that the block type cannot hold is
//! written as f32 of code × scale instead, which reads back as the same codes and scale. Masters are made
//! ternary on the way ([`crate::online`]). Norms and biases are
//! f32. Embedding and head have a type of their own.

use std::io::Write;
use std::path::Path;

use half::f16;

use super::config::{ARCHITECTURE, Architecture, EOS_IDS, FAMILY, TERNARY};
use super::names::{ROPE_FREQS, RowOrder, gguf_name};
use super::rope::{self, rope_divisors};
use super::source::unpack;
use super::tokenizer::{BOS_ID, EOS_ID, EOT_ID, PAD_ID};
use super::types::{I2S_TAIL, TensorType};
use super::write::{Entry, TensorHeader, prepare_gguf};
use super::{codes, floats};
use crate::config::{Activation, Config, Family, RopeScaling};
use crate::error::{BoxError, Error, Result};
use crate::online::Codes;
use crate::packed::row_words;
use crate::source::Source;
use crate::tensor_names::{Kind, TensorSpec};

/// How a model is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    /// Type of the projections: F32, F16, or a ternary type for a ternary model.
    pub weights: TensorType,
    /// Type of embedding and head, not a ternary one.
    pub tables: TensorType,
    /// Whether to write what llama.cpp does not look at in the architecture and computes otherwise without: a
    /// window below the model's positions, bounds of yarn. It is refused else.
    pub unheeded: bool,
}

impl Types {
    /// Projections and tables of these types, and nothing that llama.cpp would not look at.
    pub fn new(weights: TensorType, tables: TensorType) -> Types {
        Types { weights, tables, unheeded: false }
    }
}

/// What was written otherwise than asked for, or with a loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Tensors written as F32 because their type cannot hold them, with the reason.
    pub as_f32: Vec<(String, String)>,
    /// Largest relative change of a ternary matrix's scale (by its rounding to f16).
    pub scale_change: f64,
}

/// Writes `config` with the weights of `source` and the metadata of a tokenizer.
pub fn export(
    path: &Path,
    config: &Config,
    source: &dyn Source,
    types: Types,
    tokenizer: Vec<(String, Entry)>,
) -> Result<Report> {
    check(path, config, types)?;
    let architecture = architecture(config, types);
    let mut report = Report::default();
    let mut specs = config.tensors();
    let headers = specs.iter().map(|spec| header(path, spec, types, &mut report));
    let mut headers = headers.collect::<Result<Vec<_>>>()?;
    let factors = matches!(config.rope.scaling, RopeScaling::Llama3 { .. }).then(|| rope_divisors(config));
    if let Some(factors) = &factors {
        let shape = vec![factors.len()];
        headers.push(TensorHeader { name: ROPE_FREQS.into(), dtype: TensorType::F32, shape: shape.clone() });
        specs.push(TensorSpec { name: ROPE_FREQS.into(), shape, kind: Kind::Norm });
    }
    let mut entries = entries(config, architecture, types);
    entries.extend(tokenizer);
    let pending = prepare_gguf(path, &entries, &headers, &mut |index, out| {
        let (spec, dtype) = (&specs[index], headers[index].dtype);
        let order = RowOrder::of(spec, architecture.interleaved(), config.head_dim);
        let mut job = Job { spec, dtype, order, report: &mut report };
        match &factors {
            Some(factors) if spec.name == ROPE_FREQS => job.write_floats(factors, out),
            _ => job.write(source, out),
        }
    })?;
    pending.commit()?;
    Ok(report)
}

fn check(path: &Path, config: &Config, types: Types) -> Result<()> {
    let fail = |problem: &str| Err(Error::checkpoint(path, problem));
    if config.family == Family::Tritter {
        return fail("the family tritter has norms that no architecture of llama.cpp has; it stays a folder");
    }
    if config.window.is_some() && !config.family.is_llama() {
        return fail("of the families that are written only mistral has a sliding window");
    }
    if let RopeScaling::Dynamic { .. } = config.rope.scaling {
        return fail("GGUF has no `dynamic` rule of rotary frequencies; `linear`, `yarn` and `llama3` are written");
    }
    if let Some(what) = unheeded(config).filter(|_| !types.unheeded) {
        let architecture = architecture(config, types).name();
        let problem = format!(
            "llama.cpp does not look at {what} in its architecture {architecture} and would compute other logits; \
             it is written on request, for programs that do (`convert --unheeded`)"
        );
        return fail(&problem);
    }
    if types.tables.is_ternary() || !(types.weights.is_ternary() || is_plain(types.weights)) {
        return fail("projections are ternary, f32 or f16, and tables are not ternary");
    }
    if types.weights.is_ternary() && !config.is_ternary() {
        return fail("only a ternary model has codes to write; write this dense one as f16 or f32");
    }
    Ok(())
}

/// What llama.cpp would not look at. A window that holds all positions hides nothing.
fn unheeded(config: &Config) -> Option<String> {
    match config.window {
        Some(window) if window < config.max_positions => Some(format!("a sliding window of {window}")),
        _ => rope::unheeded(config.rope.scaling),
    }
}

fn is_plain(dtype: TensorType) -> bool {
    matches!(dtype, TensorType::F32 | TensorType::F16)
}

/// The architecture to write: that of the program which reads the weights' type.
fn architecture(config: &Config, types: Types) -> Architecture {
    match (config.family, types.weights, config.activation) {
        (Family::Llama | Family::Mistral, ..) => Architecture::Llama,
        (_, TensorType::I2S, Activation::Relu2) => Architecture::BitnetB158,
        _ => Architecture::Bitnet,
    }
}

fn header(path: &Path, spec: &TensorSpec, types: Types, report: &mut Report) -> Result<TensorHeader> {
    let missing = || Error::tensor(path, &spec.name, "is no tensor that a GGUF file can have");
    let name = gguf_name(&spec.name).ok_or_else(missing)?;
    let table = spec.kind == Kind::Embedding || spec.name == "lm_head.weight";
    let wanted = match spec.kind {
        Kind::Norm | Kind::Bias => TensorType::F32,
        _ if table => types.tables,
        _ => types.weights,
    };
    let width = spec.shape.last().copied().unwrap_or(1);
    let dtype = match wanted.row_bytes(width) {
        Some(_) => wanted,
        None => {
            let (block, _) = wanted.block();
            let reason = format!("{} needs widths in multiples of {block}, this one has {width}", wanted.name());
            report.as_f32.push((name.clone(), reason));
            TensorType::F32
        }
    };
    Ok(TensorHeader { name, dtype, shape: spec.shape.clone() })
}

fn entries(config: &Config, architecture: Architecture, types: Types) -> Vec<(String, Entry)> {
    let mut list: Vec<(String, Entry)> = Vec::new();
    let mut add = |key: &str, entry: Entry| list.push((key.to_owned(), entry));
    let size = |n: usize| Entry::U32(n as u32);
    let key = |name: &str| format!("{}.{name}", architecture.name());
    add(ARCHITECTURE, Entry::Text(architecture.name().into()));
    add("general.type", Entry::Text("model".into()));
    add("general.file_type", Entry::U32(file_type(types.weights)));
    add("general.quantization_version", Entry::U32(2));
    add(&key("vocab_size"), size(config.vocab_size));
    add(&key("context_length"), size(config.max_positions));
    add(&key("embedding_length"), size(config.hidden_size));
    add(&key("block_count"), size(config.num_layers));
    add(&key("feed_forward_length"), size(config.intermediate_size));
    add(&key("attention.head_count"), size(config.num_heads));
    add(&key("attention.head_count_kv"), size(config.num_kv_heads));
    add(&key("attention.key_length"), size(config.head_dim));
    add(&key("attention.value_length"), size(config.head_dim));
    add(&key("attention.layer_norm_rms_epsilon"), Entry::F32(config.rms_norm_eps as f32));
    add(&key("rope.dimension_count"), size(config.head_dim));
    add(&key("rope.freq_base"), Entry::F32(config.rope.theta as f32));
    if architecture != Architecture::Llama {
        let name = if config.activation == Activation::Relu2 { "relu2" } else { "silu" };
        add(&key("hidden_activation"), Entry::Text(name.into()));
    }
    if let Some(window) = config.window {
        add(&architecture.window_key(), size(window));
    } else if config.family == Family::Mistral {
        add(FAMILY, Entry::Text(config.family.name().into()));
    }
    add(TERNARY, Entry::Bool(config.is_ternary()));
    for (key, id) in [
        (BOS_ID, config.bos_token_id),
        (EOS_ID, config.eos_token_ids.first().copied()),
        (EOT_ID, config.eos_token_ids.get(1).copied()),
        (PAD_ID, config.pad_token_id),
    ] {
        if let Some(id) = id {
            add(key, Entry::U32(id));
        }
    }
    if config.eos_token_ids.len() > 1 {
        add(EOS_IDS, Entry::U32s(config.eos_token_ids.clone()));
    }
    list.extend(rope::entries(config.rope.scaling, architecture));
    list
}

/// `general.file_type` (`llama_ftype` of llama.cpp; 40 is bitnet.cpp's for `I2_S`).
fn file_type(weights: TensorType) -> u32 {
    match weights {
        TensorType::F32 => 0,
        TensorType::Tq1_0 => 36,
        TensorType::Tq2_0 => 37,
        TensorType::I2S => 40,
        TensorType::Q2_0 | TensorType::Q2_0G128 | TensorType::Pq2_0 => 41,
        _ => 1,
    }
}

/// One tensor to be written.
struct Job<'a> {
    spec: &'a TensorSpec,
    dtype: TensorType,
    order: RowOrder,
    report: &'a mut Report,
}

impl Job<'_> {
    fn write(&mut self, source: &dyn Source, out: &mut dyn Write) -> Result<(), BoxError> {
        if self.spec.kind == (Kind::Linear { ternary: true }) {
            return self.write_ternary(&Codes::new(source, self.spec)?, out);
        }
        let mut values = vec![0.0; self.spec.elements().unwrap_or_default()];
        source.floats(self.spec, 0, &mut values)?;
        self.write_floats(&values, out)
    }

    fn write_ternary(&mut self, codes: &Codes<'_>, out: &mut dyn Write) -> Result<(), BoxError> {
        let (rows, width) = self.shape();
        let stored = self.stored_scale(codes.scale)?;
        let mut words = vec![0; row_words(width)];
        let (mut row, mut values, mut bytes) = (vec![0; width], vec![0.0; width], Vec::new());
        for there in 0..rows {
            codes.read(self.order.from_file(there), &mut words)?;
            unpack(&words, &mut row);
            bytes.clear();
            if self.dtype.is_ternary() {
                codes::encode_row(self.dtype, &row, f16::from_f32(codes.scale), &mut bytes);
            } else {
                for (value, code) in values.iter_mut().zip(&row) {
                    *value = (f32::from(*code) - 1.0) * stored;
                }
                floats::encode_row(self.dtype, &values, &mut bytes);
            }
            out.write_all(&bytes)?;
        }
        if self.dtype == TensorType::I2S {
            let mut tail = [0; I2S_TAIL];
            tail[..4].copy_from_slice(&codes.scale.to_le_bytes());
            out.write_all(&tail)?;
        }
        Ok(())
    }

    /// The scale as the type keeps it; an error where nothing is left of it.
    fn stored_scale(&mut self, scale: f32) -> Result<f32, BoxError> {
        if matches!(self.dtype, TensorType::F32 | TensorType::I2S) {
            return Ok(scale);
        }
        let stored = f16::from_f32(scale).to_f32();
        if !stored.is_finite() || stored <= 0.0 {
            let kind = self.dtype.name();
            return Err(format!("its scale {scale} is outside f16, which {kind} keeps; choose i2_s or f32").into());
        }
        let change = f64::from((stored - scale).abs()) / f64::from(scale);
        self.report.scale_change = self.report.scale_change.max(change);
        Ok(stored)
    }

    fn write_floats(&mut self, values: &[f32], out: &mut dyn Write) -> Result<(), BoxError> {
        let (rows, width) = self.shape();
        let most = if self.dtype == TensorType::F32 || self.dtype == TensorType::Bf16 { f32::MAX } else { 65504.0 };
        if let Some(value) = values.iter().find(|v| !v.is_finite() || v.abs() > most) {
            return Err(format!("it holds {value}, which {} cannot; choose bf16 or f32", self.dtype.name()).into());
        }
        let mut bytes = Vec::new();
        for there in 0..rows {
            let row = values.get(self.order.from_file(there) * width..).and_then(|rest| rest.get(..width));
            bytes.clear();
            floats::encode_row(self.dtype, row.unwrap_or_default(), &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Rows and width; a vector whose elements are reordered has rows of one.
    fn shape(&self) -> (usize, usize) {
        match self.spec.shape[..] {
            [n] if self.order == RowOrder::Same => (1, n),
            [n] => (n, 1),
            [rows, width] => (rows, width),
            _ => (0, 0),
        }
    }
}

#[cfg(test)]
#[path = "export_test.rs"]
pub(in crate::gguf) mod tests;
