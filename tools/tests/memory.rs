//! Plans, budgets and what is given up under pressure, as the executable keeps them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::process::{Command, Output};
use tempfile::{TempDir, tempdir};

const GB: u64 = 1_000_000_000;

fn tritter() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tritter"));
    // Without it some Vulkan loaders complain on standard error.
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir()).env_remove("TRITTER_LOG");
    command
}

fn on_cpu(arguments: &[&str]) -> Output {
    tritter().args(arguments).args(["--device", "cpu"]).output().unwrap()
}

/// A model of random weights with a tokenizer, while the folder lives.
fn model() -> (TempDir, String) {
    let folder = tempdir().unwrap();
    let out = folder.path().join("model").to_str().unwrap().to_string();
    let made = on_cpu(&["init", "test", "--out", &out, "--seed", "1", "--vocab", "512"]);
    assert!(made.status.success(), "{}", stderr(&made));
    (folder, out)
}

fn plan(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = tritter().arg("plan").args(arguments).arg("--json").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {stderr}"));
    (output.status.code(), json)
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn one_error(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && words.iter().all(|word| last.contains(word)), "{words:?}: {said}");
}

#[test]
fn the_headline_fits_a_card_of_16_gb() {
    let arguments = ["7B", "--context", "128K", "--batch", "1", "--kv", "int4", "--desktop", "wayland"];
    let (code, plan) = plan(&[&arguments[..], &["--device-memory", "16GB"]].concat());
    assert_eq!((code, &plan["fits"], &plan["context"]), (Some(0), &Value::Bool(true), &131_072.into()));
    assert_eq!(plan["budget"]["bytes"], 12_680_000_000u64);
    let total = plan["total"].as_u64().unwrap();
    assert!((7 * GB..9 * GB).contains(&total), "{plan}");
    let parts = plan["parts"].as_array().unwrap();
    assert_eq!(parts.iter().map(|part| part["bytes"].as_u64().unwrap()).sum::<u64>(), total);
    for words in
        ["ternary weights", "embedding", "norms", "codes", "scales", "newest", "activations", "logits", "overhead"]
    {
        assert!(parts.iter().any(|part| part["name"].as_str().unwrap().contains(words)), "no {words}: {parts:?}");
    }
}

#[test]
fn what_does_not_fit_exits_with_3_and_says_what_would() {
    let arguments = ["7B", "--context", "128K", "--kv", "f16", "--device-memory", "16GiB"];
    let (code, json) = plan(&arguments);
    assert_eq!((code, &json["fits"]), (Some(3), &Value::Bool(false)));
    let budget = json["budget"]["bytes"].as_u64().unwrap();
    let nearest = json["nearest"].as_array().unwrap();
    let options: Vec<&str> = nearest.iter().map(|one| one["options"].as_str().unwrap()).collect();
    assert!(options.iter().any(|o| o.starts_with("--kv int")), "{options:?}");
    assert!(options.iter().any(|o| o.starts_with("--context")), "{options:?}");
    assert!(nearest.iter().all(|one| one["total"].as_u64().unwrap() <= budget), "{nearest:?}");
    // What is proposed fits when it is asked for.
    let kv = options.iter().find_map(|o| o.strip_prefix("--kv ")).unwrap();
    let (code, json) = plan(&["7B", "--context", "128K", "--kv", kv, "--device-memory", "16GiB"]);
    assert_eq!((code, &json["fits"]), (Some(0), &Value::Bool(true)));
    let output = tritter().arg("plan").args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(3) && text.contains("does not fit") && text.contains("--kv int"), "{text}");
}

#[test]
fn layers_are_streamed_only_where_that_is_asked_for() {
    let arguments = ["13B", "--context", "4k", "--kv", "int4", "--head", "i8", "--memory-limit", "2GB"];
    let (code, json) = plan(&arguments);
    assert_eq!((code, &json["fits"]), (Some(3), &Value::Bool(false)));
    let (code, json) = plan(&[&arguments[..], &["--stream"]].concat());
    assert_eq!((code, &json["fits"]), (Some(0), &Value::Bool(true)));
    let stream = &json["stream"];
    assert!(stream["total"].as_u64().unwrap() <= 2 * GB && stream["streamed_bytes"].as_u64().unwrap() > 0, "{stream}");
    let (code, _) = plan(&["13B", "--context", "4k", "--kv", "int4", "--memory-limit", "100MB", "--stream"]);
    assert_eq!(code, Some(3), "a budget too small for one layer");
}

#[test]
fn training_is_planned_by_method() {
    let total = |method: &str| {
        let (code, json) = plan(&["125M", "--train", method, "--context", "256", "--batch", "1"]);
        assert_eq!(code, Some(0));
        json["total"].as_u64().unwrap()
    };
    let (qat, lora, qlora) = (total("qat"), total("lora"), total("qlora"));
    assert!(qlora < lora && lora < qat, "{qlora} {lora} {qat}");
    // As the run itself does where memory is short.
    let limited = |limit| plan(&["125M", "--train", "--context", "2048", "--batch", "64", "--memory-limit", limit]);
    let (code, json) = limited("4GB");
    assert_eq!((code, &json["fits"]), (Some(0), &Value::Bool(true)), "{json}");
    assert!(json["given_up"][0].as_str().unwrap().starts_with("micro-batches of 32"), "{}", json["given_up"]);
    let (code, json) = limited("2.5GB");
    assert_eq!((code, &json["fits"]), (Some(3), &Value::Bool(false)));
    let near = json["nearest"].as_array().unwrap();
    assert!(near.iter().any(|one| one["options"].as_str().unwrap().starts_with("--context")), "{near:?}");
}

