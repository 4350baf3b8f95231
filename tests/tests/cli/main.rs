//! The executable as a whole: help, errors, JSON, and what its commands promise of each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod refusals;
mod texts;

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use tempfile::tempdir;
use tritter_runtime::random::Random;
use tritter_tests::fresh_seed;
use tritter_tests::program::{fed, fixture, listing, made, on_cpu, succeeds, text, tritter};

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Status 1, one line that starts with `error:` and holds the words, and no file changed.
fn fails(arguments: &[&str], folder: &Path, words: &[&str]) {
    let before = listing(folder);
    let output = on_cpu(arguments);
    one_error(arguments, &output, words);
    assert!(output.stdout.is_empty(), "{arguments:?} printed {}", String::from_utf8_lossy(&output.stdout));
    assert!(before == listing(folder), "{arguments:?} changed files of {}", folder.display());
}

fn one_error(arguments: &[&str], output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    let said = ["error: ", "device: ", "data: ", "memory: ", "note: ", "seed: "];
    assert!(
        stderr.lines().all(|l| said.iter().any(|s| l.starts_with(s))),
        "{arguments:?}: more than one line: {stderr}"
    );
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{arguments:?}: {stderr}");
    assert!(stderr.lines().last() == errors.last().copied(), "{arguments:?}: the error is not the last line: {stderr}");
    for word in words {
        assert!(errors[0].contains(word), "{arguments:?}: `{word}` is not in: {}", errors[0]);
    }
    assert!(errors[0].matches("(os error").count() <= 1, "{arguments:?}: the cause is said twice: {}", errors[0]);
}

/// One JSON object and nothing else.
fn object(stdout: &[u8]) -> serde_json::Map<String, Value> {
    let value: Value =
        serde_json::from_slice(stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(stdout)));
    value.as_object().expect("an object").clone()
}

fn json(arguments: &[&str], keys: &[&str]) -> serde_json::Map<String, Value> {
    let object = object(&succeeds(&[arguments, &["--json"]].concat()));
    for key in keys {
        assert!(object.contains_key(*key), "{arguments:?}: no `{key}` in {:?}", object.keys());
    }
    object
}

fn train<'a>(data: &'a str, tokenizer: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let shape = ["--preset", "test", "--batch", "1", "--context", "32"];
    [&["train", "--data", data, "--tokenizer", tokenizer, "--out", out], &shape[..], more].concat()
}

#[test]
fn help_of_every_command_describes_it() {
    let commands = [
        "",
        "demo",
        "train",
        "generate",
        "chat",
        "tokenizer",
        "tokenizer train",
        "tokenizer encode",
        "tokenizer decode",
        "devices",
        "check",
        "bench",
        "bench kernels",
        "bench decode",
        "bench train",
        "perplexity",
        "plan",
        "pack",
        "unpack",
        "convert",
        "validate",
    ];
    for command in commands {
        let output = tritter().args(command.split_whitespace()).arg("--help").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        let help = String::from_utf8(output.stdout).unwrap();
        let first = help.lines().next().unwrap_or_default();
        assert!(first.len() > 8 && !first.starts_with("Usage"), "{command}: no description: {help}");
        assert!(help.contains("Usage: tritter") && help.contains("--device"), "{command}: {help}");
        if ["", "demo", "train", "generate", "chat", "plan"].contains(&command) {
            let (_, example) = help.split_once("Example").unwrap_or_else(|| panic!("{command}: no example: {help}"));
            assert!(example.contains(format!("tritter {command}").trim_end()), "{command}: {help}");
        }
    }
}

#[test]
fn usage_errors_exit_with_two() {
    let cases: [&[&str]; 6] = [
        &[],
        &["nonsense"],
        &["generate"],
        &["train", "--steps", "x"],
        &["plan", "test", "--nonsense"],
        &["tokenizer", "decode", "t", "x"],
    ];
    for arguments in cases {
        let output = tritter().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("help"), "{arguments:?}");
    }
}

