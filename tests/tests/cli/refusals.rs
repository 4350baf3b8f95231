//! What is broken or impossible is refused by one sentence that names it.

use crate::{fails, name, one_error, train};
use serde_json::Value;
use std::fs;
use std::path::Path;
use tempfile::{TempDir, tempdir};
use tritter_tests::program::{copy, fixture, listing, made, on_cpu, text};

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
