//! Writing models as Hugging Face folders: from a [`Source`], in any of the forms that are read, in one
//! file or in shards; and the masters of a model that is being trained.
//!
//! Chunks of a few hundred thousand elements are made by all threads and written in order, so memory in
//! use is some megabytes whatever the size of the model, and files depend on nothing but the arguments.

use crate::config::{Config, LinearClass, Quantization};
use crate::error::{BoxError, Error, Result};
use crate::online::{Codes, finite};
use crate::packed::{pack_rows, row_words};
use crate::quantized::{Groups, Quantized, scales_name};
use crate::source::{Source, Stored, rows, width};
use crate::tensor_names::{Kind, TensorSpec, scale_name};
use crate::tensor_write::{PendingFile, TensorHeader, prepare_safetensors, write_atomic};
use crate::tensors::{Dtype, INDEX_FILE, SINGLE_FILE};
use crate::weights::Model;
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use tritter_runtime::layout::quantize_groups;
use tritter_runtime::{DType, Device, Tensor};

/// Elements that one thread makes at a time, about.
const CHUNK: usize = 1 << 19;

/// How scales and float tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// f32: a packed model gives the same logits as its master.
    F32,
    /// bf16, as in the released 2B-4T checkpoint: smaller, and logits change.
    Bf16,
    /// f16.
    F16,
}

impl Floats {
    /// The element type in the file.
    pub fn dtype(self) -> Dtype {
        match self {
            Floats::F32 => Dtype::F32,
            Floats::Bf16 => Dtype::BF16,
            Floats::F16 => Dtype::F16,
        }
    }

    /// Little-endian bytes of values, rounded to nearest.
    pub(crate) fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Floats::F32 => bytemuck::cast_slice(values).to_vec(),
            Floats::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Floats::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        }
    }
}

/// How a folder is written.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Element type of scales and floats.
    pub floats: Floats,
    /// Bytes after which another shard begins; `None` writes one file.
    pub shard: Option<u64>,
}

/// Writes `config.json`.
pub fn write_config(folder: &Path, config: &Config) -> Result<()> {
    write_json(&folder.join("config.json"), &config.to_json())
}

pub(crate) fn write_json(path: &Path, json: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(json);
    let text = text.map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    write_atomic(path, format!("{text}\n").as_bytes())
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
        device.read_in_pieces(&parameters[i], &mut |piece| Ok(file.write_all(piece)?))
    })
}

/// The config of a model's packed form.
pub fn packed_config(config: &Config) -> Config {
    let linear_class = LinearClass::AutoBitLinear;
    Config { quantization: Quantization::Offline { linear_class }, ..config.clone() }
}

/// What is written of a tensor.
pub(crate) enum Content {
    /// Values as floats; of codes, code × scale.
    Floats(TensorSpec, Floats),
    /// Four codes to a byte.
    Packed(TensorSpec),
    /// Stored words of groups of integers.
    Codes(TensorSpec, Groups),
    /// Their scales.
    Scales(TensorSpec, Groups),
    /// Something small, ready to be written.
    Ready(Vec<u8>),
}

/// A tensor to be written.
pub(crate) struct Item {
    pub(crate) header: TensorHeader,
    pub(crate) content: Content,
}

impl Item {
    pub(crate) fn floats(spec: TensorSpec, floats: Floats) -> Item {
        let header = TensorHeader { name: spec.name.clone(), dtype: floats.dtype(), shape: spec.shape.clone() };
        Item { header, content: Content::Floats(spec, floats) }
    }

    /// Codes and scales of a matrix in groups.
    pub(crate) fn groups(spec: TensorSpec, groups: Groups) -> [Item; 2] {
        let (n, k) = (rows(&spec), width(&spec));
        let dtype = if groups.dtype == DType::I8 { Dtype::I8 } else { Dtype::U8 };
        let header = |name, dtype, columns| TensorHeader { name, dtype, shape: vec![n, columns] };
        let codes = header(spec.name.clone(), dtype, groups.dtype.row_bytes(k));
        let scales = header(scales_name(&spec.name), Dtype::F16, groups.scales(k));
        [
            Item { header: codes, content: Content::Codes(spec.clone(), groups) },
            Item { header: scales, content: Content::Scales(spec, groups) },
        ]
    }

    fn bytes(&self) -> u64 {
        let bits =
            self.header.shape.iter().fold(self.header.dtype.bitsize() as u64, |n, &size| n.saturating_mul(size as u64));
        bits / 8
    }
}

