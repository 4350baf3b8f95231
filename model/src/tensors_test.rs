//! Well-formed and hostile checkpoint files.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::Family;
use crate::presets::preset;
use serde_json::json;

/// A safetensors file from a header and data.
fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn opened(bytes: &[u8]) -> Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(SINGLE_FILE), bytes).unwrap();
    Checkpoint::open(folder.path())
}

#[track_caller]
fn refused(bytes: &[u8], words: &[&str]) {
    let message = opened(bytes).unwrap_err().to_string();
    for word in words.iter().chain(&[SINGLE_FILE]) {
        assert!(message.contains(word), "{message} lacks {word}");
    }
}

const ONE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn floats_of_every_width_become_f32() {
    let header = json!({
        "__metadata__": { "step": "7" },
        "double": { "dtype": "F64", "shape": [1], "data_offsets": [0, 8] },
        "single": { "dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16] },
        "half": { "dtype": "F16", "shape": [], "data_offsets": [16, 18] },
        "brain": { "dtype": "BF16", "shape": [2], "data_offsets": [18, 22] },
    });
    let mut data = 0.1f64.to_le_bytes().to_vec();
    data.extend([1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
    data.extend(f16::from_f32(0.25).to_le_bytes());
    data.extend([bf16::from_f32(3.0).to_le_bytes(), bf16::from_f32(-0.5).to_le_bytes()].concat());
    // An odd header length leaves every tensor misaligned, which is allowed.
    let text = format!("{header}{}", if header.to_string().len().is_multiple_of(2) { " " } else { "" });
    let checkpoint = opened(&file_of(&text, &data)).unwrap();
    assert_eq!(checkpoint.f32("double", &[1]).unwrap(), [0.1f32]);
    assert_eq!(checkpoint.f32("single", &[1, 2]).unwrap(), [1.5, -2.0]);
    assert_eq!(checkpoint.f32("half", &[]).unwrap(), [0.25]);
    assert_eq!(checkpoint.f32("brain", &[2]).unwrap(), [3.0, -0.5]);
    assert_eq!(checkpoint.metadata()["step"], "7");
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["brain", "double", "half", "single"]);
    assert_eq!(checkpoint.data_bytes(), 22);
}

#[test]
fn integers_keep_their_type() {
    let header = r#"{"i":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},
        "s":{"dtype":"I8","shape":[2],"data_offsets":[16,18]},
        "u":{"dtype":"U8","shape":[1,2],"data_offsets":[18,20]}}"#;
    let mut data = [(-5i64).to_le_bytes(), (1i64 << 40).to_le_bytes()].concat();
    data.extend([0xff, 1, 0xff, 1]);
    let checkpoint = opened(&file_of(header, &data)).unwrap();
    assert_eq!(checkpoint.i64("i", &[2]).unwrap(), [-5, 1 << 40]);
    assert_eq!(checkpoint.i8("s", &[2]).unwrap(), [-1, 1]);
    assert_eq!(checkpoint.u8("u", &[1, 2]).unwrap(), [255, 1]);
}

#[test]
fn wrong_name_shape_and_dtype_are_named() {
    let checkpoint = opened(&file_of(ONE, &[0; 8])).unwrap();
    let message = checkpoint.f32("b", &[2]).unwrap_err().to_string();
    assert!(message.contains("`b` is missing"), "{message}");
    let message = checkpoint.f32("a", &[1, 2]).unwrap_err().to_string();
    assert!(message.contains("`a` has shape [2], expected [1, 2]"), "{message}");
    let message = checkpoint.u8("a", &[2]).unwrap_err().to_string();
    assert!(message.contains("`a` has dtype F32, expected U8"), "{message}");
}

#[test]
fn lying_headers_are_refused() {
    refused(b"", &["empty"]);
    refused(&[1, 2, 3], &["3 bytes are too few"]);
    refused(&file_of(ONE, &[0; 8])[..30], &["cut short"]);
    refused(&(1u64 << 60).to_le_bytes(), &["claims 1152921504606846976 bytes"]);
    refused(&u64::MAX.to_le_bytes(), &["claims"]);
    refused(&50_000_000u64.to_le_bytes(), &["only 0 follow"]);
    refused(&file_of("{", &[]), &["header is not valid"]);
    refused(&file_of("[]", &[]), &["an object of tensors"]);
    refused(&file_of(&"[".repeat(100_000), &[]), &["header is not valid"]);
    refused(&file_of(ONE, &[0; 7]), &["tensor `a` lies at bytes 0 to 8 of 7"]);
    refused(&file_of(ONE, &[0; 9]), &["accounts for 8 bytes", "holds 9"]);
}

#[test]
fn lying_tensors_are_refused() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        file_of(&format!(r#"{{"bad":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), &[0; 8])
    };
    refused(&one("F32", "[3]", "[0,8]"), &["tensor `bad` of shape [3] and dtype F32", "8 bytes"]);
    refused(&one("F32", "[2]", "[8,0]"), &["tensor `bad` lies at bytes 8 to 0"]);
    refused(&one("F32", "[2]", "[0,18446744073709551615]"), &["tensor `bad` lies at bytes"]);
    refused(&one("F32", "[4294967296,4294967296,4294967296]", "[0,8]"), &["tensor `bad`"]);
    refused(&one("F32", "[-1]", "[0,8]"), &["tensor `bad`", "-1"]);
    refused(&one("F99", "[2]", "[0,8]"), &["tensor `bad`", "F99"]);
    refused(&one("F32", "[1]", "[4,8]"), &["bad", "gap"]);
    let two = |second: &str, at: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},
                "{second}":{{"dtype":"U8","shape":[4],"data_offsets":{at}}}}}"#
        )
    };
    refused(&file_of(&two("b", "[2,6]"), &[0; 6]), &["overlap"]);
    refused(&file_of(&two("a", "[4,8]"), &[0; 8]), &["`a` is there twice"]);
}

