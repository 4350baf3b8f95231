//! `validate` on every device: it passes every fixture and leaves nothing unknown, and one
//! altered weight or expected value makes it fail.

mod altered;

use altered::{Copy, expected_tensors};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tritter::validate::{Report, validate};
use tritter_runtime::Device;
use tritter_tests::{Candidate, devices};

const MODELS: [&str; 6] =
    ["bitnet_online", "bitnet_packed", "llama_bitlinear_packed", "llama3", "llama_tied_bias", "mistral_swa"];
const TOKENIZERS: [&str; 2] = ["tokenizer_llama3", "tokenizer_gpt2"];
/// Training runs and the models that they start from.
const TRAINING: [(&str, &str); 2] = [("train_bitnet_qat", "bitnet_online"), ("train_llama_full", "llama3")];
/// Single operations, and an input of each.
const OPERATIONS: [(&str, &str); 2] = [("attention", "g4.q"), ("kivi", "k")];
/// What no output depends on: a norm follows whose result is the same at any scale of its input.
/// (In layer 0 the values before that norm are golden too.)
const WITHOUT_EFFECT: [&str; 2] =
    ["model.layers.1.mlp.gate_proj.weight_scale", "model.layers.1.mlp.up_proj.weight_scale"];
/// A projection that every model has.
const WEIGHT: &str = "model.layers.1.mlp.down_proj.weight";

