//! Writing models as Hugging Face folders: masters in f32, or packed ternary weights.

use crate::config::{Config, LinearClass, Quantization};
use crate::error::{BoxError, Error, Result};
use crate::packed::bytes_from_words;
use crate::tensor_names::{Kind, TensorSpec};
use crate::tensor_write::{PendingFile, TensorHeader, prepare_safetensors, write_atomic};
use crate::tensors::{Dtype, SINGLE_FILE};
use crate::weights::{Form, Model};
use half::bf16;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use tritter_runtime::{DType, Device, Tensor};

/// How scales and float tensors of a packed model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// f32: a packed model gives the same logits as its master.
    F32,
    /// bf16, as in the released 2B-4T checkpoint: smaller, and logits change.
    Bf16,
}

/// Writes `config.json`.
pub fn write_config(folder: &Path, config: &Config) -> Result<()> {
    let text = serde_json::to_string_pretty(&config.to_json());
    let text = text.map_err(|source| Error::Json { path: folder.join("config.json"), source })?;
    write_atomic(&folder.join("config.json"), format!("{text}\n").as_bytes())
}

/// Prepares `model.safetensors` of a model in training form, read from its device.
pub fn prepare_masters(
    folder: &Path,
    model: &Model,
    device: &Device,
    metadata: &BTreeMap<String, String>,
) -> Result<PendingFile> {
    let parameters = model.parameters();
    let header =
        |t: &Tensor| TensorHeader { name: t.name().to_string(), dtype: Dtype::F32, shape: t.spec().shape.clone() };
    let headers: Vec<_> = parameters.iter().map(header).collect();
    prepare_safetensors(&folder.join(SINGLE_FILE), &headers, metadata, &mut |i, file| {
        let values: Vec<f32> = device.read(&parameters[i])?;
        Ok(file.write_all(bytemuck::cast_slice(&values))?)
    })
}

/// The config of a model's packed form.
pub fn packed_config(config: &Config) -> Config {
    let linear_class = LinearClass::AutoBitLinear;
    Config { quantization: Quantization::Offline { linear_class }, ..config.clone() }
}

/// One tensor of a packed file.
enum Entry<'a> {
    Codes(&'a Tensor, usize, usize),
    Floats(&'a Tensor),
}

/// Writes the weights of a model in running form as packed bytes with `weight_scale`.
pub fn write_packed(folder: &Path, model: &Model, device: &Device, floats: Floats) -> Result<()> {
    let (headers, entries) = packed_entries(folder, model, floats)?;
    let source = &mut |i: usize, file: &mut dyn Write| -> Result<(), BoxError> {
        match entries[i] {
            Entry::Codes(codes, out, inner) => {
                let words: Vec<u32> = device.read(codes)?;
                file.write_all(&bytes_from_words(&words, out, inner))?;
            }
            Entry::Floats(tensor) => {
                let values: Vec<f32> = device.read(tensor)?;
                write_floats(file, &values, floats)?;
            }
        }
        Ok(())
    };
    prepare_safetensors(&folder.join(SINGLE_FILE), &headers, &BTreeMap::new(), source)?.commit()?;
    write_config(folder, &packed_config(&model.config))
}

fn write_floats(file: &mut dyn Write, values: &[f32], floats: Floats) -> std::io::Result<()> {
    match floats {
        Floats::F32 => file.write_all(bytemuck::cast_slice(values)),
        Floats::Bf16 => {
            let halves: Vec<u16> = values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
            file.write_all(bytemuck::cast_slice(&halves))
        }
    }
}

fn packed_entries<'a>(folder: &Path, model: &'a Model, floats: Floats) -> Result<(Vec<TensorHeader>, Vec<Entry<'a>>)> {
    let matrices: HashMap<&str, (&Tensor, &Tensor)> = model.ternary_matrices().collect();
    if model.form != Form::Run || matrices.is_empty() {
        return Err(Error::checkpoint(folder, "only a ternary model can be packed; this one has no ternary matrices"));
    }
    let all: HashMap<&str, &Tensor> = model.float_tensors().map(|t| (t.name(), t)).collect();
    let dtype = if floats == Floats::F32 { Dtype::F32 } else { Dtype::BF16 };
    let (mut headers, mut entries) = (Vec::new(), Vec::new());
    for TensorSpec { name, shape, kind } in model.config.tensors() {
        match (matrices.get(name.as_str()), kind) {
            (Some((codes, scale)), Kind::Linear { .. }) => {
                let (out, inner) = (shape[0], shape[1]);
                if out % 4 != 0 {
                    let problem =
                        format!("has {out} rows, which four codes to a byte cannot divide; it cannot be packed");
                    return Err(Error::tensor(folder, &name, problem));
                }
                headers.push(TensorHeader { name: name.clone(), dtype: Dtype::U8, shape: vec![out / 4, inner] });
                entries.push(Entry::Codes(codes, out, inner));
                headers.push(TensorHeader { name: format!("{name}_scale"), dtype, shape: vec![1] });
                entries.push(Entry::Floats(scale));
            }
            _ => {
                let missing = || Error::tensor(folder, &name, "is not part of the model in memory");
                entries.push(Entry::Floats(all.get(name.as_str()).copied().ok_or_else(missing)?));
                headers.push(TensorHeader { name, dtype, shape });
            }
        }
    }
    Ok((headers, entries))
}

