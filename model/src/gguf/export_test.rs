#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::{LinearClass, Quantization};
use crate::gguf::config::read_config;
use crate::gguf::import::import;
use crate::gguf::source::FromGguf;
use crate::gguf::{Gguf, matrix};
use crate::presets::preset;
use crate::score::Scorer;
use crate::seeded::Synthetic;
use crate::source::{FromCheckpoint, Stored, rows, width};
use crate::tensors::Checkpoint;
use crate::weights::{Form, Model};
use std::path::PathBuf;
use tempfile::tempdir;
use tritter_runtime::{DType, cpu};

const TERNARY: [TensorType; 6] =
    [TensorType::I2S, TensorType::Tq1_0, TensorType::Tq2_0, TensorType::Q2_0, TensorType::Q2_0G128, TensorType::Pq2_0];

fn offline() -> Quantization {
    Quantization::Offline { linear_class: LinearClass::AutoBitLinear }
}

/// A ternary model whose widths are multiples of 256.
fn wide(family: Family) -> Config {
    let mut config = preset("test").unwrap().config(family, Some(300), Some(64));
    (config.hidden_size, config.intermediate_size, config.num_layers) = (256, 512, 2);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (4, 2, 64);
    config.quantization = offline();
    config.validate().unwrap();
    config
}

fn golden(name: &str) -> (Config, Checkpoint) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    (Config::load(&folder).unwrap(), Checkpoint::open(&folder).unwrap())
}

/// Everything a source holds, codes unpacked.
fn content(config: &Config, source: &dyn Source) -> Vec<(String, Option<f32>, Vec<f32>)> {
    let tensors = config.tensors();
    let one = |spec: &TensorSpec| {
        let (n, k) = (rows(spec), width(spec));
        let scale = match source.stored(spec).unwrap() {
            Stored::Ternary { scale } => Some(scale),
            _ => None,
        };
        let mut values = vec![0.0; n * k];
        if scale.is_some() {
            let mut words = vec![0; n * row_words(k)];
            source.codes(spec, 0, &mut words).unwrap();
            for (words, values) in words.chunks(row_words(k)).zip(values.chunks_mut(k)) {
                crate::packed::dequantise_row(words, 1.0, values);
            }
        } else {
            source.floats(spec, 0, &mut values).unwrap();
        }
        (spec.name.clone(), scale, values)
    };
    tensors.iter().map(one).collect()
}

/// Writes a model and opens it again.
fn through(config: &Config, source: &dyn Source, weights: TensorType) -> (Gguf, Report) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let report = export(&path, config, source, Types::new(weights, TensorType::F32), Vec::new()).unwrap();
    (Gguf::from_bytes(std::fs::read(&path).unwrap()).unwrap(), report)
}

#[test]
fn every_type_returns_the_codes_and_all_else_exactly() {
    for family in [Family::Bitnet, Family::Llama] {
        let config = wide(family);
        let source = Synthetic::new(&config, 4, DType::F32);
        let expected = content(&config, &source);
        for weights in TERNARY.into_iter().chain([TensorType::F32, TensorType::F16]) {
            let (gguf, report) = through(&config, &source, weights);
            assert_eq!(report.as_f32, [], "{weights:?}");
            assert_eq!(read_config(&gguf).unwrap(), config, "{weights:?}");
            let exact = matches!(weights, TensorType::I2S | TensorType::F32);
            assert_eq!(report.scale_change == 0.0, exact, "{weights:?}: {}", report.scale_change);
            assert!(report.scale_change <= 1.0 / 2048.0, "{weights:?}");
            let found = content(&config, &FromGguf::new(&gguf, &config).unwrap());
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!((&found.0, &found.2), (&expected.0, &expected.2), "{weights:?}");
                let kept = |s: f32| if exact { s } else { f16::from_f32(s).to_f32() };
                assert_eq!(found.1, expected.1.map(kept), "{weights:?}: {}", found.0);
            }
        }
    }
}

#[test]
fn golden_folders_go_there_and_back_with_equal_codes_and_logits() {
    for name in ["bitnet_packed", "llama_bitlinear_packed"] {
        let (config, checkpoint) = golden(name);
        let source = FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization };
        let expected = content(&config, &source);
        for weights in TERNARY {
            let (gguf, report) = through(&config, &source, weights);
            // Widths of 96 and 64 fit no block of 128 or 256; the fallback names tensor and reason.
            let (first, reason) = &report.as_f32[0];
            assert!(first.starts_with("blk.0.") && reason.contains("multiples of"), "{first}: {reason}");
            let folder = tempdir().unwrap();
            let back = import(&gguf, folder.path()).unwrap();
            assert_eq!(back, Config { quantization: offline(), ..config.clone() });
            assert_eq!(Config::load(folder.path()).unwrap(), back);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let again = FromCheckpoint { checkpoint: &checkpoint, quantization: back.quantization };
            let found = content(&back, &again);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!((&found.0, &found.2), (&expected.0, &expected.2), "{name}, {weights:?}");
                if let (Some(a), Some(b)) = (found.1, expected.1) {
                    assert!((a - b).abs() <= b / 2048.0, "{name}, {weights:?}: {a} for {b}");
                }
            }
            if weights == TensorType::I2S {
                let (a, b) = (logits(&config, &source), logits(&back, &again));
                let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-4, "{name}: {worst}");
            }
        }
    }
}

