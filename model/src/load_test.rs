//! Folders of every form that is read, written from random weights and loaded to the CPU; and damaged ones.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::{Config, Family, LinearClass, Quantization};
use crate::presets::preset;
use crate::quantize::{Job, Projections, write_quantized};
use crate::save::{Floats, Layout, write_folder};
use crate::seeded::Synthetic;
use crate::source::FromCheckpoint;
use crate::tensors::{Checkpoint, INDEX_FILE, SINGLE_FILE};
use crate::weights::{DenseFormat, Form, Formats};
use std::sync::atomic::AtomicUsize;
use tempfile::TempDir;
use tritter_runtime::reference;

const AUTO: Quantization = Quantization::Offline { linear_class: LinearClass::AutoBitLinear };
const DIVIDED: Quantization = Quantization::Offline { linear_class: LinearClass::BitLinear };
const DOWN: &str = "model.layers.1.mlp.down_proj.weight";

/// Small, with rows that fill neither words nor groups of 16.
fn small(family: Family, quantization: Quantization) -> Config {
    let mut config = preset("test").unwrap().config(family, Some(101), Some(64));
    (config.hidden_size, config.intermediate_size, config.num_layers) = (72, 136, 2);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (6, 2, 12);
    config.quantization = quantization;
    config
}

fn layout(floats: Floats) -> Layout {
    Layout { floats, shard: None }
}

fn written(config: &Config, source: &dyn Source, layout: Layout) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), config, source, layout).unwrap();
    folder
}

/// Every layout that a device may ask for is filled with the same weights, whatever form they come from.
#[test]
fn every_format_holds_the_same_weights() {
    let (ternary, dense) = (small(Family::Bitnet, AUTO), small(Family::Llama, Quantization::None));
    let wide = Config { hidden_size: 192, head_dim: 32, intermediate_size: 320, ..ternary.clone() };
    for config in [&ternary, &wide] {
        let source = Synthetic::new(config, 4, DType::Bf16);
        let folder = written(config, &source, layout(Floats::Bf16));
        let expected = ternary_values(config, &source);
        for dtype in [DType::T2, DType::T1, DType::T2x16, DType::T1x16] {
            for table in [DenseFormat::F32, DenseFormat::floats(DType::Bf16), DenseFormat::floats(DType::F16)] {
                let formats = Formats { ternary: dtype, table, ..Formats::PLAIN };
                let loaded = load_as(folder.path(), formats).unwrap();
                assert_eq!(loaded.ternary(), expected, "{dtype}");
                // What bf16 holds of these is in the range of f16 but for the last bits of small values.
                loaded.near(&source, if table.dtype == DType::F16 { 1e-7 } else { 0.0 });
            }
        }
    }
    let source = Synthetic::new(&dense, 4, DType::F32);
    let folder = written(&dense, &source, layout(Floats::F32));
    for (dtype, step) in [(DType::I8, 0.035 / 127.0), (DType::I6, 0.035 / 32.0), (DType::I4, 0.035 / 8.0)] {
        let format = DenseFormat::groups(dtype, 32);
        let formats = Formats { table: format, dense: format, ..Formats::PLAIN };
        load_as(folder.path(), formats).unwrap().near(&source, 1.1 * step);
    }
}

/// Groups that a folder stores are what the device gets, bit for bit.
#[test]
fn stored_groups_are_passed_on_as_they_are() {
    let config = small(Family::Llama, Quantization::None);
    let source = Synthetic::new(&config, 4, DType::F32);
    let plain = written(&config, &source, layout(Floats::F32));
    let folder = tempfile::tempdir().unwrap();
    let groups = |dtype| Groups { dtype, group: 32 };
    let job =
        Job { projections: Projections::Groups(groups(DType::I4)), head: Some(groups(DType::I6)), floats: Floats::F32 };
    write_quantized(plain.path(), folder.path(), &config, &source, &job).unwrap();
    let formats = Formats {
        table: DenseFormat::groups(DType::I6, 32),
        dense: DenseFormat::groups(DType::I4, 32),
        ..Formats::PLAIN
    };
    let [made, stored] = [plain, folder].map(|folder| load_as(folder.path(), formats).unwrap().values());
    assert_eq!(made, stored);
}

struct Loaded {
    device: Device,
    model: Model,
}

fn load(folder: &Path) -> Result<Loaded> {
    load_as(folder, Formats::PLAIN)
}

fn load_as(folder: &Path, formats: Formats) -> Result<Loaded> {
    let config = Config::load(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    checkpoint.check(&config)?;
    let device = tritter_runtime::cpu::open();
    let model = Model::with_formats(&config, Form::Run, formats, 16);
    model.load(&device, &FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization })?;
    Ok(Loaded { device, model })
}

