//! Writing an open file as a Hugging Face folder: `config.json` and `model.safetensors`, ternary
//! projections packed with `weight_scale` ([`crate::packed`]), tensors of 16-bit floats as they are and all
//! others as f32.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::Gguf;
use super::config::read_config;
use super::matrix::Matrix;
use super::source::FromGguf;
use super::types::TensorType;
use crate::config::{Config, LinearClass, Quantization};
use crate::error::{BoxError, Error, Result};
use crate::save::write_config;
use crate::tensor_names::{TensorSpec, scale_name};
use crate::tensor_write::{TensorHeader, prepare_safetensors};
use crate::tensors::{Dtype, SINGLE_FILE};

/// One tensor of the folder.
enum Part<'a> {
    Codes(Matrix<'a>),
    Scale(f32),
    Floats(Matrix<'a>, Dtype),
}

/// Writes the model of `gguf` into an existing folder; returns its config there. A model whose projections
/// are all ternary becomes a packed one, another one keeps floats.
pub fn import(gguf: &Gguf, folder: &Path) -> Result<Config> {
    let config = read_config(gguf)?;
    let source = FromGguf::new(gguf, &config)?;
    let (mut headers, mut parts, mut all_ternary) = (Vec::new(), Vec::new(), config.is_ternary());
    let specs = config.tensors();
    for spec in specs.iter().filter(|_| config.is_ternary()) {
        let projection = spec.kind == crate::tensor_names::Kind::Linear { ternary: true };
        all_ternary &= !projection || source.scale(spec)?.is_some();
    }
    for spec in &specs {
        let matrix = source.matrix(spec)?;
        match source.scale(spec)? {
            Some(scale) if all_ternary => add_packed(gguf, spec, matrix, scale, &mut headers, &mut parts)?,
            _ => {
                let dtype = match matrix.dtype() {
                    TensorType::F16 => Dtype::F16,
                    TensorType::Bf16 => Dtype::BF16,
                    _ => Dtype::F32,
                };
                headers.push(TensorHeader { name: spec.name.clone(), dtype, shape: spec.shape.clone() });
                parts.push(Part::Floats(matrix, dtype));
            }
        }
    }
    let write = &mut |index: usize, out: &mut dyn Write| write_part(&parts[index], out);
    prepare_safetensors(&folder.join(SINGLE_FILE), &headers, &BTreeMap::new(), write)?.commit()?;
    let quantization = match config.quantization {
        Quantization::Online if all_ternary => Quantization::Offline { linear_class: LinearClass::AutoBitLinear },
        other => other,
    };
    let config = Config { quantization, ..config };
    config.validate_from(gguf.path())?;
    write_config(folder, &config)?;
    Ok(config)
}

fn add_packed<'a>(
    gguf: &Gguf,
    spec: &TensorSpec,
    matrix: Matrix<'a>,
    scale: f32,
    headers: &mut Vec<TensorHeader>,
    parts: &mut Vec<Part<'a>>,
) -> Result<()> {
    if !matrix.rows.is_multiple_of(4) {
        let problem =
            format!("has {} rows, which four codes to a byte cannot divide; it cannot be packed", matrix.rows);
        return Err(Error::tensor(gguf.path(), &spec.name, problem));
    }
    let shape = vec![matrix.rows / 4, matrix.width];
    headers.push(TensorHeader { name: spec.name.clone(), dtype: Dtype::U8, shape });
    parts.push(Part::Codes(matrix));
    headers.push(TensorHeader { name: scale_name(&spec.name), dtype: Dtype::F32, shape: vec![1] });
    parts.push(Part::Scale(scale));
    Ok(())
}

fn write_part(part: &Part<'_>, out: &mut dyn Write) -> Result<(), BoxError> {
    match part {
        Part::Scale(scale) => out.write_all(&scale.to_le_bytes())?,
        Part::Codes(matrix) => {
            let quarter = matrix.rows / 4;
            let (mut codes, mut bytes) = (vec![0; matrix.width], vec![0; matrix.width]);
            for row in 0..quarter {
                bytes.fill(0);
                for i in 0..4 {
                    matrix.codes(row + i * quarter, &mut codes)?;
                    bytes.iter_mut().zip(&codes).for_each(|(byte, code)| *byte |= code << (2 * i));
                }
                out.write_all(&bytes)?;
            }
        }
        Part::Floats(matrix, dtype) => {
            let stored = match *dtype {
                Dtype::F16 => TensorType::F16,
                Dtype::BF16 => TensorType::Bf16,
                _ => TensorType::F32,
            };
            let (mut values, mut bytes) = (vec![0.0; matrix.width], Vec::new());
            for row in 0..matrix.rows {
                matrix.floats(row, &mut values);
                bytes.clear();
                super::floats::encode_row(stored, &values, &mut bytes);
                out.write_all(&bytes)?;
            }
        }
    }
    Ok(())
}
