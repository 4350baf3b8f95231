#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::{Config, Family, Quantization};
use crate::gguf::config::read_config;
use crate::gguf::export::tests::small_file;
use crate::gguf::source::FromGguf;
use crate::source::{Source, Stored};

const NAME: &str = "blk.0.ffn_gate.weight";

/// A file with a change of its bytes at that place of the tensor [`NAME`].
fn changed(mut bytes: Vec<u8>, at: usize, change: &[u8]) -> Gguf {
    let tensor = Gguf::from_bytes(bytes.clone()).unwrap().tensor(NAME).unwrap().clone();
    bytes[tensor.start + at..][..change.len()].copy_from_slice(change);
    Gguf::from_bytes(bytes).unwrap()
}

fn spec(config: &Config) -> TensorSpec {
    config.tensors().into_iter().find(|s| s.name.ends_with("layers.0.mlp.gate_proj.weight")).unwrap()
}

/// The error that loading the tensor gives.
fn fault(gguf: &Gguf) -> String {
    let read = || -> Result<()> {
        let config = read_config(gguf)?;
        let (source, spec) = (FromGguf::new(gguf, &config)?, spec(&config));
        source.stored(&spec)?;
        source.codes(&spec, 0, &mut vec![0; 512 * 16])
    };
    let message = read().unwrap_err().to_string();
    assert!(message.contains(NAME), "{message}");
    message
}

#[test]
fn scales_that_are_no_scales_are_named() {
    for (weights, at, wide) in [
        (TensorType::Tq1_0, 52, false),
        (TensorType::Tq2_0, 64, false),
        (TensorType::Q2_0, 0, false),
        (TensorType::Q2_0G128, 0, false),
        (TensorType::I2S, 512 * 256 / 4, true),
    ] {
        let bytes = small_file(Family::Bitnet, weights);
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let half = f16::from_f32(scale).to_le_bytes();
            let gguf = match wide {
                true => changed(bytes.clone(), at, &scale.to_le_bytes()),
                false => changed(bytes.clone(), at, &half),
            };
            let message = fault(&gguf);
            assert!(message.contains("scale") && message.contains("damaged"), "{weights:?}, {scale}: {message}");
        }
    }
}

#[test]
fn a_code_of_three_is_named() {
    for (weights, at) in [(TensorType::Tq2_0, 3), (TensorType::Q2_0, 5), (TensorType::I2S, 7)] {
        let message = fault(&changed(small_file(Family::Bitnet, weights), at, &[0b1101_0101]));
        assert!(message.contains("the code 3"), "{weights:?}: {message}");
    }
    let message = fault(&changed(small_file(Family::Bitnet, TensorType::Tq1_0), 1, &[0xFF, 0x01, 0xFE]));
    assert!(message.contains("five trits"), "{message}");
}

#[test]
fn scales_that_differ_make_a_llama_dense_and_are_refused_in_bitnet() {
    for weights in [TensorType::Tq1_0, TensorType::Tq2_0, TensorType::Q2_0] {
        let (_, size) = weights.block();
        let at = match weights {
            TensorType::Q2_0 => size,
            _ => 2 * size - 2,
        };
        let other = f16::from_f32(3.0).to_le_bytes();
        let message = fault(&changed(small_file(Family::Bitnet, weights), at, &other));
        assert!(message.contains("one scale") && message.contains('3'), "{message}");
        // The file's own word that it is ternary is taken out by another key of the same length.
        let mut bytes = small_file(Family::Llama, weights);
        let key = bytes.windows(15).position(|w| w == b"tritter.ternary").unwrap();
        bytes[key..key + 15].copy_from_slice(b"another.ternary");
        let plain = Gguf::from_bytes(bytes.clone()).unwrap();
        assert!(read_config(&plain).unwrap().is_ternary(), "{weights:?}");
        let gguf = changed(bytes, at, &other);
        let config = read_config(&gguf).unwrap();
        assert_eq!(config.quantization, Quantization::None, "{weights:?}");
        let (source, spec) = (FromGguf::new(&gguf, &config).unwrap(), spec(&config));
        assert!(matches!(source.stored(&spec).unwrap(), Stored::Floats(_)));
        let mut values = vec![0.0; 2 * 256];
        source.floats(&spec, 0, &mut values).unwrap();
        assert!(values.iter().any(|v| v.abs() == 3.0), "{weights:?}");
    }
}

#[test]
fn blocks_of_zeros_may_have_the_scale_zero() {
    let (mut bytes, size) = (small_file(Family::Bitnet, TensorType::Tq2_0), 66);
    let tensor = Gguf::from_bytes(bytes.clone()).unwrap().tensor(NAME).unwrap().clone();
    bytes[tensor.start..][..size].copy_from_slice(&[[0x55; 64].as_slice(), &[0, 0]].concat());
    let gguf = Gguf::from_bytes(bytes).unwrap();
    let config = read_config(&gguf).unwrap();
    let source = FromGguf::new(&gguf, &config).unwrap();
    assert!(matches!(source.stored(&spec(&config)).unwrap(), Stored::Ternary { .. }));
}

#[test]
fn metadata_and_tensors_must_agree() {
    let bytes = small_file(Family::Llama, TensorType::F32);
    let with = |from: &[u8], to: &[u8]| {
        let mut bytes = bytes.clone();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        read_config(&Gguf::from_bytes(bytes).unwrap()).unwrap_err().to_string()
    };
    // A key, the type u32 and the value.
    let value = |key: &str, v: u32| [key.as_bytes(), &4u32.to_le_bytes(), &v.to_le_bytes()].concat();
    let number = |key: &str, from: u32, to: u32| with(&value(key, from), &value(key, to));
    assert!(number("llama.vocab_size", 16, 17).contains("16 rows"));
    assert!(number("llama.block_count", 1, 2).contains("fewer tensors"));
    assert!(number("llama.block_count", 1, 9999).contains("fewer tensors"));
    assert!(number("llama.embedding_length", 256, 128).contains("expected"));
    assert!(number("llama.attention.head_count", 4, 0).contains("head_count"));
    assert!(number("llama.rope.dimension_count", 64, 32).contains("width of a head"));
    let architecture = |name: &[u8]| [&8u32.to_le_bytes()[..], &5u64.to_le_bytes(), name].concat();
    assert!(with(&architecture(b"llama"), &architecture(b"gemma")).contains("general.architecture"));
    assert!(with(b"blk.0.attn_norm", b"blk.0.attn_nrom").contains("attn_nrom"));
}
