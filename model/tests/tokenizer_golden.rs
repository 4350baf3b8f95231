//! The golden tokenizers: every section matches, and an altered file does not.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use tritter_model::tokenizer::Tokenizer;
use tritter_model::tokenizer_golden::{GoldenCheck, check_golden, unknown_sections};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn total(checks: &[GoldenCheck], name: &str) -> usize {
    checks.iter().find(|check| check.name == name).map_or(0, |check| check.total)
}

#[track_caller]
fn passes(name: &str, encodings: usize) {
    let checks = check_golden(&fixture(name)).unwrap();
    for check in &checks {
        assert_eq!(check.wrong, 0, "{check:?}");
    }
    for field in ["ids", "ids_no_special", "tokens", "offsets_chars", "decode"] {
        assert_eq!(total(&checks, &format!("encodings.{field}")), encodings, "{field}");
    }
    assert_eq!(total(&checks, "byte_decodes.bytes"), 13);
    assert_eq!(total(&checks, "prefix_decodes.stream"), 13);
    assert_eq!(total(&checks, "pair.ids"), 1);
}

#[test]
fn llama3_style_matches() {
    passes("tokenizer_llama3", 47);
    let checks = check_golden(&fixture("tokenizer_llama3")).unwrap();
    assert_eq!(total(&checks, "chat.rendered"), 1);
    assert!(unknown_sections(&fixture("tokenizer_llama3")).unwrap().is_empty());
}

#[test]
fn gpt2_style_matches() {
    passes("tokenizer_gpt2", 44);
}

#[test]
fn special_tokens_are_found() {
    let load = |name: &str| Tokenizer::load(&fixture(name).join("tokenizer.json")).unwrap();
    let llama = load("tokenizer_llama3");
    assert_eq!((llama.bos_id(), llama.eos_id()), (Some(1018), Some(1019)));
    let gpt2 = load("tokenizer_gpt2");
    assert_eq!((gpt2.bos_id(), gpt2.eos_id()), (Some(766), Some(766)));
}

#[test]
fn data_survives_tokenizers_that_swallow_spaces() {
    // `<think>` takes the space before it, so the ordinary way loses it.
    let tokenizer = Tokenizer::load(&fixture("tokenizer_llama3").join("tokenizer.json")).unwrap();
    let text = "a <think> b<|eot_id|>\u{fffd}";
    let plain = tokenizer.encode(text, false).unwrap();
    assert_ne!(tokenizer.decode(&plain, false).unwrap(), text);
    let ids = tokenizer.encode_bytes(text.as_bytes()).unwrap();
    assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), text.as_bytes());
}

#[test]
fn an_altered_expectation_is_found() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "golden.json"] {
        std::fs::copy(fixture("tokenizer_gpt2").join(file), folder.path().join(file)).unwrap();
    }
    let golden = folder.path().join("golden.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&golden).unwrap()).unwrap();
    json["pair"]["ids"][0] = 1.into();
    json["surprise"] = 1.into();
    std::fs::write(&golden, json.to_string()).unwrap();
    let checks = check_golden(folder.path()).unwrap();
    let wrong: Vec<_> = checks.iter().filter(|check| check.wrong > 0).collect();
    assert_eq!(wrong.len(), 1);
    assert_eq!(wrong[0].name, "pair.ids");
    assert!(wrong[0].first_difference.as_ref().unwrap().contains("expected [1,"));
    assert_eq!(unknown_sections(folder.path()).unwrap(), ["surprise"]);
}