type Test = fn(&Device, &str) -> Result<(), Failed>;

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for candidate in devices().iter().filter(|c| c.variant.is_none()) {
        let training = TRAINING.map(|(name, _)| name);
        let mut add = |what: &str, fixtures: &[&'static str], test: Test| {
            trials.extend(fixtures.iter().map(|fixture| trial(candidate, what, fixture, test)));
        };
        let operations = OPERATIONS.map(|(name, _)| name);
        add("passes", &[&MODELS[..], &TOKENIZERS, &training, &operations].concat(), passes);
        add("altered operand", &operations, altered_operand);
        add("every altered expectation", &operations, every_altered_expectation);
        add("altered weight", &[&MODELS[..], &training].concat(), altered_weight);
        add("altered tokenizer", &TOKENIZERS, altered_tokenizer);
        add("altered expectation", &[&MODELS[..], &training].concat(), altered_expectation);
        add("every altered expectation", &[&MODELS[..], &training].concat(), every_altered_expectation);
    }
    let cpu = Candidate { label: "cpu".into(), device: Ok(tritter_runtime::cpu::open()), variant: None, sliced: true };
    trials.extend(MODELS.map(|fixture| trial(&cpu, "every altered weight", fixture, every_altered_weight)));
    trials.extend([
        trial(&cpu, "a model alone", "llama3", a_model_alone),
        trial(&cpu, "an impossible code", "bitnet_packed", an_impossible_code),
        trial(&cpu, "a name not known", "llama3", a_name_not_known),
        trial(&cpu, "an altered learning rate", "train_llama_full", an_altered_learning_rate),
    ]);
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(candidate: &Candidate, what: &str, fixture: &'static str, test: Test) -> Trial {
    let name = format!("{}::{fixture}::{what}", candidate.label);
    match candidate.device.clone() {
        Ok(device) => Trial::test(name, move || test(&device, fixture)),
        Err(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A copy of a fixture that may be altered, beside a copy of its base model.
fn copy(name: &str) -> Result<Copy, Failed> {
    let base = TRAINING.iter().find(|(training, _)| *training == name).map(|(_, base)| fixture(base));
    Ok(Copy::new(&fixture(name), base.as_deref())?)
}

fn check(device: &Device, folder: &Path) -> Result<Report, Failed> {
    // The whole chain of causes.
    validate(folder, device).map_err(|error| format!("{error:#}").into())
}

fn passes(device: &Device, name: &str) -> Result<(), Failed> {
    let report = check(device, &fixture(name))?;
    if report.outcome().is_err() || !report.unknown.is_empty() {
        return Err(report.to_string().into());
    }
    Ok(())
}

/// Base names (without the measure in brackets) of the checks that fail.
fn failing(report: &Report) -> BTreeSet<String> {
    let failed = report.checks.iter().filter(|check| !check.pass);
    failed.map(|check| check.name.split(" (").next().unwrap_or_default().to_owned()).collect()
}

fn must_fail(report: &Report, altered: &str) -> Result<(), Failed> {
    if report.failed() > 0 && report.outcome().is_err() {
        return Ok(());
    }
    Err(format!("`{altered}` was altered and nothing failed:\n{report}").into())
}

fn altered_weight(device: &Device, name: &str) -> Result<(), Failed> {
    let copy = copy(name)?;
    copy.alter_weight(WEIGHT)?;
    must_fail(&check(device, copy.folder())?, WEIGHT)
}

fn altered_operand(device: &Device, name: &str) -> Result<(), Failed> {
    let operand = OPERATIONS.iter().find(|(folder, _)| *folder == name).map(|(_, operand)| *operand);
    let operand = operand.ok_or("no operand is named")?;
    let copy = copy(name)?;
    copy.alter("golden.safetensors", operand)?;
    must_fail(&check(device, copy.folder())?, operand)
}

fn every_altered_weight(device: &Device, name: &str) -> Result<(), Failed> {
    for weight in altered::tensors(&fixture(name).join("model.safetensors"))? {
        if name == "bitnet_packed" && WITHOUT_EFFECT.contains(&weight.as_str()) {
            continue;
        }
        let copy = copy(name)?;
        copy.alter_weight(&weight)?;
        must_fail(&check(device, copy.folder())?, &weight)?;
    }
    Ok(())
}

fn altered_tokenizer(device: &Device, name: &str) -> Result<(), Failed> {
    let copy = copy(name)?;
    copy.edit_json("tokenizer.json", |json| {
        json["model"]["merges"].as_array_mut().map(|merges| merges.remove(0));
    })?;
    must_fail(&check(device, copy.folder())?, "merges")?;
    let copy = self::copy(name)?;
    copy.edit_json("golden.json", |json| json["pair"]["ids"][0] = 1.into())?;
    let report = check(device, copy.folder())?;
    if failing(&report) != BTreeSet::from(["tokenizer pair.ids".to_owned()]) {
        return Err(format!("one id of `pair` was altered:\n{report}").into());
    }
    Ok(())
}

/// One expected value is altered: its check fails and no other.
fn altered_expectation(device: &Device, name: &str) -> Result<(), Failed> {
    let training = TRAINING.iter().any(|(training, _)| *training == name);
    let tensor = if training { "grad.model.norm.weight" } else { "logits" };
    let copy = copy(name)?;
    copy.alter("golden.safetensors", tensor)?;
    let report = check(device, copy.folder())?;
    if failing(&report) != BTreeSet::from([tensor.to_owned()]) {
        return Err(format!("one value of `{tensor}` was altered:\n{report}").into());
    }
    Ok(())
}

/// One value of every expected tensor is altered: the check of each fails.
fn every_altered_expectation(device: &Device, name: &str) -> Result<(), Failed> {
    let copy = copy(name)?;
    let mut expected = BTreeSet::new();
    for file in ["golden.safetensors", "ternary.safetensors"] {
        let path = copy.folder().join(file);
        for tensor in if path.exists() { expected_tensors(&path)? } else { Vec::new() } {
            copy.alter(file, &tensor)?;
            expected.insert(tensor);
        }
    }
    if TRAINING.iter().any(|(training, _)| *training == name) {
        copy.edit_json("golden.json", |json| json["losses"][19] = 1.into())?;
        expected.insert("golden.json losses".into());
    }
    let report = check(device, copy.folder())?;
    let unseen: Vec<_> = expected.difference(&failing(&report)).cloned().collect();
    if unseen.is_empty() { Ok(()) } else { Err(format!("altered and not seen: {unseen:?}\n{report}").into()) }
}

fn a_model_alone(device: &Device, name: &str) -> Result<(), Failed> {
    let copy = copy(name)?;
    for file in ["golden.safetensors", "config.legacy.json"] {
        std::fs::remove_file(copy.folder().join(file))?;
    }
    let report = check(device, copy.folder())?;
    match report.outcome() {
        Err(why) if why.contains("nothing was checked") && report.failed() == 0 => Ok(()),
        other => Err(format!("{other:?}\n{report}").into()),
    }
}

fn an_impossible_code(device: &Device, name: &str) -> Result<(), Failed> {
    let copy = copy(name)?;
    copy.overwrite("model.safetensors", WEIGHT, 0xff)?;
    let report = check(device, copy.folder())?;
    if failing(&report) == BTreeSet::from(["weights".to_owned()]) && report.notes.iter().any(|n| n.contains("code 3")) {
        return Ok(());
    }
    Err(report.to_string().into())
}

fn a_name_not_known(device: &Device, name: &str) -> Result<(), Failed> {
    let copy = copy(name)?;
    copy.rename("golden.safetensors", "gen_margin", "gen_murmur")?;
    let report = check(device, copy.folder())?;
    if report.unknown == ["gen_murmur"] && report.failed() == 0 { Ok(()) } else { Err(report.to_string().into()) }
}

fn an_altered_learning_rate(device: &Device, name: &str) -> Result<(), Failed> {
    let copy = copy(name)?;
    copy.edit_json("golden.json", |json| json["optimizer"]["lr"] = 0.0011.into())?;
    must_fail(&check(device, copy.folder())?, "lr")
}