impl Loaded {
    /// Every weight as the device computes with it: codes and scales, or values.
    fn values(&self) -> Vec<(String, Vec<f64>)> {
        let value = |t: &Tensor| {
            let words: Vec<u32> = self.device.read(t).unwrap();
            (t.name().to_owned(), reference::decode(t.spec(), &words))
        };
        self.model.tensors().iter().map(value).collect()
    }

    /// Holds embedding, head and dense projections to a source's values.
    fn near(&self, source: &dyn Source, most: f64) {
        let specs: HashMap<String, TensorSpec> =
            self.model.config.tensors().into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        for dense in self.model.dense_matrices() {
            let spec = &specs[dense.values.name()];
            let mut expected = vec![0.0; rows(spec) * width(spec)];
            source.floats(spec, 0, &mut expected).unwrap();
            let read = |t: &Tensor| reference::decode(t.spec(), &self.device.read::<u32>(t).unwrap());
            let (values, scales) = (read(&dense.values), dense.scales.as_ref().map(read));
            let group = dense.group.max(1);
            for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
                let (row, column) = (i / width(spec), i % width(spec));
                let scale = scales.as_ref().map_or(1.0, |s| s[row * width(spec).div_ceil(group) + column / group]);
                let error = (value * scale - f64::from(expected)).abs();
                assert!(error <= most, "{} {i}: {error} of {most}", spec.name);
            }
        }
    }

    /// Scale and codes of every ternary matrix.
    fn ternary(&self) -> HashMap<String, (f32, Vec<f64>)> {
        let value = |part: &Ternary| {
            let scales: Vec<f32> = self.device.read(&part.scales).unwrap();
            let words: Vec<u32> = self.device.read(&part.codes).unwrap();
            let (k, all) = (part.codes.spec().cols(), reference::decode(part.codes.spec(), &words));
            let codes = all[part.first * k..(part.first + part.rows) * k].to_vec();
            (part.name.clone(), (scales[part.index], codes))
        };
        self.model.ternary_matrices().map(value).collect()
    }
}

/// Codes and scales of the ternary matrices of a source.
fn ternary_values(config: &Config, source: &dyn Source) -> HashMap<String, (f32, Vec<f64>)> {
    let specs = config.tensors().into_iter().filter(|s| s.kind == crate::tensor_names::Kind::Linear { ternary: true });
    let value = |spec: TensorSpec| {
        let mut words = vec![0; rows(&spec) * row_words(width(&spec))];
        let codes = Codes::new(source, &spec).unwrap();
        codes.read(0, &mut words).unwrap();
        let decoded = reference::decode(&tritter_runtime::dtype::Spec::new(spec.shape.clone(), DType::T2), &words);
        (spec.name.clone(), (codes.scale, decoded))
    };
    specs.map(value).collect()
}

#[test]
fn packed_folders_load_with_the_codes_and_scales_that_were_written() {
    for (family, quantization, shard) in [
        (Family::Bitnet, AUTO, None),
        (Family::Llama, DIVIDED, None),
        (Family::Tritter, AUTO, Some(4096)),
        (Family::Llama, AUTO, Some(1)),
    ] {
        let config = small(family, quantization);
        let source = Synthetic::new(&config, 11, DType::F32);
        let folder = written(&config, &source, Layout { floats: Floats::F32, shard });
        assert_eq!(folder.path().join(INDEX_FILE).exists(), shard.is_some());
        let found = load(folder.path()).unwrap().ternary();
        for (name, (scale, codes)) in ternary_values(&config, &source) {
            let (stored, read) = &found[&name];
            assert_eq!(*read, codes, "{family:?} {name}");
            assert!((stored / scale - 1.0).abs() < 2e-7, "{family:?} {name}: {stored} {scale}");
        }
    }
}

#[test]
fn masters_in_bf16_load_as_their_packed_form_does() {
    let online = small(Family::Bitnet, Quantization::Online);
    let source = Synthetic::new(&online, 12, DType::Bf16).with_masters();
    let masters = written(&online, &source, layout(Floats::Bf16));
    let packed = written(&Config { quantization: AUTO, ..online.clone() }, &source, layout(Floats::F32));
    let (masters, packed) = (load(masters.path()).unwrap(), load(packed.path()).unwrap());
    assert_eq!(masters.values(), packed.values());
}

#[test]
fn files_depend_neither_on_threads_nor_on_shards() {
    let config = small(Family::Bitnet, AUTO);
    let write = |threads: usize, shard| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let source = Synthetic::new(&config, 5, DType::Bf16);
        pool.install(|| written(&config, &source, Layout { floats: Floats::Bf16, shard }))
    };
    let (one, three) = (write(1, None), write(3, None));
    let bytes = |folder: &TempDir| std::fs::read(folder.path().join(SINGLE_FILE)).unwrap();
    assert_eq!(bytes(&one), bytes(&three));
    let sharded = load(write(2, Some(10_000)).path()).unwrap().values();
    assert_eq!(sharded, load(one.path()).unwrap().values());
}

