//! The executable as a whole: help, errors, JSON, and what its commands promise of each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use tempfile::{TempDir, tempdir};
use tritter_runtime::random::Random;
use tritter_tests::fresh_seed;
use tritter_tests::program::{copy, fed, fixture, listing, made, on_cpu, succeeds, text, tritter};

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

/// Changes the text of a file; it must be there.
fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{} has no `{from}`", file.display());
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// Changes the header of `model.safetensors`.
fn header(folder: &Path, change: impl FnOnce(&mut Value)) {
    let file = folder.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut value: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    change(&mut value);
    let json = serde_json::to_vec(&value).unwrap();
    fs::write(&file, [&(json.len() as u64).to_le_bytes(), json.as_slice(), &bytes[end..]].concat()).unwrap();
}

/// Opens a broken copy of `bitnet_online`.
fn opening_fails(folder: &TempDir, words: &[&str]) {
    let path = name(folder.path());
    fails(&["bench", "decode", path, "--prompt", "2", "--tokens", "2"], folder.path(), words);
    let out = tempdir().unwrap();
    fails(&["pack", path, name(&out.path().join("packed"))], folder.path(), words);
    assert!(listing(out.path()).is_empty(), "a failed `pack` left files");
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
fn models_that_are_not_there() {
    let folder = tempdir().unwrap();
    let missing = folder.path().join("missing");
    let words = ["missing"];
    for command in ["generate", "validate", "plan"] {
        fails(&[command, name(&missing)], folder.path(), &words);
    }
    fails(&["pack", name(&missing), name(&folder.path().join("out"))], folder.path(), &words);
    fails(&["generate", "125M", "The"], folder.path(), &["`125M`", "preset", "folder"]);
    fails(&["check", "--row", "nonsense"], folder.path(), &["nonsense"]);
}

#[test]
fn broken_weight_files() {
    let tensor = "model.layers.0.self_attn.k_proj.weight";
    let broken = |change: &dyn Fn(&Path), words: &[&str]| {
        let folder = fixture("bitnet_online");
        change(folder.path());
        opening_fails(&folder, words);
    };
    let file = |folder: &Path| folder.join("model.safetensors");
    let cut = |length: usize| {
        move |folder: &Path| {
            let bytes = fs::read(file(folder)).unwrap();
            fs::write(file(folder), &bytes[..length]).unwrap();
        }
    };
    for length in [0, 7, 100] {
        broken(&cut(length), &["model.safetensors"]);
    }
    broken(&cut(500_000), &["model.safetensors", "tensor", "cut short"]);
    let huge = |folder: &Path| {
        let bytes = fs::read(file(folder)).unwrap();
        fs::write(file(folder), [&(1u64 << 60).to_le_bytes(), &bytes[8..]].concat()).unwrap();
    };
    broken(&huge, &["model.safetensors", "header", "1152921504606846976"]);
    let turned = |folder: &Path| header(folder, |h| h[tensor]["shape"].as_array_mut().unwrap().reverse());
    broken(&turned, &["model.safetensors", tensor, "[96, 32]", "[32, 96]"]);
    let integers = |folder: &Path| header(folder, |h| h[tensor]["dtype"] = "I32".into());
    broken(&integers, &["model.safetensors", tensor, "I32", "F32"]);
    let renamed = |folder: &Path| {
        header(folder, |h| {
            let entry = h.as_object_mut().unwrap().remove(tensor).unwrap();
            h["another.weight"] = entry;
        });
    };
    broken(&renamed, &["model.safetensors", tensor, "missing"]);
    let gap = |folder: &Path| header(folder, |h| drop(h.as_object_mut().unwrap().remove(tensor)));
    broken(&gap, &["model.safetensors", "gap"]);
    let shard = |folder: &Path| {
        fs::remove_file(file(folder)).unwrap();
        let index = r#"{"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#;
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    };
    broken(&shard, &["model.safetensors.index.json", "model-00001-of-00002.safetensors", "missing"]);
    broken(&|folder| fs::remove_file(file(folder)).unwrap(), &["model.safetensors"]);
}

#[test]
fn validate_names_what_is_wrong() {
    let folder = fixture("bitnet_online");
    header(folder.path(), |h| h["model.layers.0.self_attn.k_proj.weight"]["shape"].as_array_mut().unwrap().reverse());
    let before = listing(folder.path());
    let arguments = ["validate", name(folder.path())];
    let output = on_cpu(&arguments);
    one_error(&arguments, &output, &[name(folder.path()), "checks failed"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("k_proj.weight"));
    assert!(before == listing(folder.path()));
}

#[test]
fn impossible_configs() {
    let changes = [
        ("\"num_attention_heads\": 6", "\"num_attention_heads\": 7", "num_attention_heads"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", "num_key_value_heads"),
        ("\"hidden_size\": 96", "\"hidden_size\": 0", "hidden_size"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0", "num_hidden_layers"),
        ("\"vocab_size\": 512", "\"vocab_size\": 0", "vocab_size"),
        ("\"vocab_size\": 512", "\"vocab_size\": \"many\"", "vocab_size"),
        ("\"vocab_size\": 512", "\"nonsense\": 512", "vocab_size"),
        ("\"hidden_size\": 96", "\"hidden_size\": 99999999999999", "hidden_size"),
        ("\"model_type\": \"bitnet\"", "\"model_type\": \"nonsense\"", "nonsense"),
    ];
    for (from, to, field) in changes {
        let folder = fixture("bitnet_online");
        replace(&folder.path().join("config.json"), from, to);
        let path = name(folder.path());
        for arguments in [vec!["plan", path], vec!["validate", path]] {
            fails(&arguments, folder.path(), &["config.json", field]);
        }
        opening_fails(&folder, &["config.json", field]);
    }
    let folder = fixture("bitnet_online");
    fs::write(folder.path().join("config.json"), "{\"vocab_size\": ").unwrap();
    opening_fails(&folder, &["config.json", "JSON"]);
}

#[test]
fn tokenizers_that_do_not_fit() {
    let folder = copy(&made().run);
    replace(&folder.path().join("config.json"), "\"vocab_size\": 320", "\"vocab_size\": 300");
    fails(&["generate", name(folder.path()), "The"], folder.path(), &["tokenizer.json", "319", "300"]);
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    fails(&["generate", name(folder.path()), "The"], folder.path(), &["tokenizer.json"]);
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    fails(&["generate", name(folder.path()), "The"], folder.path(), &["tokenizer.json"]);
    fails(&["tokenizer", "decode", name(&made().tokenizer), "99999"], folder.path(), &["tokenizer.json", "99999"]);
}

#[test]
fn data_that_cannot_be_used() {
    let folder = tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    put("empty.txt", b"");
    put("binary.txt", &[0, 159, 146, 150, 255, 0, 7].repeat(100));
    put("broken.jsonl", b"{\"text\": \"a b\"}\n{\"text\": \n");
    put("other.jsonl", b"{\"text\": \"a b\"}\n\n{\"words\": \"a b\"}\n");
    fs::create_dir(folder.path().join("nothing")).unwrap();
    let cases: [(&str, &[&str]); 6] = [
        ("empty.txt", &["empty.txt", "no text"]),
        ("binary.txt", &["binary.txt", "UTF-8"]),
        ("broken.jsonl", &["broken.jsonl:2", "text"]),
        ("other.jsonl", &["other.jsonl:3", "text"]),
        ("missing.txt", &["missing.txt", "open"]),
        ("nothing", &["nothing", "no files"]),
    ];
    for (file, words) in cases {
        let [data, out, run] = [file, "out.json", "run"].map(|name| folder.path().join(name));
        fails(&["tokenizer", "train", name(&data), "--out", name(&out)], folder.path(), words);
        let arguments = train(name(&data), name(&made().tokenizer), name(&run), &["--steps", "1"]);
        fails(&arguments, folder.path(), words);
    }
}

#[cfg(unix)]
#[test]
fn data_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempdir().unwrap();
    let file = folder.path().join("secret.txt");
    fs::write(&file, "text").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&file).is_err() {
        let out = folder.path().join("tokenizer.json");
        fails(&["tokenizer", "train", name(&file), "--out", name(&out)], folder.path(), &["secret.txt", "ermission"]);
    }
}

#[test]
fn a_prompt_is_computed_once() {
    let (run, folder) = (name(&made().run), tempdir().unwrap());
    let (file, prompt) = (folder.path().join("prompt.cache"), "The river ran over the stones");
    let file = name(&file);
    for kv in ["f32", "int4"] {
        let generate = |more: &[&str]| {
            let base = ["generate", run, prompt, "-n", "12", "--temperature", "0", "--kv", kv, "--ignore-eos"];
            json(&[&base[..], more].concat(), &["ids"])["ids"].clone()
        };
        let saved = generate(&["--save-cache", file]);
        assert_eq!(generate(&["--load-cache", file]), saved, "{kv}");
    }
    let load = ["--load-cache", file, "-n", "12"];
    fails(&[&["generate", run, prompt], &load[..]].concat(), folder.path(), &["prompt.cache", "int4", "f32"]);
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    let coded = [&["generate", run, prompt, "--kv", "int4"], &load[..]].concat();
    fails(&coded, folder.path(), &["prompt.cache", "cut short"]);
}

#[test]
fn perplexity_of_every_cache_type_is_given_against_f16() {
    let (run, data) = (name(&made().run), text());
    let arguments = ["perplexity", run, "--text", name(&data), "--context", "256", "--tokens", "512"];
    let report = json(&arguments, &["model", "context", "tokens", "caches"]);
    let caches = report["caches"].as_array().unwrap();
    assert_eq!(caches.len(), 5);
    for cache in caches {
        let (kv, ratio) = (cache["kv"].as_str().unwrap(), cache["ratio_to_f16"].as_f64().unwrap());
        assert!((ratio - 1.0).abs() < if kv == "int2" { 0.3 } else { 0.05 }, "{kv}: {ratio}");
    }
    fails(&["perplexity", run, "--text", name(&data), "--kv", "int3"], &made().run, &["int3", "int4"]);
}

#[test]
fn an_extension_of_the_context_is_stated() {
    let run = name(&made().run);
    fails(&["plan", run, "--context", "200000"], &made().run, &["200000", "131072", "--rope"]);
    succeeds(&["plan", run, "--context", "200000", "--rope", "yarn:2"]);
    succeeds(&["plan", run, "--context", "200000", "--rope", "theta:5e6"]);
    fails(&["plan", run, "--context", "300000", "--rope", "linear:2"], &made().run, &["300000", "262144"]);
}

#[test]
fn a_text_that_finds_no_page_ends_and_says_so() {
    let run = name(&made().run);
    let both = ["generate", run, "--prompt", "The", "--prompt", "A river", "-n", "100", "--ignore-eos"];
    let found = json(&[&both[..], &["--pages", "3"]].concat(), &["outputs"]);
    let texts = found["outputs"].as_array().unwrap();
    let mut reasons: Vec<&str> = texts.iter().map(|text| text["finish"].as_str().unwrap()).collect();
    reasons.sort();
    assert_eq!(reasons, ["cache pages", "length"]);
    fails(&[&both[..], &["--pages", "0"]].concat(), &made().run, &["pool of 0 pages"]);
}

#[test]
fn a_window_with_sinks_takes_a_text_of_any_length() {
    let run = name(&made().run);
    let stream = ["generate", run, "The", "-n", "3", "--context", "1m", "--window", "64"];
    succeeds(&[&stream[..], &["--sinks", "4"]].concat());
    succeeds(&stream);
    fails(&["generate", run, "The", "-n", "3", "--window", "0"], &made().run, &["window of 0"]);
    fails(
        &["generate", run, "The", "-n", "3", "--window", "4", "--sinks", "5"],
        &made().run,
        &["5 sinks", "window of 4"],
    );
}

#[test]
fn contexts_that_are_too_small_or_too_large() {
    let run = name(&made().run);
    fails(&["generate", run, "The", "-n", "200000"], &made().run, &["131072", "max_position_embeddings"]);
    fails(&["generate", run, "The", "-n", "1", "--context", "200000"], &made().run, &["200000", "131072"]);
    fails(
        &["generate", run, "The river ran over the stones", "-n", "1", "--context", "3"],
        &made().run,
        &["--context"],
    );
    fails(&["plan", run, "--context", "200000"], &made().run, &["200000", "131072"]);
    let out = tempdir().unwrap();
    let (data, out_run) = (text(), out.path().join("run"));
    let base = ["train", "--data", name(&data), "--tokenizer", name(&made().tokenizer), "--out", name(&out_run)];
    fails(&[&base[..], &["--context", "1000000"]].concat(), out.path(), &["context", "1000000", "131072"]);
    fails(&[&base[..], &["--context", "1"]].concat(), out.path(), &["context", "2 tokens"]);
}

#[test]
fn packing_what_cannot_be_packed() {
    let out = tempdir().unwrap();
    let packed = out.path().join("packed");
    let dense = fixture("llama3");
    fails(&["pack", name(dense.path()), name(&packed)], out.path(), &[name(dense.path()), "ternary"]);
    fails(&["unpack", name(&made().run), name(&packed)], out.path(), &[name(&made().run), "not packed"]);
    fs::write(out.path().join("notes.txt"), "mine").unwrap();
    fails(&["pack", name(&made().run), name(out.path())], out.path(), &[name(out.path()), "not empty"]);
    let offline = fixture("bitnet_packed");
    fails(&["unpack", name(offline.path()), name(out.path())], out.path(), &[name(out.path()), "not empty"]);
}

#[test]
fn runs_are_not_overwritten() {
    let run = copy(&made().run);
    let (path, data, tokenizer) = (run.path(), text(), name(&made().tokenizer));
    let data = name(&data);
    let go_on = |more: &[&str], words: &[&str]| fails(&train(data, tokenizer, name(path), more), path, words);
    go_on(&["--steps", "4"], &[name(path), "model.safetensors", "resume"]);
    go_on(&["--steps", "4", "--resume", "--seed", "9"], &[name(path), "seed"]);
    go_on(&["--steps", "4", "--resume", "--lr", "0.5"], &[name(path), "lr"]);
    go_on(&["--steps", "4", "--resume", "--precision", "bf16"], &[name(path), "precision"]);
    go_on(&["--steps", "4", "--resume", "--arch", "tritter"], &[name(path), "config.json"]);
    go_on(&["--steps", "1", "--resume"], &[name(path), "2 steps"]);
    let mut other = train(data, tokenizer, name(path), &["--steps", "4", "--resume"]);
    let place = other.iter().position(|a| *a == "--batch").unwrap();
    other[place + 1] = "2";
    fails(&other, path, &[name(path), "batch"]);
    let changed = tempdir().unwrap();
    let file = changed.path().join("other.txt");
    fs::write(&file, fs::read_to_string(text()).unwrap().to_uppercase()).unwrap();
    fails(&train(name(&file), tokenizer, name(path), &["--steps", "4", "--resume"]), path, &[name(path), "text"]);
    let arguments = train(data, tokenizer, name(&file), &["--steps", "4", "--resume"]);
    fails(&arguments, changed.path(), &["other.txt", "not a folder"]);
    fails(
        &["tokenizer", "train", data, "--out", name(&path.join("tokenizer.json"))],
        path,
        &["tokenizer.json", "exists"],
    );
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
fn the_same_seed_gives_the_same_text() {
    let seed = (fresh_seed() % 1_000_000).to_string();
    let sampled = |seed: &str| {
        let arguments = [
            "generate",
            name(&made().run),
            "The river",
            "-n",
            "40",
            "--ignore-eos",
            "--temperature",
            "1",
            "--seed",
            seed,
        ];
        json(&arguments, &[])["ids"].clone()
    };
    let first = sampled(&seed);
    assert_eq!(first.as_array().unwrap().len(), 40);
    assert_eq!(first, sampled(&seed), "seed {seed}");
    let other = (0..4).map(|i| sampled(&format!("{seed}{i}")));
    assert!(other.into_iter().any(|ids| ids != first), "seed {seed} and four others give the same");
}

fn greedy(model: &Path, prompt: &str, threads: &str) -> Value {
    let arguments = ["generate", name(model), prompt, "-n", "24", "--ignore-eos", "--temperature", "0", "-t", threads];
    json(&arguments, &[])["ids"].clone()
}

#[test]
fn greedy_text_does_not_depend_on_threads_or_packing() {
    let out = tempdir().unwrap();
    let (packed, dense) = (out.path().join("packed"), out.path().join("dense"));
    let first = greedy(&made().run, "The river", "1");
    assert_eq!(first.as_array().unwrap().len(), 24);
    assert_eq!(first, greedy(&made().run, "The river", "3"));
    let report = json(&["pack", name(&made().run), name(&packed)], &[]);
    assert!(report["bytes_after"].as_u64().unwrap() * 8 < report["bytes_before"].as_u64().unwrap());
    assert_eq!(first, greedy(&packed, "The river", "2"));
    assert!(listing(&packed).keys().all(|f| !name(f).contains("state-")), "a packed folder needs no optimiser state");
    succeeds(&["unpack", name(&packed), name(&dense)]);
    assert_eq!(greedy(&dense, "The river", "2").as_array().unwrap().len(), 24);
}

#[test]
fn prompts_come_from_standard_input_too() {
    let run = name(&made().run);
    let arguments = ["generate", run, "-n", "5", "--ignore-eos", "--temperature", "0", "--json"];
    let piped = fed(&arguments, "The rivér\n".as_bytes());
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
    let piped = object(&piped.stdout);
    assert_eq!(piped["prompt"], "The rivér");
    assert_eq!(piped["generated_tokens"], 5);
    let named = json(&["generate", run, "The rivér", "-n", "5", "--ignore-eos", "--temperature", "0"], &[]);
    assert_eq!(piped["ids"], named["ids"]);
    let bad = fed(&["generate", run, "-n", "5"], b"\xff\xff");
    one_error(&["generate (from standard input)"], &bad, &["standard input", "UTF-8"]);
    let plain = succeeds(&["generate", run, "The river", "-n", "2", "--ignore-eos"]);
    assert!(plain.starts_with(b"The river") && plain.ends_with(b"\n"));
}

#[test]
fn several_prompts_give_what_each_gives_alone() {
    let run = name(&made().run);
    let choice = ["-n", "12", "--ignore-eos", "--temperature", "0.8", "--seed", "4"];
    let alone = |prompt: &str| json(&[&["generate", run, prompt], &choice[..]].concat(), &["finish"])["ids"].clone();
    let folder = tempdir().unwrap();
    let file = folder.path().join("prompts.txt");
    fs::write(&file, "The stones\n\nOnce more\n").unwrap();
    let several = ["generate", run, "The river", "--prompt", "A", "--prompts", name(&file)];
    for batch in ["1", "3", "16"] {
        let report = json(&[&several[..], &["--batch", batch], &choice[..]].concat(), &["outputs", "seed"]);
        let outputs = report["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), 4);
        for (output, prompt) in outputs.iter().zip(["The river", "A", "The stones", "Once more"]) {
            assert_eq!(output["prompt"], prompt);
            assert_eq!(output["ids"], alone(prompt), "{prompt} in batches of {batch}");
        }
    }
    fails(&["generate", run, "--prompts", name(&folder.path().join("none"))], folder.path(), &["none", "prompts"]);
    fs::write(&file, "\n").unwrap();
    fails(&["generate", run, "--prompts", name(&file)], folder.path(), &["prompts.txt", "no prompts"]);
    fails(&["generate", run, "a", "--batch", "0"], folder.path(), &["--batch"]);
}

#[test]
fn generation_stops_and_says_what_it_took() {
    let run = name(&made().run);
    let choice = ["-n", "40", "--ignore-eos", "--temperature", "0"];
    let of =
        |more: &[&str], fields: &[&str]| json(&[&["generate", run, "The river"], &choice[..], more].concat(), fields);
    let whole = of(&[], &["text"]);
    assert_eq!(whole["finish"], "length");
    let letters: Vec<char> = whole["text"].as_str().unwrap().chars().collect();
    let stop: String = letters[letters.len() / 2..].iter().take(4).collect();
    let stopped = of(&["--stop", &stop, "--stop", "\u{1}"], &["text"]);
    assert_eq!(stopped["finish"], "stop");
    assert_eq!(stopped["text"].as_str(), whole["text"].as_str().unwrap().split(&stop).next());
    let drafted = of(&["--speculate", "5", "--stats"], &["stats"]);
    assert_eq!(drafted["ids"], whole["ids"]);
    let stats = &drafted["stats"];
    let number = |field: &str| stats[field].as_f64().unwrap_or_else(|| panic!("{field} in {stats}"));
    for field in
        ["time_to_first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "bytes_per_token"]
    {
        assert!(number(field) > 0.0, "{field}");
    }
    assert!(number("tokens_per_step") >= 1.0 && number("bandwidth_share") > 0.0 && number("steps") <= 39.0);
    let here = tempdir().unwrap();
    fails(&["generate", run, "a", "--speculate", "3", "--temperature", "1"], here.path(), &["--temperature 0"]);
    fails(&["generate", run, "a", "--speculate", "3", "--batch", "2"], here.path(), &["--batch"]);
}

/// A run with a chat template.
fn with_template(template: &str) -> TempDir {
    let folder = copy(&made().run);
    let (file, tokens) = (folder.path().join("chat_template.jinja"), folder.path().join("generation_config.json"));
    fs::write(file, template).unwrap();
    fs::write(tokens, "{\"do_sample\": false}").unwrap();
    folder
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content.strip() }}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

#[test]
fn a_chat_feeds_only_what_is_new() {
    let folder = with_template(TEMPLATE);
    let arguments = ["chat", name(folder.path()), "-n", "6", "--system", "Be brief.", "--json"];
    let said = "The river\nover \\\nthe stones\n\n/reset\nThe river\n/quit\nnot said\n";
    let output = fed(&arguments, said.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = object(&output.stdout);
    let turns = report["turns"].as_array().unwrap();
    let number = |turn: usize, field: &str| turns[turn][field].as_u64().unwrap();
    assert_eq!(turns.len(), 3);
    assert_eq!(turns[1]["user"], "over \nthe stones");
    assert_eq!(number(0, "fed_tokens"), number(0, "context_tokens"));
    assert!(number(1, "context_tokens") > number(0, "context_tokens"));
    assert!(number(1, "fed_tokens") < number(1, "context_tokens") - number(0, "context_tokens") + 4, "{report:?}");
    assert_eq!((&turns[2]["text"], number(2, "context_tokens")), (&turns[0]["text"], number(0, "context_tokens")));
    assert!(number(2, "fed_tokens") < number(0, "fed_tokens"), "the system prompt stays in the cache: {report:?}");
    // The second turn says what the whole conversation says in one prompt.
    let plain = fed(&arguments[..6], b"The river\n");
    assert_eq!(String::from_utf8_lossy(&plain.stdout), format!("{}\n", turns[0]["text"].as_str().unwrap()));
    let once = ["generate", name(folder.path()), "The river", "--chat", "--system", "Be brief.", "-n", "6"];
    assert_eq!(json(&once, &[])["text"], turns[0]["text"]);
}

#[test]
fn chats_that_cannot_be() {
    let run = &made().run;
    fails(&["chat", name(run)], run, &["chat_template"]);
    fails(&["generate", name(run), "a", "--chat"], run, &["chat_template"]);
    let folder = with_template("{{ raise_exception('no chats here') }}");
    let output = fed(&["chat", name(folder.path())], b"a\n");
    one_error(&["chat"], &output, &["chat_template.jinja", "no chats here"]);
    let folder = with_template(TEMPLATE);
    let long = format!("{}\nThe\n", "river ".repeat(200));
    let output = fed(&["chat", name(folder.path()), "--context", "64", "-n", "2", "--json"], long.as_bytes());
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--context"));
    assert_eq!(object(&output.stdout)["turns"].as_array().unwrap().len(), 1, "what does not fit is not said");
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
