//! Our own storage of matrices in groups of 8-, 6- or 4-bit integers, as `tritter quantize` writes it.
//!
//! `config.json` has a key `tritter` that other programs ignore:
//!
//! ```json
//! "tritter": { "projections": { "dtype": "i4", "group": 64 }, "embedding": { "dtype": "i8", "group": 64 } }
//! ```
//!
//! with `projections` (the dense matrices of the layers), `embedding` (also the head, where it is tied) and
//! `head`, each absent where the floats are kept. A tensor `T [n,k]` of a part that is named is stored as
//!
//! - `T`, `I8` for `i8` and else `U8`, `[n, row]`: the runtime's stored words of that dtype, little-endian,
//!   padding included ([`tritter_runtime::dtype`]): `row` is `16⌈k/16⌉`, `12⌈k/16⌉` and `4⌈k/8⌉` bytes for
//!   `i8`, `i6` and `i4`;
//! - `T_scales`, `F16`, `[n, ⌈k/group⌉]`: element `(i, j)` is code × `T_scales[i, j / group]`.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::json_fields::Fields;
use crate::source::{Source, Stored};
use crate::tensor_names::{Kind, TensorSpec};
use half::f16;
use serde_json::{Map, Value, json};
use std::path::Path;
use tritter_runtime::DType;
use tritter_runtime::layout::code_at;

/// Element type and elements that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// `i8`, `i6` or `i4`.
    pub dtype: DType,
    /// Elements of a row that share a scale; a multiple of 16.
    pub group: usize,
}

impl Groups {
    /// Scales of a row of `k` elements.
    pub fn scales(&self, k: usize) -> usize {
        k.div_ceil(self.group.max(1))
    }

    /// Checks dtype and group; the error says what is wrong.
    pub fn check(&self) -> std::result::Result<(), &'static str> {
        if !matches!(self.dtype, DType::I8 | DType::I6 | DType::I4) {
            return Err("i8, i6 and i4 are supported");
        }
        if self.group == 0 || !self.group.is_multiple_of(16) || self.group > 1 << 16 {
            return Err("a group must be a multiple of 16, at most 65536");
        }
        Ok(())
    }

    /// Values of a row of stored words, `code × scale`, as many as `out` takes; zeros where the row is shorter.
    pub fn dequantise(&self, words: &[u8], scales: &[f16], out: &mut [f32]) {
        if words.len() < self.dtype.row_bytes(out.len()) {
            return out.fill(0.0);
        }
        for (g, part) in out.chunks_mut(self.group.max(1)).enumerate() {
            let scale = scales.get(g).map_or(0.0, |s| s.to_f32());
            for (i, value) in part.iter_mut().enumerate() {
                *value = code_at(self.dtype, words, g * self.group + i) as f32 * scale;
            }
        }
    }
}

/// Which parts of a model are stored in groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantized {
    /// Dense matrices of the layers.
    pub projections: Option<Groups>,
    /// Token embedding; where it is tied, this is the head too.
    pub embedding: Option<Groups>,
    /// Head of its own.
    pub head: Option<Groups>,
}

impl Quantized {
    /// Key in `config.json`.
    pub const KEY: &'static str = "tritter";

    /// How a tensor is stored, if in groups.
    pub fn of(&self, spec: &TensorSpec) -> Option<Groups> {
        match spec.kind {
            Kind::Embedding => self.embedding,
            Kind::Linear { ternary: false } if spec.name == "lm_head.weight" => self.head,
            Kind::Linear { ternary: false } => self.projections,
            _ => None,
        }
    }

    /// What of a model's tensors a source has in groups: parts all of whose tensors have the same.
    pub fn found(source: &dyn Source, config: &Config) -> Result<Self> {
        let all = Some(Groups { dtype: DType::I8, group: 16 });
        let parts = Quantized { projections: all, embedding: all, head: all };
        let (mut found, mut seen) = (Quantized::default(), [false; 3]);
        for spec in config.tensors().iter().filter(|spec| parts.of(spec).is_some()) {
            let (part, seen) = match spec.kind {
                Kind::Embedding => (&mut found.embedding, &mut seen[0]),
                _ if spec.name == "lm_head.weight" => (&mut found.head, &mut seen[1]),
                _ => (&mut found.projections, &mut seen[2]),
            };
            let groups = match source.stored(spec)? {
                Stored::Groups(groups) => Some(groups),
                _ => None,
            };
            *part = if *seen { part.filter(|part| Some(*part) == groups) } else { groups };
            *seen = true;
        }
        Ok(found)
    }