/// Writes weights and `config.json` of the form that `config` states: with an offline quantisation
/// ternary matrices are packed, with their scales in the convention of its linear class (masters are made
/// ternary on the way); otherwise everything is float, ternary matrices as code × scale. Masters cannot be
/// recovered from codes: the absmean of code × scale differs from the scale (zeros count), so a config
/// that is `online` gives another model where the source holds codes.
pub fn write_folder(folder: &Path, config: &Config, source: &dyn Source, layout: Layout) -> Result<()> {
    config.validate_from(&folder.join("config.json"))?;
    let (mut items, quantized) = (Vec::new(), Quantized::found(source, config)?);
    for spec in config.tensors() {
        match (config.quantization, spec.kind, quantized.of(&spec)) {
            (Quantization::Offline { linear_class }, Kind::Linear { ternary: true }, _) => {
                packed_items(spec, linear_class, source, layout.floats, &mut items)?;
            }
            (.., Some(groups)) => items.extend(Item::groups(spec, groups)),
            _ => items.push(Item::floats(spec, layout.floats)),
        }
    }
    write_items(folder, &items, source, layout.shard)?;
    write_json(&folder.join("config.json"), &config_json(config, layout.floats, &quantized))
}

/// `config.json` that states the floats' type and what is in groups of integers.
pub(crate) fn config_json(config: &Config, floats: Floats, quantized: &Quantized) -> Value {
    let mut json = config.to_json();
    json["dtype"] = json!(match floats {
        Floats::F32 => "float32",
        Floats::Bf16 => "bfloat16",
        Floats::F16 => "float16",
    });
    if let Some(description) = quantized.to_json() {
        json[Quantized::KEY] = description;
    }
    json
}

pub(crate) fn packed_items(
    spec: TensorSpec,
    class: LinearClass,
    source: &dyn Source,
    floats: Floats,
    items: &mut Vec<Item>,
) -> Result<()> {
    let scale = Codes::new(source, &spec)?.scale;
    let stored = match class {
        LinearClass::AutoBitLinear => scale,
        LinearClass::BitLinear => 1.0 / scale,
    };
    let header = TensorHeader { name: scale_name(&spec.name), dtype: floats.dtype(), shape: vec![1] };
    let scale = Item { header, content: Content::Ready(floats.bytes(&[stored])) };
    let shape = vec![rows(&spec) / 4, width(&spec)];
    let header = TensorHeader { name: spec.name.clone(), dtype: Dtype::U8, shape };
    items.extend([Item { header, content: Content::Packed(spec) }, scale]);
    Ok(())
}

/// Writes tensors as one file, or as shards with their index.
pub(crate) fn write_items(folder: &Path, items: &[Item], source: &dyn Source, shard: Option<u64>) -> Result<()> {
    let shards = shards(items, shard);
    if let [all] = &shards[..] {
        return prepare(&folder.join(SINGLE_FILE), &items[all.clone()], source)?.commit();
    }
    let mut places = serde_json::Map::new();
    for (i, part) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        prepare(&folder.join(&name), &items[part.clone()], source)?.commit()?;
        places.extend(items[part.clone()].iter().map(|item| (item.header.name.clone(), json!(name))));
    }
    let total: u64 = items.iter().map(Item::bytes).sum();
    write_json(&folder.join(INDEX_FILE), &json!({ "metadata": { "total_size": total }, "weight_map": places }))
}

/// Which tensors stand together; a scale is never parted from its codes, so neither is ever alone.
fn shards(items: &[Item], most: Option<u64>) -> Vec<std::ops::Range<usize>> {
    let (mut all, mut first, mut size) = (Vec::new(), 0, 0u64);
    for (i, item) in items.iter().enumerate() {
        let small = matches!(item.content, Content::Ready(_));
        if size > 0 && !small && most.is_some_and(|most| size + item.bytes() > most) {
            all.push(first..i);
            (first, size) = (i, 0);
        }
        size += item.bytes();
    }
    all.push(first..items.len());
    all
}

fn prepare(path: &Path, items: &[Item], source: &dyn Source) -> Result<PendingFile> {
    let headers: Vec<_> = items.iter().map(|item| item.header.clone()).collect();
    prepare_safetensors(path, &headers, &BTreeMap::new(), &mut |i, file| match &items[i].content {
        Content::Ready(bytes) => Ok(file.write_all(bytes)?),
        Content::Floats(spec, floats) => {
            let k = width(spec);
            in_order(rows(spec), CHUNK / k, file, |first, count| {
                let mut values = vec![0.0; count * k];
                source.floats(spec, first, &mut values)?;
                source.release(spec, first..first + count);
                Ok(floats.bytes(&values))
            })
        }
        Content::Codes(spec, groups) => in_order(rows(spec), CHUNK / width(spec), file, |first, count| {
            Ok(bytemuck::cast_slice(&quantised(source, spec, *groups, first, count)?.0).to_vec())
        }),
        Content::Scales(spec, groups) => in_order(rows(spec), CHUNK / width(spec), file, |first, count| {
            let scales = quantised(source, spec, *groups, first, count)?.1;
            source.release(spec, first..first + count);
            Ok(scales.iter().flat_map(|s| s.to_le_bytes()).collect())
        }),
        Content::Packed(spec) => {
            let matrix = Codes::new(source, spec)?;
            let (quarter, k, words) = (rows(spec) / 4, width(spec), row_words(width(spec)));
            in_order(quarter, CHUNK / 4 / k, file, |first, count| {
                let read = |place: usize| {
                    let mut codes = vec![0; count * words];
                    matrix.read(place * quarter + first, &mut codes).map(|()| codes)
                };
                let parts = [read(0)?, read(1)?, read(2)?, read(3)?];
                let mut bytes = vec![0; count * k];
                for (row, bytes) in bytes.chunks_mut(k).enumerate() {
                    pack_rows([0, 1, 2, 3].map(|place: usize| &parts[place][row * words..(row + 1) * words]), bytes);
                }
                Ok(bytes)
            })?;
            source.release(spec, 0..rows(spec));
            Ok(())
        }
    })
}