#[test]
fn names_without_model_or_behind_a_prefix_are_found() {
    let config = small(Family::Llama, DIVIDED);
    let plain = written(&config, &Synthetic::new(&config, 2, DType::F32), layout(Floats::F32));
    let expected = load(plain.path()).unwrap().values();
    let renamed = |rename: &dyn Fn(&str) -> String| {
        let checkpoint = Checkpoint::open(plain.path()).unwrap();
        let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        let headers = names.iter().map(|name| {
            let view = checkpoint.get(name).unwrap();
            let (dtype, shape) = (view.dtype, view.shape.to_vec());
            crate::tensor_write::TensorHeader { name: rename(name), dtype, shape }
        });
        let headers: Vec<_> = headers.collect();
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(plain.path().join("config.json"), folder.path().join("config.json")).unwrap();
        let path = folder.path().join(SINGLE_FILE);
        let mut write = |i: usize, out: &mut dyn std::io::Write| Ok(out.write_all(checkpoint.get(&names[i])?.bytes)?);
        crate::tensor_write::write_safetensors(&path, &headers, &Default::default(), &mut write).unwrap();
        load(folder.path()).map(|loaded| loaded.values())
    };
    assert_eq!(renamed(&|name| name.strip_prefix("model.").unwrap_or(name).to_owned()).unwrap(), expected);
    assert_eq!(renamed(&|name| format!("language_model.{name}")).unwrap(), expected);
    let message = renamed(&|name| name.replace("layers.1", "layers.7")).unwrap_err().to_string();
    assert!(message.contains("layers.1") && message.contains("missing"), "{message}");
}

#[test]
fn groups_of_integers_load_as_their_values() {
    let config = small(Family::Llama, Quantization::None);
    let source = Synthetic::new(&config, 8, DType::F32);
    let original = written(&config, &source, layout(Floats::F32));
    let groups = |dtype| Groups { dtype, group: 32 };
    for (projections, head, most) in [
        (Projections::Groups(groups(DType::I8)), Some(groups(DType::I6)), 0.03),
        (Projections::Groups(groups(DType::I4)), Some(groups(DType::I8)), 0.12),
        (Projections::Keep, Some(groups(DType::I8)), 0.01),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let job = Job { projections, head, floats: Floats::F32 };
        let moved = write_quantized(original.path(), folder.path(), &config, &source, &job).unwrap();
        assert!(!moved.is_empty() && moved.iter().all(|m| m.error > 0.0 && m.error < most), "{moved:?}");
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        checkpoint.check(&config).unwrap();
        let stored = FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization };
        for spec in config.tensors() {
            let (mut before, mut after) =
                (vec![0.0; rows(&spec) * width(&spec)], vec![0.0; rows(&spec) * width(&spec)]);
            source.floats(&spec, 0, &mut before).unwrap();
            stored.floats(&spec, 0, &mut after).unwrap();
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let error = norm(&mut before.iter().zip(&after).map(|(a, b)| a - b)) / norm(&mut before.iter().copied());
            let said = moved.iter().find(|m| m.tensor == spec.name).map_or(0.0, |m| m.error);
            assert!((error - said).abs() < 1e-6, "{}: {error} {said}", spec.name);
        }
        load(folder.path()).unwrap();
    }
}

#[test]
fn a_ternary_model_keeps_its_codes_when_its_head_is_quantised() {
    let config = small(Family::Bitnet, AUTO);
    let source = Synthetic::new(&config, 8, DType::F32);
    let (folder, from) = (tempfile::tempdir().unwrap(), Path::new("from"));
    let head = Some(Groups { dtype: DType::I6, group: 16 });
    let job = Job { projections: Projections::Keep, head, floats: Floats::F32 };
    let moved = write_quantized(from, folder.path(), &config, &source, &job).unwrap();
    assert_eq!(moved.iter().map(|m| m.tensor.as_str()).collect::<Vec<_>>(), ["model.embed_tokens.weight"]);
    assert_eq!(load(folder.path()).unwrap().ternary(), ternary_values(&config, &source));
    for (projections, head) in [(Projections::Ternary, head), (Projections::Keep, None)] {
        let job = Job { projections, head, floats: Floats::F32 };
        let message = write_quantized(from, folder.path(), &config, &source, &job).unwrap_err().to_string();
        assert!(message.contains("quantised"), "{message}");
    }
}

