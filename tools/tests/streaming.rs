//! `--stream`: a limit that is too small for all layers, as the executable keeps it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::process::{Command, Output};
use tempfile::tempdir;

fn tritter(arguments: &[&str], cache: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tritter"));
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir()).env("XDG_CACHE_HOME", cache).env_remove("TRITTER_LOG");
    command.args(arguments).args(["--device", "cpu"]).output().unwrap()
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn a_model_above_the_limit_streams_and_says_the_same() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (model, cache) = (path("model"), path("cache"));
    let made = tritter(&["init", "test", "--out", &model, "--seed", "1", "--vocab", "512"], &cache);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let arguments = ["generate", &model, "the river", "-n", "8", "--temperature", "0", "--stats", "--json", "--stream"];
    let whole = json(&tritter(&arguments, &cache));
    let stats = &whole["stats"];
    assert!(stats["streaming"].is_null(), "all layers fit: {whole}");
    let needed = stats["planned_bytes"].as_u64().unwrap() + stats["overhead_bytes"].as_u64().unwrap();

    let limited = |limit: u64| {
        let limit = limit.to_string();
        tritter(&[&arguments[..], &["--memory-limit", &limit]].concat(), &cache)
    };
    let streamed = json(&limited(needed - 1));
    assert_eq!(streamed["ids"], whole["ids"]);
    let streaming = &streamed["stats"]["streaming"];
    let count = |name: &str| streaming[name].as_u64().unwrap();
    assert!(count("resident_layers") < count("layers") && count("bytes_streamed") >= 8 * count("bytes_per_run"));
    assert!(count("bytes_per_run") > 0 && streaming["overlap"].is_f64(), "{streaming}");
    assert!(streamed["stats"]["planned_bytes"].as_u64().unwrap() < stats["planned_bytes"].as_u64().unwrap());
    // Nothing is left behind.
    assert_eq!(std::fs::read_dir(folder.path().join("cache/tritter")).unwrap().count(), 0);

    // Where not even one layer has room, chunks are smaller first, and a plan says so before.
    let long = [&arguments[..], &["--context", "4k"]].concat();
    let planned =
        |more: &[&str]| json(&tritter(&[&["plan", &model, "--context", "4k", "--json"][..], more].concat(), &cache));
    let mut limit = planned(&[])["total"].as_u64().unwrap();
    let (plan, limit) = loop {
        let text = limit.to_string();
        let plan = planned(&["--stream", "--memory-limit", &text]);
        if !plan["given_up"].as_array().unwrap().is_empty() {
            break (plan, text);
        }
        limit -= 250_000;
    };
    assert_eq!(plan["fits"], true, "{plan}");
    let output = tritter(&[&long[..], &["--memory-limit", &limit]].concat(), &cache);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("memory: prompts in chunks of") && said.contains("streaming: "), "{said}");
    let small = json(&output);
    assert_eq!(small["ids"], whole["ids"]);
    let stats = &small["stats"];
    let total = stats["planned_bytes"].as_u64().unwrap() + stats["overhead_bytes"].as_u64().unwrap();
    assert_eq!(plan["stream"]["total"], total, "{plan} {stats}");

    let refused = limited(stats["overhead_bytes"].as_u64().unwrap() + 1000);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("with one layer of") && said.contains("--memory-limit"), "{said}");
}
