//! Rotary rules and windows of GGUF files: what goes there and back, and what is refused.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::{Family, Quantization};
use crate::gguf::config::read_config;
use crate::gguf::export::{Types, export};
use crate::gguf::import::import;
use crate::gguf::source::FromGguf;
use crate::presets::preset;
use crate::score::Scorer;
use crate::seeded::Synthetic;
use crate::source::{FromCheckpoint, Source};
use crate::tensors::Checkpoint;
use crate::weights::{Form, Model};
use std::path::Path;
use tempfile::tempdir;
use tritter_runtime::{DType, cpu};

/// A dense model of one layer and 64 positions.
fn small(family: Family) -> Config {
    let mut config = preset("test").unwrap().config(family, Some(40), Some(64));
    (config.num_layers, config.quantization) = (1, Quantization::None);
    config.window = None;
    config.validate().unwrap();
    config
}

fn write(config: &Config, unheeded: bool, more: Vec<(String, Entry)>) -> Result<Gguf> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let types = Types { unheeded, ..Types::new(TensorType::F32, TensorType::F32) };
    export(&path, config, &Synthetic::new(config, 3, DType::F32), types, more)?;
    Gguf::from_bytes(std::fs::read(&path).unwrap())
}

/// What is read of a plain model's file with these keys under its architecture.
fn read_with(family: Family, keys: &[(&str, Entry)]) -> Result<Config> {
    let architecture = if family == Family::Bitnet { "bitnet" } else { "llama" };
    let more = keys.iter().map(|(key, entry)| (format!("{architecture}.{key}"), entry.clone()));
    read_config(&write(&small(family), false, more.collect()).unwrap())
}

#[track_caller]
fn refused(keys: &[(&str, Entry)], name: &str, problem: &str) {
    for family in [Family::Llama, Family::Bitnet] {
        let message = read_with(family, keys).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(problem), "{keys:?}: {message}");
    }
}

fn text(text: &str) -> Entry {
    Entry::Text(text.into())
}

/// All tokens' logits, by bits.
fn logits(config: &Config, source: &dyn Source) -> Vec<u32> {
    let device = cpu::open();
    let model = Model::new(config, Form::Run, 32);
    model.load(&device, source).unwrap();
    let ids: Vec<u32> = (0..32).map(|i| i * 31 % 40).collect();
    let logits = Scorer::new(&device, &model, 32, true).unwrap().run(&ids, 1).unwrap();
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn windows_and_stretched_rotations_go_there_and_back_with_equal_configs_and_logits() {
    let yarn = |yarn: Yarn| RopeScaling::Yarn(yarn);
    let mut each: Vec<Config> = Vec::new();
    for family in [Family::Llama, Family::Mistral, Family::Bitnet] {
        for scaling in [
            RopeScaling::None,
            RopeScaling::Linear { factor: 2.5 },
            yarn(Yarn::new(4.0, 16)),
            yarn(Yarn { attention_factor: 0.9, ..Yarn::new(1.1, 58) }),
            yarn(Yarn { beta_fast: 16.0, beta_slow: 0.7, ..Yarn::new(4.0, 16) }),
            yarn(Yarn { truncate: false, ..Yarn::new(4.0, 16) }),
        ] {
            let mut config = small(family);
            config.rope.scaling = scaling;
            each.push(config.clone());
            if family == Family::Mistral {
                config.window = Some(9);
                each.push(config);
            }
        }
    }
    let plain = logits(&each[0], &Synthetic::new(&each[0], 3, DType::F32));
    let mut changed = 0;
    for config in each {
        let expected = logits(&config, &Synthetic::new(&config, 3, DType::F32));
        changed += usize::from(config.family == Family::Llama && expected != plain);
        let gguf = write(&config, true, Vec::new()).unwrap();
        let found = read_config(&gguf).unwrap();
        // Floats in a BitNet architecture are masters.
        let quantization = found.quantization;
        assert_eq!(found, Config { quantization, ..config.clone() });
        if config.family != Family::Bitnet {
            assert_eq!(logits(&found, &FromGguf::new(&gguf, &found).unwrap()), expected, "{config:?}");
        }
        let folder = tempdir().unwrap();
        assert_eq!(import(&gguf, folder.path()).unwrap(), found);
        let back = Config::load(folder.path()).unwrap();
        assert_eq!(back, found);
        if config.family != Family::Bitnet {
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let source = FromCheckpoint { checkpoint: &checkpoint, quantization };
            assert_eq!(logits(&back, &source), expected, "{config:?}");
        }
    }
    assert_eq!(changed, 5, "every rule turns keys otherwise");
}

#[test]
fn the_golden_mistral_goes_there_and_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/mistral_swa");
    let (config, checkpoint) = (Config::load(&folder).unwrap(), Checkpoint::open(&folder).unwrap());
    assert!(config.window.is_some_and(|window| window < config.max_positions));
    let source = FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization };
    let out = tempdir().unwrap();
    let path = out.path().join("m.gguf");
    let types = Types::new(TensorType::F32, TensorType::F32);
    let message = export(&path, &config, &source, types, Vec::new()).unwrap_err().to_string();
    assert!(message.contains("a sliding window of") && message.contains("llama"), "{message}");
    export(&path, &config, &source, Types { unheeded: true, ..types }, Vec::new()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let back = read_config(&gguf).unwrap();
    assert_eq!(back, config);
    assert_eq!(logits(&back, &FromGguf::new(&gguf, &back).unwrap()), logits(&config, &source));
}