#[test]
fn pictures_and_matrices_are_made() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("memory.svg");
    let arguments = ["test", "--context", "8k", "--memory-limit", "100MB", "--plot", file.to_str().unwrap()];
    plan(&arguments);
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("budget"), "{svg}");
    assert_eq!(svg.matches("<polyline").count(), 5);
    let (code, json) = plan(&["350M", "--matrix", "--context", "32k", "--kv", "int4"]);
    assert_eq!(code, Some(0));
    let cards: Vec<&str> =
        json["cards"].as_array().unwrap().iter().map(|card| card["name"].as_str().unwrap()).collect();
    for card in ["RTX 5090", "RTX 4070 Ti", "RTX 3080", "H100", "A100 80", "A100 40", "A10", "L40", "MI300X"] {
        assert!(cards.contains(&card), "{card} is not in {cards:?}");
    }
    assert_eq!(json["models"][0]["cells"].as_array().unwrap().len(), cards.len());
}

#[test]
fn a_limit_is_kept_or_refused_with_figures() {
    let (_folder, run) = model();
    let run = run.as_str();
    let generate = |more: &[&str]| on_cpu(&[&["generate", run, "The", "-n", "8", "--ignore-eos"], more].concat());
    one_error(&generate(&["--memory-limit", "1MB"]), &["needs", "1.0 MB", "--context"]);
    let free = generate(&["--temperature", "0"]);
    let limited = generate(&["--temperature", "0", "--memory-limit", "1GB"]);
    assert!(limited.status.success(), "{}", stderr(&limited));
    assert_eq!(free.stdout, limited.stdout);
    assert!(!stderr(&limited).contains("memory: "), "nothing was to be given up: {}", stderr(&limited));
}

#[test]
fn what_is_given_up_is_said() {
    let (_folder, run) = model();
    let run = run.as_str();
    let base = ["--context", "32k", "--kv", "f16"];
    let (_, whole) = plan(&[&[run][..], &base, &["--device", "cpu"]].concat());
    let limit = (whole["total"].as_u64().unwrap() * 9 / 10).to_string();
    let generate = |more: &[&str]| {
        let arguments =
            [&["generate", run, "The", "-n", "8", "--ignore-eos", "--memory-limit", &limit][..], &base, more];
        on_cpu(&arguments.concat())
    };
    let shrunk = generate(&["--kv-may-shrink"]);
    assert!(shrunk.status.success(), "{}", stderr(&shrunk));
    let said = stderr(&shrunk);
    let place = |words: &str| said.find(words).unwrap_or_else(|| panic!("no `{words}`: {said}"));
    assert!(place("memory: prompts in chunks") < place("memory: a cache in int"), "{said}");
    let narrow = generate(&["--fallback-window", "1k", "--sinks", "4"]);
    assert!(stderr(&narrow).contains("memory: each token sees the newest 1024 only"), "{}", stderr(&narrow));
    assert!(narrow.status.success());
    one_error(&generate(&[]), &["needs", "--kv-may-shrink", "--fallback-window"]);
}

#[test]
fn training_is_cut_smaller_where_memory_is_short() {
    let train = ["test", "--context", "64", "--batch"];
    let total = |batch: &str| {
        let (_, json) = plan(&[&train[..], &[batch, "--train", "--device", "cpu"]].concat());
        json["total"].as_u64().unwrap()
    };
    let bench = |limit: u64| {
        let limit = limit.to_string();
        let options = ["8", "--steps", "1", "--json", "--memory-limit", limit.as_str()];
        on_cpu(&[&["bench", "train"][..], &train, &options].concat())
    };
    let output = bench(total("2"));
    let said = stderr(&output);
    assert!(output.status.success() && said.contains("memory: micro-batches of 2, 4 of them for a step"), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["batch"], &report["micro_batch"], &report["recompute"]), (&8.into(), &2.into(), &false.into()));
    let [planned, overhead] = ["planned_bytes", "overhead_bytes"].map(|key| report[key].as_u64().unwrap());
    assert_eq!(planned + overhead, total("2"));
    if let Some(measured) = report["measured"]["bytes"].as_u64() {
        assert!(measured <= planned + planned / 50 + overhead, "{report}");
    }
    one_error(&bench(overhead + 1_000_000), &["training with micro-batches of 1", "--precision bf16"]);
}

#[test]
fn windows_and_sinks_that_make_no_sense_are_named() {
    let (_folder, run) = model();
    let run = run.as_str();
    let generate = |more: &[&str]| on_cpu(&[&["generate", run, "The", "-n", "4"], more].concat());
    one_error(&generate(&["--window", "0"]), &["window", "0"]);
    one_error(&generate(&["--window", "4", "--sinks", "5"]), &["sinks", "window"]);
    let wrong = generate(&["--context", "12x"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("--context") && stderr(&wrong).contains("1024"), "{}", stderr(&wrong));
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_measures_no_more_than_its_plan() {
    let arguments = ["bench", "decode", "125M", "--kv", "int4", "--head", "i8", "--prompt", "300", "-n", "8"];
    let output = on_cpu(&[&arguments[..], &["--repeats", "1", "--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [planned, overhead] = ["planned_bytes", "overhead_bytes"].map(|key| report[key].as_u64().unwrap());
    let measured = report["measured"]["bytes"].as_u64().expect("Linux says what is resident");
    assert!(measured > planned / 2 && measured <= planned + planned / 50 + overhead, "{report}");
}
