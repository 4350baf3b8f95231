//! `tritter convert`, and GGUF files wherever a model is named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use tempfile::tempdir;
use tritter_tests::program::{copy, fixture, on_cpu, repository, succeeds};

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder of `bitnet_packed` with the tokenizer of GPT-2's kind, cut to its vocabulary.
fn folder() -> tempfile::TempDir {
    let folder = fixture("bitnet_packed");
    let from = repository().join("tests/fixtures/tokenizer_gpt2");
    let text = fs::read_to_string(from.join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ids = |v: &serde_json::Value| v.as_u64().unwrap() < 512;
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| ids(id));
    let kept = json["model"]["vocab"].clone();
    let there = |token: &str| kept.get(token).is_some();
    json["model"]["merges"].as_array_mut().unwrap().retain(|pair| {
        let (a, b) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        there(a) && there(b) && there(&format!("{a}{b}"))
    });
    json["added_tokens"] = serde_json::json!([]);
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    folder
}

fn generated(model: &Path) -> String {
    let arguments = ["generate", name(model), "The river", "-n", "12", "--temperature", "0", "--ignore-eos"];
    String::from_utf8_lossy(&succeeds(&arguments)).into_owned()
}

#[test]
fn a_model_goes_to_a_file_and_back_and_says_the_same() {
    let (folder, out) = (folder(), tempdir().unwrap());
    let expected = generated(folder.path());
    for kind in ["i2_s", "tq1_0", "tq2_0", "q2_0", "f32"] {
        let file = out.path().join(format!("{kind}.gguf"));
        let arguments = ["convert", name(folder.path()), name(&file), "--type", kind, "--embedding", "f32"];
        let output = on_cpu(&arguments);
        assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Widths of 96 fit none of the block types: each tensor is named.
        assert_eq!(said.contains("blk.1.attn_q.weight is written as F32"), kind != "f32", "{kind}: {said}");
        let back = out.path().join(kind);
        succeeds(&["convert", name(&file), name(&back)]);
        succeeds(&["plan", name(&file)]);
        if matches!(kind, "i2_s" | "f32") {
            assert_eq!(generated(&file), expected, "{kind}");
            assert_eq!(generated(&back), expected, "{kind}");
        }
    }
}

#[test]
fn every_type_of_embedding_is_written_and_read() {
    let (folder, out) = (folder(), tempdir().unwrap());
    for kind in ["f16", "bf16", "f32", "q8_0", "q6_k", "q4_0"] {
        let file = out.path().join(format!("{kind}.gguf"));
        succeeds(&["convert", name(folder.path()), name(&file), "--embedding", kind]);
        succeeds(&["bench", "decode", name(&file), "--prompt", "2", "--tokens", "2"]);
    }
}

#[test]
fn a_window_is_written_on_request() {
    let (mistral, out) = (fixture("mistral_swa"), tempdir().unwrap());
    let (file, back) = (out.path().join("m.gguf"), out.path().join("back"));
    let arguments = ["convert", name(mistral.path()), name(&file), "--type", "f32", "--embedding", "f32"];
    let output = on_cpu(&arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("window") && said.contains("--unheeded"), "{said}");
    succeeds(&[&arguments[..], &["--unheeded"]].concat());
    succeeds(&["convert", name(&file), name(&back)]);
    let window = |folder: &Path| {
        let json = fs::read(folder.join("config.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&json).unwrap()["sliding_window"].clone()
    };
    assert!(window(&back).is_u64() && window(&back) == window(mistral.path()));
}

#[test]
fn what_cannot_be_converted_is_said_in_one_line() {
    let (folder, out) = (folder(), tempdir().unwrap());
    let file = out.path().join("m.gguf");
    succeeds(&["convert", name(folder.path()), name(&file)]);
    let dense = fixture("llama3");
    let tritter = copy(folder.path());
    let cases: [(&[&str], &str); 6] = [
        (&["convert", name(folder.path()), name(&file)], "exists"),
        (&["convert", name(folder.path()), "somewhere"], ".gguf"),
        (&["convert", name(&file), "other.gguf"], "already"),
        (&["convert", name(&file), name(tritter.path())], "not empty"),
        (&["convert", name(dense.path()), "dense.gguf", "--type", "i2_s"], "only a ternary model"),
        (&["pack", name(&file), "packed"], "packed"),
    ];
    for (arguments, word) in cases {
        let output = on_cpu(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.lines().last().unwrap().contains(word), "{arguments:?}: {said}");
    }
    fs::write(&file, &fs::read(&file).unwrap()[..5000]).unwrap();
    let output = on_cpu(&["plan", name(&file)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("m.gguf") && said.contains("cut short"), "{said}");
}