#[test]
fn keys_mean_what_llama_cpp_makes_of_them() {
    let read = |keys: &[(&str, Entry)]| read_with(Family::Llama, keys).unwrap().rope.scaling;
    let factor = |n| ("rope.scaling.factor", Entry::F32(n));
    let kind = |name| ("rope.scaling.type", text(name));
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(read(&[factor(4.0)]), linear, "linear is what an absent type means");
    assert_eq!(read(&[("rope.scale_linear", Entry::F32(4.0))]), linear, "the older name");
    assert_eq!(read(&[kind("linear"), factor(4.0)]), linear);
    assert_eq!(read(&[kind("linear"), factor(1.0)]), RopeScaling::None);
    assert_eq!(read(&[kind("linear")]), RopeScaling::None);
    assert_eq!(read(&[kind("none"), factor(4.0)]), RopeScaling::None);
    // The first context is that of the model where the file does not give it.
    assert_eq!(read(&[kind("yarn"), factor(4.0)]), RopeScaling::Yarn(Yarn::new(4.0, 64)));
    let original = ("rope.scaling.original_context_length", Entry::U32(16));
    let read_yarn = |key: (&str, Entry)| match read(&[kind("yarn"), factor(4.0), original.clone(), key]) {
        RopeScaling::Yarn(yarn) => yarn,
        other => unreachable!("{other:?}"),
    };
    // deepseek's way: cosines and sines stay as they are.
    let beside = 1.0 / (0.1 * 4f64.ln() + 1.0);
    let yarn = read_yarn(("rope.scaling.attn_factor", Entry::F32(beside as f32)));
    assert!((yarn.attention_factor - 1.0).abs() < 1e-6 && yarn.original_max_position_embeddings == 16);
    assert_eq!(read_yarn(("rope.scaling.yarn_beta_slow", Entry::F32(2.0))).beta_slow, 2.0);
    assert_eq!(read_yarn(("rope.scaling.yarn_ext_factor", Entry::F32(1.0))), Yarn::new(4.0, 16));
    let whole = Yarn::new(4.0, 16).attention_factor as f32;
    assert_eq!(read_yarn(("rope.scaling.yarn_attn_factor", Entry::F32(whole))), Yarn::new(4.0, 16));
    // This program's own numbers count where they agree with the others.
    let own = |more| read_with(Family::Llama, &[]).map(|c| write(&c, false, more)).unwrap().unwrap();
    let base = vec![
        ("llama.rope.scaling.type".to_owned(), text("yarn")),
        ("llama.rope.scaling.factor".to_owned(), Entry::F32(4.0)),
    ];
    for (first, expected) in [(4.000_000_01, 4.000_000_01), (8.0, 4.0)] {
        let usual = Yarn::new(4.0, 64).attention_factor;
        let numbers = vec![first, 64.0, 32.0, 1.0, usual, 1.0];
        let more = [base.clone(), vec![(OWN.to_owned(), Entry::F64s(numbers))]].concat();
        let RopeScaling::Yarn(yarn) = read_config(&own(more)).unwrap().rope.scaling else { unreachable!() };
        assert_eq!(yarn.factor, expected);
    }
}