/// Changes the bytes of one tensor in a folder.
fn damage(folder: &Path, tensor: &str, change: impl FnOnce(&mut [u8])) {
    let path = folder.join(SINGLE_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = |i: usize| 8 + header + json[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    change(&mut bytes[at(0)..at(1)]);
    std::fs::write(path, bytes).unwrap();
}

#[track_caller]
fn refused(folder: &Path, words: &[&str]) {
    let Err(error) = load(folder) else { unreachable!("a damaged folder was loaded; expected {words:?}") };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{message} lacks {word}");
    }
}

#[test]
fn damaged_codes_and_scales_are_named() {
    let scale = format!("{DOWN}_scale");
    for quantization in [AUTO, DIVIDED] {
        let config = small(Family::Llama, quantization);
        let whole = || written(&config, &Synthetic::new(&config, 1, DType::F32), layout(Floats::F32));
        for place in 0..4 {
            let folder = whole();
            damage(folder.path(), DOWN, |bytes| *bytes.last_mut().unwrap() |= 3 << (2 * place));
            refused(folder.path(), &[DOWN, "code 3"]);
        }
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45] {
            let folder = whole();
            damage(folder.path(), &scale, |bytes| bytes.copy_from_slice(&bad.to_le_bytes()));
            refused(folder.path(), &[&scale, "positive"]);
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (floats, bad) in
        [(Floats::F32, &[0, 0, 0x80, 0x7F][..]), (Floats::Bf16, &[0xC0, 0x7F]), (Floats::F16, &[0, 0x7C])]
    {
        let config = small(Family::Bitnet, Quantization::Online);
        let source = Synthetic::new(&config, 1, DType::F32).with_masters();
        for tensor in ["model.embed_tokens.weight", "model.norm.weight", DOWN] {
            let folder = written(&config, &source, layout(floats));
            damage(folder.path(), tensor, |bytes| bytes[5 * bad.len()..][..bad.len()].copy_from_slice(bad));
            refused(folder.path(), &[tensor, "at element 5"]);
        }
    }
}

#[test]
fn a_vocabulary_that_is_not_the_embeddings_is_named() {
    for tie in [true, false] {
        let config = Config { tie_embeddings: tie, ..small(Family::Llama, DIVIDED) };
        let folder = written(&config, &Synthetic::new(&config, 1, DType::F32), layout(Floats::Bf16));
        crate::save::write_config(folder.path(), &Config { vocab_size: 102, ..config }).unwrap();
        refused(folder.path(), &["model.embed_tokens.weight", "[101, 72]", "[102, 72]"]);
    }
}

#[test]
fn damaged_groups_are_named() {
    let config = small(Family::Llama, Quantization::None);
    let source = Synthetic::new(&config, 8, DType::F32);
    let groups = Groups { dtype: DType::I4, group: 32 };
    let job = Job { projections: Projections::Groups(groups), head: Some(groups), floats: Floats::F32 };
    let whole = || {
        let folder = tempfile::tempdir().unwrap();
        write_quantized(Path::new("from"), folder.path(), &config, &source, &job).unwrap();
        folder
    };
    let scales = format!("{DOWN}_scales");
    let folder = whole();
    damage(folder.path(), &scales, |bytes| bytes[4..6].copy_from_slice(&[0, 0x7E]));
    refused(folder.path(), &[&scales, "NaN at element 2"]);
    let edit = |change: &dyn Fn(&mut serde_json::Value)| {
        let folder = whole();
        let path = folder.path().join("config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut json["tritter"]["projections"]);
        std::fs::write(&path, json.to_string()).unwrap();
        folder
    };
    refused(edit(&|part| part["group"] = 64.into()).path(), &["_scales", "has shape"]);
    refused(edit(&|part| part["dtype"] = "i8".into()).path(), &["q_proj.weight", "dtype"]);
    refused(edit(&|part| part["dtype"] = "i3".into()).path(), &["tritter.projections.dtype"]);
    refused(edit(&|part| *part = serde_json::Value::Null).path(), &["q_proj.weight", "dtype U8"]);
}

#[test]
fn loading_stops_when_it_is_told_to_and_tells_how_far_it_is() {
    let config = small(Family::Bitnet, AUTO);
    let source = Synthetic::new(&config, 1, DType::F32);
    let device = tritter_runtime::cpu::open();
    let model = Model::new(&config, Form::Run, 16);
    let calls = AtomicUsize::new(0);
    let stop = model.load_with(&device, &source, &|_, _| match calls.fetch_add(1, Ordering::Relaxed) {
        0..3 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(matches!(stop, Err(Error::Stopped)), "{stop:?}");
    let most = AtomicU64::new(0);
    let again = Model::new(&config, Form::Run, 16);
    let watch = |done, total| {
        assert_eq!(total, again.bytes());
        most.fetch_max(done, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    again.load_with(&device, &source, &watch).unwrap();
    // RoPE tables and scales are not counted one by one.
    let most = most.load(Ordering::Relaxed);
    assert!(most <= again.bytes() && most * 10 > again.bytes() * 9, "{most} of {}", again.bytes());
}