fn sharded(map: serde_json::Value, shards: &[(&str, &str)]) -> (tempfile::TempDir, Result<Checkpoint>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, tensor) in shards {
        let header = ONE.replace("\"a\"", &format!("\"{tensor}\""));
        std::fs::write(folder.path().join(name), file_of(&header, &[0; 8])).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(folder.path().join(INDEX_FILE), index.to_string()).unwrap();
    let opened = Checkpoint::open(folder.path());
    (folder, opened)
}

#[test]
fn shards_are_joined() {
    let map = json!({ "a": "1.safetensors", "b": "2.safetensors" });
    let (_folder, checkpoint) = sharded(map, &[("1.safetensors", "a"), ("2.safetensors", "b")]);
    let checkpoint = checkpoint.unwrap();
    assert_eq!(checkpoint.f32("b", &[2]).unwrap(), [0.0, 0.0]);
    let message = checkpoint.f32("b", &[3]).unwrap_err().to_string();
    assert!(message.contains("2.safetensors"), "{message}");
}

#[test]
fn broken_indexes_are_refused() {
    let both = [("1.safetensors", "a"), ("2.safetensors", "b")];
    let refused = |map: serde_json::Value, shards: &[(&str, &str)], word: &str| {
        let message = sharded(map, shards).1.unwrap_err().to_string();
        assert!(message.contains(word), "{message} lacks {word}");
    };
    refused(json!({ "a": "1.safetensors", "b": "2.safetensors" }), &both[..1], "missing");
    refused(json!({ "c": "1.safetensors" }), &both, "`c` is not in \"1.safetensors\"");
    refused(json!({ "a": "2.safetensors", "b": "1.safetensors" }), &both, "`a` is not in");
    let twice = [("1.safetensors", "a"), ("2.safetensors", "a")];
    refused(json!({ "a": "1.safetensors", "b": "2.safetensors" }), &twice, "`a` is also in");
    for outside in ["../1.safetensors", "/etc/passwd", "..", "", "x/1.safetensors", "c:\\x"] {
        refused(json!({ "a": outside }), &both, "without a folder");
    }
    refused(json!({ "a": 3 }), &both, "weight_map.a");
    refused(json!([]), &both, "weight_map");
}

#[test]
fn a_folder_without_weights_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("holds neither"), "{message}");
}

#[test]
fn check_names_the_first_tensor_that_does_not_fit() {
    let checkpoint = opened(&file_of(ONE, &[0; 8])).unwrap();
    let config = preset("test").unwrap().config(Family::Bitnet, None, None);
    let message = checkpoint.check(&config).unwrap_err().to_string();
    assert!(message.contains("model.embed_tokens.weight"), "{message}");
}

/// Stored tensors of a config as a file of zeros, written and checked.
#[test]
fn check_accepts_what_a_config_asks_for() {
    use crate::config::{LinearClass, Quantization};
    use crate::tensor_write::{TensorHeader, write_safetensors};
    let folder = tempfile::tempdir().unwrap();
    for quantization in [Quantization::Online, Quantization::Offline { linear_class: LinearClass::AutoBitLinear }] {
        let mut config = preset("test").unwrap().config(Family::Tritter, Some(64), None);
        (config.hidden_size, config.head_dim, config.intermediate_size) = (32, 8, 16);
        config.quantization = quantization;
        config.validate().unwrap();
        let stored = config.tensors().into_iter().flat_map(|spec| spec.stored(quantization));
        let headers: Vec<_> = stored
            .map(|tensor| TensorHeader {
                name: tensor.name,
                dtype: match tensor.stored_as {
                    StoredAs::Float => Dtype::BF16,
                    StoredAs::Packed => Dtype::U8,
                },
                shape: tensor.shape,
            })
            .collect();
        let path = folder.path().join(SINGLE_FILE);
        write_safetensors(&path, &headers, &BTreeMap::new(), &mut |index, out| {
            let bytes = headers[index].shape.iter().product::<usize>() * headers[index].dtype.bitsize() / 8;
            Ok(out.write_all(&vec![0; bytes])?)
        })
        .unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        checkpoint.check(&config).unwrap();
        let wider = Config { intermediate_size: 20, ..config };
        let message = checkpoint.check(&wider).unwrap_err().to_string();
        assert!(message.contains("mlp.gate_proj.weight` has shape"), "{message}");
    }
}