#[test]
fn damaged_and_foreign_rules_are_named() {
    let factor = "rope.scaling.factor";
    for wrong in [0.0, -1.0, 0.5, f32::NAN, f32::INFINITY] {
        refused(&[(factor, Entry::F32(wrong))], factor, "finite number, 1 or more");
        refused(&[("rope.scale_linear", Entry::F32(wrong))], "rope.scale_linear", "1 or more");
        let yarn = |key| [("rope.scaling.type", text("yarn")), (factor, Entry::F32(4.0)), (key, Entry::F32(wrong))];
        if wrong != 0.5 {
            for key in ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.attn_factor"] {
                refused(&yarn(key), key, "finite number, above zero");
            }
        }
        if wrong != -1.0 {
            refused(&yarn("rope.scaling.yarn_ext_factor"), "yarn_ext_factor", "the whole rule");
        }
    }
    let yarn = |key, entry| [("rope.scaling.type", text("yarn")), (factor, Entry::F32(4.0)), (key, entry)];
    let original = "rope.scaling.original_context_length";
    refused(&yarn(original, Entry::U32(0)), original, "from 1 to");
    refused(&yarn(original, Entry::U32(u32::MAX)), original, "from 1 to");
    refused(&yarn(original, Entry::F32(16.0)), original, "whole number");
    refused(&yarn("rope.scaling.yarn_beta_slow", Entry::F32(32.0)), "yarn_beta_fast", "above yarn_beta_slow");
    refused(&yarn("rope.scaling.yarn_log_multiplier", Entry::F32(0.1)), "yarn_log_multiplier", "");
    refused(&yarn("rope.scaling.yarn_attn_factor", Entry::F32(1.0)), "yarn_attn_factor", "attn_factor");
    refused(&[("rope.scaling.type", text("yarn"))], factor, "yarn needs it");
    refused(&[("rope.scaling.type", text("longrope"))], "rope.scaling.type", "none, linear and yarn");
    refused(&[("rope.scaling.attn_factor", Entry::F32(1.2))], "rope.scaling.attn_factor", "yarn alone");
}

#[test]
fn windows_are_read_and_damaged_ones_named() {
    let key = "attention.sliding_window";
    let found = read_with(Family::Llama, &[(key, Entry::U32(12))]).unwrap();
    assert_eq!((found.family, found.window), (Family::Mistral, Some(12)));
    let all = (("attention.sliding_window_pattern"), Entry::U32s(vec![1]));
    assert_eq!(read_with(Family::Llama, &[(key, Entry::U32(12)), all]).unwrap().window, Some(12));
    for (entry, problem) in [
        (Entry::U32(0), "from 1 to"),
        (Entry::U32(u32::MAX), "from 1 to"),
        (Entry::F32(12.0), "whole number"),
        (Entry::F32(f32::NAN), "whole number"),
        (Entry::I32s(vec![4]), "whole number"),
    ] {
        let message = read_with(Family::Llama, &[(key, entry)]).unwrap_err().to_string();
        assert!(message.contains("llama.attention.sliding_window") && message.contains(problem), "{message}");
    }
    let message = read_with(Family::Bitnet, &[(key, Entry::U32(12))]).unwrap_err().to_string();
    assert!(message.contains("bitnet.attention.sliding_window") && message.contains("BitNet"), "{message}");
    let some = [(key, Entry::U32(12)), ("attention.sliding_window_pattern", Entry::U32s(vec![1, 0]))];
    let message = read_with(Family::Llama, &some).unwrap_err().to_string();
    assert!(message.contains("sliding_window_pattern") && message.contains("every layer"), "{message}");
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_written_on_request_only() {
    let refused = |config: &Config, words: &[&str]| {
        let message = write(config, false, Vec::new()).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    let mut config = small(Family::Mistral);
    config.window = Some(63);
    refused(&config, &["sliding window of 63", "llama.cpp", "--unheeded"]);
    for heeded in [Some(64), None] {
        config.window = heeded;
        assert_eq!(read_config(&write(&config, false, Vec::new()).unwrap()).unwrap(), config);
    }
    config.rope.scaling = RopeScaling::Yarn(Yarn { beta_fast: 16.0, ..Yarn::new(4.0, 16) });
    refused(&config, &["beta_fast 16", "architecture llama"]);
    config.rope.scaling = RopeScaling::Yarn(Yarn { truncate: false, ..Yarn::new(4.0, 16) });
    refused(&config, &["truncate"]);
    config.rope.scaling = RopeScaling::Dynamic { factor: 2.0 };
    refused(&config, &["dynamic"]);
    let mut bitnet = small(Family::Bitnet);
    bitnet.window = Some(8);
    refused(&bitnet, &["mistral"]);
}