/// Stored words and scales of rows: the source's own where it has the same groups.
pub(crate) fn quantised(
    source: &dyn Source,
    spec: &TensorSpec,
    groups: Groups,
    first: usize,
    count: usize,
) -> Result<(Vec<u32>, Vec<f16>)> {
    if source.stored(spec)? == Stored::Groups(groups) {
        let found = source.groups(spec, first..first + count)?;
        return Ok((bytemuck::pod_collect_to_vec(&found.codes), found.scales));
    }
    let k = width(spec);
    let mut values = vec![0.0; count * k];
    source.floats(spec, first, &mut values)?;
    finite(spec, first * k, &values)?;
    let mut words = vec![0; count * groups.dtype.row_bytes(k) / 4];
    let mut scales = vec![f16::ZERO; count * groups.scales(k)];
    quantize_groups(groups.dtype, &values, k, groups.group, &mut words, &mut scales);
    match scales.iter().position(|s| !s.is_finite()) {
        None => Ok((words, scales)),
        Some(_) => {
            let problem = "has values too large for a scale in f16; it cannot be stored in groups of integers";
            Err(Error::tensor(Path::new("weights"), &spec.name, problem))
        }
    }
}

/// Makes the bytes of `most` rows at a time on all threads, `make(first, count)`, and writes them in order.
fn in_order(
    n: usize,
    most: usize,
    file: &mut dyn Write,
    make: impl Fn(usize, usize) -> Result<Vec<u8>> + Sync,
) -> Result<(), BoxError> {
    let most = most.max(1);
    // Two chunks a thread: while the last ones are made, few threads wait.
    let batch = most * 2 * rayon::current_num_threads();
    for begin in (0..n).step_by(batch) {
        let end = (begin + batch).min(n);
        let chunks = (0..(end - begin).div_ceil(most)).into_par_iter().map(|i| {
            let first = begin + i * most;
            make(first, most.min(end - first))
        });
        for bytes in chunks.collect::<Result<Vec<_>>>()? {
            file.write_all(&bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Family;
    use crate::presets::preset;
    use crate::quantize::{Job, Projections, write_quantized};
    use crate::seeded::Synthetic;
    use crate::source::FromCheckpoint;
    use crate::tensors::Checkpoint;

    #[test]
    fn groups_of_integers_stay_through_packing_and_unpacking() {
        let mut config = preset("test").unwrap().config(Family::Bitnet, Some(48), Some(64));
        (config.num_layers, config.quantization) = (1, Quantization::Online);
        let groups = Groups { dtype: DType::I6, group: 32 };
        let job = Job { projections: Projections::Keep, head: Some(groups), floats: Floats::F32 };
        let masters = Synthetic::new(&config, 3, DType::F32);
        let [first, packed, dense] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        write_quantized(first.path(), first.path(), &config, &masters, &job).unwrap();
        let open = |folder: &Path| (Checkpoint::open(folder).unwrap(), Config::load(folder).unwrap().quantization);
        let again = |from: &Path, to: &Path, config: &Config| {
            let (checkpoint, quantization) = open(from);
            let source = FromCheckpoint { checkpoint: &checkpoint, quantization };
            write_folder(to, config, &source, Layout { floats: Floats::F32, shard: None }).unwrap();
        };
        again(first.path(), packed.path(), &packed_config(&config));
        again(packed.path(), dense.path(), &Config { quantization: Quantization::None, ..config.clone() });
        let (before, _) = open(first.path());
        for folder in [&packed, &dense] {
            let (after, _) = open(folder.path());
            assert_eq!(after.quantized(), before.quantized());
            for name in ["model.embed_tokens.weight", "model.embed_tokens.weight_scales"] {
                let (a, b) = (before.get(name).unwrap(), after.get(name).unwrap());
                assert_eq!((a.dtype, a.bytes), (b.dtype, b.bytes), "{name}");
            }
        }
        let projection = "model.layers.0.mlp.up_proj.weight";
        assert_eq!(open(packed.path()).0.get(projection).unwrap().dtype, Dtype::U8, "four codes to a byte");
        assert_eq!(open(dense.path()).0.get(projection).unwrap().dtype, Dtype::F32);
    }
}
