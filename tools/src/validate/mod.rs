//! `tritter validate`: recomputes every golden output that a folder holds.
//!
//! What is in the folder decides what is checked: `config.json` and
//! `model.safetensors` (shapes, codes and scales), with `golden.safetensors` beside them the
//! model's outputs; `tokenizer.json` with `golden.json` the tokenizer; `fixture.json`
//! of a training kind the first steps of training its base model, of the kinds `attention` and
//! `kv_quantisation` single operations of the device. A golden value that
//! nothing here can check is listed as unknown. Bounds are in one table, `bounds`.

mod bounds;
mod causal;
mod compare;
mod golden;
mod heads;
mod kivi;
mod linear;
mod masks;
mod report;
mod tokens;
mod training;
mod weights;

pub use report::{Check, Report};

use anyhow::{Context, Result, bail};
use golden::Golden;
use serde_json::Value;
use std::path::Path;
use tritter_model::Config;
use tritter_model::tensors::{INDEX_FILE, SINGLE_FILE};
use tritter_runtime::Device;

/// What `fixture.json` says a folder is.
#[derive(Default)]
struct Fixture {
    kind: Option<String>,
    base_model: Option<String>,
}

/// Checks all that a folder holds, on a device. An error means that a file could not be
/// read; results that differ are failed checks of the report.
pub fn validate(folder: &Path, device: &Device) -> Result<Report> {
    if !folder.is_dir() {
        bail!("{}: there is no such folder; give one with a model or tokenizer and golden outputs", folder.display());
    }
    let has = |name: &str| folder.join(name).exists();
    let fixture = fixture(folder)?;
    let mut report = Report::new(folder, device);
    let golden = has("golden.safetensors").then(|| Golden::open(&folder.join("golden.safetensors"))).transpose()?;
    let training = match fixture.kind.as_deref() {
        Some("qat_training") => Some(&bounds::QAT),
        Some("full_training") => Some(&bounds::FULL),
        _ => None,
    };
    if has("tokenizer.json") && has("golden.json") && training.is_none() {
        tokens::check(folder, &mut report)?;
    } else if has("golden.json") && !matches!(fixture.kind.as_deref(), Some("attention" | "kv_quantisation")) {
        training::check_keys(&read_json(&folder.join("golden.json"))?, training.is_some(), &mut report);
    }
    if has("config.json") && (has(SINGLE_FILE) || has(INDEX_FILE)) {
        let config = Config::load(folder)?;
        weights::check_spellings(folder, &config, &mut report)?;
        if weights::check(folder, &config, &mut report)? {
            causal::check(folder, &config, device, golden.as_ref(), &mut report)?;
        } else {
            report.note("the weights are at fault, so nothing was computed with them");
        }
    }
    if let (Some(bounds), Some(golden)) = (training, &golden) {
        let base = fixture.base_model.as_deref();
        let base =
            base.with_context(|| format!("{}: `base_model` is missing", folder.join("fixture.json").display()))?;
        training::check(folder, &folder.join(base), device, golden, bounds, &mut report)?;
    }
    match (fixture.kind.as_deref(), &golden) {
        (Some("attention"), Some(golden)) => masks::check(folder, device, golden, &mut report)?,
        (Some("kv_quantisation"), Some(golden)) => kivi::check(folder, device, golden, &mut report)?,
        _ => {}
    }
    if let (Some(golden), false) = (&golden, report.stopped()) {
        report.unknown.extend(golden.unused());
    }
    Ok(report)
}

fn fixture(folder: &Path) -> Result<Fixture> {
    let path = folder.join("fixture.json");
    if !path.exists() {
        return Ok(Fixture::default());
    }
    let json = read_json(&path)?;
    let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
    Ok(Fixture { kind: text("kind"), base_model: text("base_model") })
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}: not valid JSON", path.display()))
}