    /// Reads the key of a parsed `config.json`; without it nothing is stored in groups.
    pub fn from_json(file: &Path, json: &Value) -> Result<Self> {
        let Some(fields) = Fields::new(file, "", json)?.object(Self::KEY)? else {
            return Ok(Self::default());
        };
        let part = |name: &str| -> Result<Option<Groups>> {
            let Some(part) = fields.object(name)? else { return Ok(None) };
            let dtype = part.text("dtype")?.and_then(DType::parse);
            let dtype = dtype.ok_or_else(|| part.error("dtype", "i8, i6 and i4 are supported"))?;
            let groups = Groups { dtype, group: part.required_size("group")? };
            groups.check().map_err(|problem| part.error("group", problem))?;
            Ok(Some(groups))
        };
        Ok(Quantized { projections: part("projections")?, embedding: part("embedding")?, head: part("head")? })
    }

    /// The key's value; `None` where nothing is stored in groups.
    pub fn to_json(&self) -> Option<Value> {
        let parts = [("projections", self.projections), ("embedding", self.embedding), ("head", self.head)];
        let mut map = Map::new();
        for (name, groups) in parts {
            if let Some(Groups { dtype, group }) = groups {
                map.insert(name.to_owned(), json!({ "dtype": dtype.name(), "group": group }));
            }
        }
        (!map.is_empty()).then_some(Value::Object(map))
    }
}

/// Name of the scales of a tensor in groups.
pub fn scales_name(tensor: &str) -> String {
    format!("{tensor}_scales")
}

/// Refuses scales that are not finite. Zero is that of a group of zeros; negative ones occur, since the
/// value of largest magnitude gets the code at the end of the range that reaches further.
pub(crate) fn check_scales(path: &Path, name: &str, scales: &[f16]) -> Result<()> {
    match scales.iter().position(|s| !s.is_finite()) {
        None => Ok(()),
        Some(at) => {
            Err(Error::tensor(path, name, format!("holds {} at element {at}; the file is damaged", scales[at])))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tritter_runtime::dtype::Spec;
    use tritter_runtime::layout::quantize_groups;
    use tritter_runtime::random::Random;
    use tritter_runtime::reference;

    #[test]
    fn values_are_those_of_the_runtime() {
        let mut random = Random::new(4);
        for dtype in [DType::I8, DType::I6, DType::I4] {
            for (k, group) in [(16, 16), (83, 32), (200, 64)] {
                let groups = Groups { dtype, group };
                let values: Vec<f32> = (0..k).map(|_| random.normal() as f32).collect();
                let mut words = vec![0u32; dtype.row_bytes(k) / 4];
                let mut scales = vec![f16::ZERO; groups.scales(k)];
                quantize_groups(dtype, &values, k, group, &mut words, &mut scales);
                let mut found = vec![0.0; k];
                groups.dequantise(bytemuck::cast_slice(&words), &scales, &mut found);
                let codes = reference::decode(&Spec::new([1, k], dtype), &words);
                for (i, (found, code)) in found.iter().zip(codes).enumerate() {
                    assert_eq!(*found, code as f32 * scales[i / group].to_f32(), "{dtype} {i} of {k}");
                }
            }
        }
    }

    #[test]
    fn the_description_reads_back_and_faults_are_named() {
        let file = Path::new("folder/config.json");
        let i8 = Some(Groups { dtype: DType::I8, group: 64 });
        let some = Quantized { projections: Some(Groups { dtype: DType::I4, group: 32 }), embedding: i8, head: None };
        let json = json!({ "tritter": some.to_json() });
        assert_eq!(Quantized::from_json(file, &json).unwrap(), some);
        assert_eq!(Quantized::from_json(file, &json!({})).unwrap(), Quantized::default());
        for (part, field) in [
            (json!({ "dtype": "i5", "group": 64 }), "tritter.head.dtype"),
            (json!({ "dtype": "t2", "group": 64 }), "tritter.head.group"),
            (json!({ "dtype": "i8", "group": 24 }), "tritter.head.group"),
            (json!({ "dtype": "i8", "group": 0 }), "tritter.head.group"),
            (json!({ "dtype": "i8" }), "tritter.head.group"),
            (json!(3), "tritter.head"),
        ] {
            let message = Quantized::from_json(file, &json!({ "tritter": { "head": part } })).unwrap_err().to_string();
            assert!(message.contains(field) && message.contains("folder/config.json"), "{message}");
        }
    }
}
