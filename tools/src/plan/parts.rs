//! The parts of a plan: what each is for and its bytes.

use serde::Serialize;
use tritter_model::weights::{Dense, Matrix, Model};
use tritter_runtime::{DType, Tensor};

/// A part of what a run takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// The same in GiB = 2^30 bytes.
    pub(crate) gib: f64,
}

impl Part {
    pub(crate) fn new(name: impl Into<String>, bytes: u64) -> Part {
        Part { name: name.into(), bytes, gib: gib(bytes) }
    }
}

/// GiB of bytes.
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Bytes of all parts.
pub(crate) fn total(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

/// The weights of a model by what they are and how they are stored; parts of no bytes are left out.
pub(crate) fn weights(model: &Model) -> Vec<Part> {
    let (mut ternary, mut master, mut dense, mut dense_type) = (0, 0, 0, None);
    for linear in model.layers.iter().flat_map(|layer| layer.linears()) {
        match &linear.matrix {
            // Of matrices that share a tensor the first counts it.
            Matrix::Ternary(part) if part.index == 0 => ternary += size(&part.codes) + size(&part.scales),
            Matrix::Ternary(_) => {}
            Matrix::Master(tensor) => master += size(tensor),
            Matrix::Dense(matrix) => {
                dense += sizes(matrix);
                dense_type = Some(matrix.values.spec().dtype);
            }
        }
    }
    let table = model.formats.table.dtype;
    let embedding = sizes(&model.embedding);
    let head = model.head.as_ref().map_or(0, sizes);
    let rope = size(&model.rope.coarse) + size(&model.rope.fine);
    let rest = model.bytes().saturating_sub(ternary + master + dense + embedding + head + rope);
    let bits = if matches!(model.formats.ternary, DType::T1 | DType::T1x16) { "1.6" } else { "2" };
    let tied = if model.head.is_some() { "embedding" } else { "embedding, which is the head," };
    let parts = [
        (format!("ternary weights in {bits} bits"), ternary),
        ("master weights in f32".to_string(), master),
        (format!("projections in {}", dense_type.unwrap_or(DType::F32)), dense),
        (format!("{tied} in {table}"), embedding),
        (format!("head in {table}"), head),
        ("norms and biases in f32".to_string(), rest),
        ("rotary angles".to_string(), rope),
    ];
    parts.into_iter().filter(|(_, bytes)| *bytes > 0).map(|(name, bytes)| Part::new(name, bytes)).collect()
}

fn size(tensor: &Tensor) -> u64 {
    tensor.spec().bytes()
}

fn sizes(dense: &Dense) -> u64 {
    dense.tensors().map(size).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tritter_model::config::Family;
    use tritter_model::presets::preset;
    use tritter_model::weights::{DenseFormat, Form, Formats};

    #[test]
    fn parts_of_the_weights_are_all_of_the_model() {
        let int8 = Formats { table: DenseFormat::groups(DType::I8, 64), ..Formats::PLAIN };
        for (name, family, form) in [
            ("test", Family::Bitnet, Form::Run),
            ("test", Family::Tritter, Form::Train),
            ("llama2-7b", Family::Llama, Form::Run),
            ("llama2-7b", Family::Bitnet, Form::Run),
        ] {
            let config = preset(name).unwrap().config(family, None, Some(256));
            let model = Model::with_formats(&config, form, int8, 256);
            let parts = weights(&model);
            assert_eq!(total(&parts), model.bytes(), "{name} {family:?} {form:?}: {parts:?}");
            assert!(parts.iter().all(|part| part.bytes > 0));
        }
    }
}
