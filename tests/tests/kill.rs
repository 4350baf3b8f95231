//! Training that is killed at random moments: the folder always holds a model that loads, at most
//! one step is lost, and the run ends as if nothing had happened.
//!
//! `TRITTER_KILLS` is the number of kills (default 8).

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::tempdir;
use tritter_model::tensors::Checkpoint;
use tritter_runtime::random::Random;
use tritter_tests::fresh_seed;
use tritter_tests::program::{made, on_cpu, succeeds, text, tritter};

/// The learning rate does not depend on the number of steps here, so a run that is killed long
/// before its last step can be finished early.
const SETTINGS: &str =
    "--preset test --batch 1 --context 32 --schedule constant --warmup 5 --evaluate-every 0 --device cpu";

fn train(out: &Path, steps: u64) -> Command {
    let mut command = tritter();
    command.arg("train").arg("--data").arg(text()).arg("--tokenizer").arg(&made().tokenizer).arg("--out").arg(out);
    command.args(SETTINGS.split(' ')).arg("--steps").arg(steps.to_string()).args(["--checkpoint-every", "1"]);
    command
}

/// Starts it and kills it (SIGKILL) after a while.
fn kill_after(mut command: Command, time: Duration, context: &str) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    sleep(time);
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(9), "{context}: it ended by itself: {stderr}");
}

/// The step in `model.safetensors`, with its state beside it; `None` if there is no model yet.
fn committed(run: &Path, context: &str) -> Option<u64> {
    let model = run.join("model.safetensors");
    if !model.exists() {
        return None;
    }
    let checkpoint = Checkpoint::open_file(&model).unwrap_or_else(|e| panic!("{context}: {e}"));
    let step = checkpoint.metadata().get("tritter.step").unwrap_or_else(|| panic!("{context}: no tritter.step"));
    let state = run.join(format!("state-{step}.safetensors"));
    Checkpoint::open_file(&state).unwrap_or_else(|e| panic!("{context}: {e}"));
    Some(step.parse().unwrap())
}

/// The last step that `metrics.jsonl` has; every line but an unfinished last one must be whole.
fn last_step(run: &Path, context: &str) -> u64 {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line =
        |l: &str| serde_json::from_str::<Value>(l).unwrap_or_else(|e| panic!("{context}: metrics.jsonl: {e}: {l}"));
    let lines: Vec<Value> = whole.lines().map(line).collect();
    lines.iter().rev().find(|l| l.get("loss").is_some()).map_or(0, |l| l["step"].as_u64().unwrap())
}

fn check(run: &Path, before: Option<u64>, context: &str) -> Option<u64> {
    let now = committed(run, context);
    assert!(now >= before, "{context}: step {before:?} was committed, now {now:?}");
    let done = last_step(run, context);
    let kept = now.unwrap_or(0);
    assert!(done <= kept + 1, "{context}: {done} steps were done but {kept} are kept");
    if now.is_some() {
        let output = on_cpu(&["generate", run.to_str().unwrap(), "The", "-n", "2", "--ignore-eos"]);
        assert!(output.status.success(), "{context}: {}", String::from_utf8_lossy(&output.stderr));
    }
    now
}

fn finish(mut command: Command, context: &str) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{context}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn killed_runs_lose_at_most_one_step() {
    let kills: u64 = std::env::var("TRITTER_KILLS").map_or(8, |n| n.parse().expect("TRITTER_KILLS is a number"));
    let seed = fresh_seed();
    println!("seed {seed}, {kills} kills");
    let mut random = Random::new(seed);
    let folder = tempdir().unwrap();
    let (run, straight) = (folder.path().join("run"), folder.path().join("straight"));
    // The first kill may come before the program has made it.
    fs::create_dir(&run).unwrap();
    let mut step = None;
    for i in 0..kills {
        let time = Duration::from_millis(50 + random.below(1451));
        let context = format!("seed {seed}, kill {i} after {time:?}, step {step:?} committed before");
        let mut command = train(&run, 1_000_000);
        if i > 0 {
            command.arg("--resume");
        }
        kill_after(command, time, &context);
        step = check(&run, step, &context);
    }
    println!("step {step:?} after {kills} kills");
    // At least the warm-up.
    let total = step.unwrap_or(0).max(5) + 3;
    let mut command = train(&run, total);
    command.arg("--resume");
    finish(command, &format!("seed {seed}: resumed to step {total}"));
    finish(train(&straight, total), &format!("seed {seed}: {total} steps at once"));
    for name in ["model.safetensors", &format!("state-{total}.safetensors")] {
        let same = fs::read(run.join(name)).unwrap() == fs::read(straight.join(name)).unwrap();
        // The state also carries the settings, which are the same by now.
        assert!(same, "seed {seed}: {name} differs from that of {total} steps at once");
    }
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&run), names(&straight), "seed {seed}: files were left behind");
}

#[test]
fn a_run_without_a_commit_starts_over() {
    let folder = tempdir().unwrap();
    let run = folder.path();
    fs::copy(made().run.join("tokenizer.json"), run.join("tokenizer.json")).unwrap();
    fs::copy(made().run.join("config.json"), run.join("config.json")).unwrap();
    fs::copy(made().run.join("state-2.safetensors"), run.join("state-0.safetensors")).unwrap();
    fs::write(run.join(".state-0.safetensors.tmp"), "cut off").unwrap();
    let (text, tokenizer) = (text(), made().tokenizer.to_str().unwrap());
    let mut arguments = vec!["train", "--data", text.to_str().unwrap(), "--tokenizer", tokenizer];
    arguments.extend(["--out", run.to_str().unwrap(), "--preset", "test", "--batch", "1", "--context", "32"]);
    succeeds(&[&arguments[..], &["--steps", "2", "--resume"]].concat());
    let model = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(model(run) == model(&made().run), "it did not start over");
    assert!(!run.join("state-0.safetensors").exists() && !run.join(".state-0.safetensors.tmp").exists());
}