fn logits(config: &Config, source: &dyn Source) -> Vec<f32> {
    let device = cpu::open();
    let model = Model::new(config, Form::Run, 16);
    model.load(&device, source).unwrap();
    let ids: Vec<u32> = (0..16).map(|i| i * 31 % 512).collect();
    Scorer::new(&device, &model, 16, false).unwrap().run(&ids, 1).unwrap()
}

#[test]
fn dense_models_keep_biases_heads_and_rotary_frequencies() {
    for name in ["llama3", "llama_tied_bias"] {
        let (config, checkpoint) = golden(name);
        let source = FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization };
        let (gguf, _) = through(&config, &source, TensorType::F32);
        assert_eq!(read_config(&gguf).unwrap(), config, "{name}");
        assert_eq!(content(&config, &FromGguf::new(&gguf, &config).unwrap()), content(&config, &source), "{name}");
        let refused = export(Path::new("x"), &config, &source, types(TensorType::I2S), Vec::new());
        assert!(refused.unwrap_err().to_string().contains("only a ternary model"));
    }
}

fn types(weights: TensorType) -> Types {
    Types::new(weights, TensorType::F32)
}

#[test]
fn masters_are_written_as_the_codes_that_run() {
    let (config, checkpoint) = golden("bitnet_online");
    let source = FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization };
    let (gguf, _) = through(&config, &source, TensorType::I2S);
    let back = read_config(&gguf).unwrap();
    assert_eq!(back, Config { quantization: offline(), ..config.clone() });
    let read = FromGguf::new(&gguf, &back).unwrap();
    for spec in config.tensors().into_iter().filter(|s| s.kind == (Kind::Linear { ternary: true })) {
        let masters = Codes::new(&source, &spec).unwrap();
        let mut words = [0, 1].map(|_| vec![0; rows(&spec) * row_words(width(&spec))]);
        masters.read(0, &mut words[0]).unwrap();
        read.codes(&spec, 0, &mut words[1]).unwrap();
        assert_eq!(words[0], words[1], "{}", spec.name);
        assert_eq!(read.stored(&spec).unwrap(), Stored::Ternary { scale: masters.scale }, "{}", spec.name);
    }
}

#[test]
fn the_llama_architecture_interleaves_heads_and_bitnet_does_not() {
    for (family, second) in [(Family::Llama, 32), (Family::Bitnet, 1)] {
        let config = wide(family);
        let source = Synthetic::new(&config, 9, DType::F32);
        let (gguf, _) = through(&config, &source, TensorType::F32);
        let spec = config.layer_tensors(0).into_iter().find(|s| s.name.ends_with("q_proj.weight")).unwrap();
        let mut row = vec![0.0; 256];
        source.floats(&spec, second, &mut row).unwrap();
        let bytes = gguf.bytes(gguf.tensor("blk.0.attn_q.weight").unwrap()).unwrap();
        let stored: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[1024..2048]);
        assert_eq!(stored, row, "{family:?}");
    }
}

#[test]
fn what_a_type_cannot_hold_is_refused_by_name() {
    let config = wide(Family::Bitnet);
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let loud = Scaled { inner: Synthetic::new(&config, 1, DType::F32), scale: 1e6 };
    let message = export(&path, &config, &loud, types(TensorType::Tq2_0), Vec::new()).unwrap_err().to_string();
    assert!(message.contains("q_proj") || message.contains("attn_q"), "{message}");
    assert!(message.contains("outside f16"), "{message}");
    export(&path, &config, &loud, types(TensorType::I2S), Vec::new()).unwrap();
    let ours = Config { family: Family::Tritter, ..config };
    let source = Synthetic::new(&ours, 1, DType::F32);
    let message = export(&path, &ours, &source, types(TensorType::I2S), Vec::new()).unwrap_err().to_string();
    assert!(message.contains("tritter"), "{message}");
}

/// Weights with another scale.
struct Scaled {
    inner: Synthetic,
    scale: f32,
}

impl Source for Scaled {
    fn stored(&self, spec: &TensorSpec) -> Result<Stored> {
        Ok(match self.inner.stored(spec)? {
            Stored::Ternary { .. } => Stored::Ternary { scale: self.scale },
            other => other,
        })
    }

    fn floats(&self, spec: &TensorSpec, first: usize, out: &mut [f32]) -> Result<()> {
        self.inner.floats(spec, first, out)
    }

    fn codes(&self, spec: &TensorSpec, first: usize, out: &mut [u32]) -> Result<()> {
        self.inner.codes(spec, first, out)
    }
}

/// A small model in a file of that type, for tests of what is read from it.
pub(in crate::gguf) fn small_file(family: Family, weights: TensorType) -> Vec<u8> {
    let mut config = wide(family);
    (config.num_layers, config.vocab_size) = (1, 16);
    let source = Synthetic::new(&config, 2, DType::F32);
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    export(&path, &config, &source, types(weights), Vec::new()).unwrap();
    std::fs::read(&path).unwrap()
}

#[test]
fn equal_models_give_equal_files() {
    let bytes = small_file(Family::Bitnet, TensorType::Tq1_0);
    assert_eq!(bytes, small_file(Family::Bitnet, TensorType::Tq1_0));
    let gguf = Gguf::from_bytes(bytes).unwrap();
    let spec = read_config(&gguf).unwrap().layer_tensors(0)[1].clone();
    let matrix = matrix::Matrix::of(&gguf, &spec, RowOrder::Same).unwrap();
    assert_eq!((matrix.rows, matrix.width), (256, 256));
}