#[test]
fn devices_that_are_not_there() {
    let check = |device: &str, words: &[&str]| {
        let arguments = ["check", "--row", "add", "--device", device];
        one_error(&arguments, &tritter().args(arguments).output().unwrap(), words);
    };
    check("nonsense", &["unknown device", "`nonsense`", "cpu"]);
    check("wgpu:99", &["`wgpu:99`", "not available"]);
    let devices = object(&tritter().args(["devices", "--json"]).output().unwrap().stdout);
    let cuda = |d: &Value| d["id"].as_str().is_some_and(|id| id.starts_with("cuda"));
    if !devices["devices"].as_array().unwrap().iter().any(cuda) {
        check("cuda", &["`cuda`"]);
    }
}

#[test]
fn json_is_one_object() {
    let out = tempdir().unwrap();
    let (data, run, packed, tokenizer) =
        (text(), out.path().join("run"), out.path().join("packed"), out.path().join("t.json"));
    let [data, run, packed, tokenizer] = [&data, &run, &packed, &tokenizer].map(|p| name(p));
    json(&["devices"], &["devices", "auto", "reason"]);
    let check = json(&["check", "--row", "add", "--seed", "5"], &["device", "seed", "checks", "passed"]);
    assert!(check["seed"] == 5 && check["failed"] == 0 && check["passed"].as_u64() > Some(0));
    json(&["plan", "test", "--context", "64"], &["model", "parameters", "parts", "total"]);
    let trained = json(&["tokenizer", "train", data, "--out", tokenizer, "--vocab", "320"], &["file", "tokens"]);
    assert_eq!(trained["vocab_size"], 320);
    assert!(json(&["tokenizer", "encode", tokenizer, "The river"], &["ids"])["ids"].is_array());
    let report =
        json(&train(data, tokenizer, run, &["--steps", "2"]), &["out", "device", "last_loss", "bits_per_byte"]);
    assert_eq!(report["steps"], 2);
    let report = json(&["generate", run, "The", "-n", "3", "--ignore-eos"], &["text", "ids", "seed", "prompt_tokens"]);
    assert_eq!(report["generated_tokens"], 3);
    json(&["pack", run, packed], &["model", "out", "bytes_before", "bytes_after"]);
    let report = json(&["validate", name(fixture("bitnet_packed").path())], &["device", "checks", "passed"]);
    assert!(report["failed"] == 0 && report["passed"].as_u64() > Some(10));
}

#[test]
fn a_tokenizer_keeps_all_bytes() {
    let seed = fresh_seed();
    let mut random = Random::new(seed);
    let tokenizer = name(&made().tokenizer);
    let mut inputs =
        vec![Vec::new(), b"\xff\xfe\x00 a\r\n".to_vec(), "naïve 川 👩‍🚀\u{0}".into(), fs::read(text()).unwrap()];
    inputs.extend((0..3).map(|i| (0..1 + i * 700).map(|_| random.below(256) as u8).collect()));
    for bytes in inputs {
        let ids = fed(&["tokenizer", "encode", tokenizer], &bytes);
        assert!(ids.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&ids.stderr));
        let back = fed(&["tokenizer", "decode", tokenizer], &ids.stdout);
        assert!(back.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&back.stderr));
        assert!(back.stdout == bytes, "seed {seed}: {} bytes came back otherwise", bytes.len());
    }
}

#[test]
fn decoding_is_measured_as_stated() {
    let fields = [
        "device",
        "model",
        "threads",
        "prefill",
        "decode",
        "bytes_per_token",
        "bandwidth_gb_s",
        "bandwidth_share",
        "dot_peak_tops",
        "dot_share",
    ];
    let size = ["--prompt", "20,40", "--tokens", "8", "--repeats", "2", "--vocab", "320"];
    let report = json(&[&["bench", "decode", "test"], &size[..]].concat(), &fields);
    assert!(report["prefill"]["20"].as_f64() > Some(0.0) && report["prefill"]["40"].as_f64() > Some(0.0));
    assert!(report["decode"].as_f64() > Some(0.0) && report["bandwidth_share"].as_f64() > Some(0.0));
    let weights = report["planned_bytes"].as_f64().unwrap();
    assert!((0.1 * weights..weights).contains(&report["bytes_per_token"].as_f64().unwrap()), "{report:?}");
}