/// Writes a packed model as a plain dense one, every ternary matrix as code × scale in f32. The masters
/// it was trained from cannot be recovered. The result keeps its online ternary config: absmean of
/// `code × scale` differs from `scale` (zeros count), so it is written for `llama` folders only as
/// dense; other families need their quantised activations and are refused by the caller.
pub fn write_unpacked(folder: &Path, model: &Model, device: &Device, config: &Config) -> Result<()> {
    let matrices: HashMap<&str, (&Tensor, &Tensor)> = model.ternary_matrices().collect();
    let all: HashMap<&str, &Tensor> = model.float_tensors().map(|t| (t.name(), t)).collect();
    let specs = model.config.tensors();
    let header = |s: &TensorSpec| TensorHeader { name: s.name.clone(), dtype: Dtype::F32, shape: s.shape.clone() };
    let headers: Vec<_> = specs.iter().map(header).collect();
    let source = &mut |i: usize, file: &mut dyn Write| -> Result<(), BoxError> {
        let spec = &specs[i];
        let values = match (matrices.get(spec.name.as_str()), all.get(spec.name.as_str())) {
            (Some((codes, scale)), _) => dense(device, codes, scale)?,
            (None, Some(tensor)) => device.read(tensor)?,
            (None, None) => return Err(format!("`{}` is not part of the model in memory", spec.name).into()),
        };
        Ok(file.write_all(bytemuck::cast_slice(&values))?)
    };
    prepare_safetensors(&folder.join(SINGLE_FILE), &headers, &BTreeMap::new(), source)?.commit()?;
    write_config(folder, config)
}

fn dense(device: &Device, codes: &Tensor, scale: &Tensor) -> Result<Vec<f32>> {
    let words: Vec<u32> = device.read(codes)?;
    let scale: Vec<f32> = device.read(scale)?;
    let values = tritter_runtime::reference::decode(codes.spec(), &words);
    Ok(values.into_iter().map(|t| t as f32 * scale[0]).collect())
}

impl Model {
    /// Float weights of the checkpoint, RoPE tables left out.
    fn float_tensors(&self) -> impl Iterator<Item = &Tensor> {
        let norms = self.layers.iter().flat_map(|l| l.floats());
        let ends = [Some(&self.embedding), Some(&self.norm), self.head.as_ref()].into_iter().flatten();
        ends.chain(norms).filter(|t| t.spec().dtype == DType::F32)
    }
}
