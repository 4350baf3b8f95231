//! The model's files themselves: spellings of the config, shapes, codes, scales.

use super::bounds;
use super::golden::Golden;
use super::report::Report;
use super::{compare, read_json};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;
use tritter_model::Config;
use tritter_model::online::finite;
use tritter_model::packed::row_words;
use tritter_model::source::{FromCheckpoint, Source, Stored, rows, width};
use tritter_model::tensor_names::TensorSpec;
use tritter_model::tensors::Checkpoint;
use tritter_model::weights::Model;
use tritter_runtime::{Device, reference};

/// Other spellings of `config.json` that a folder may have.
const SPELLINGS: [&str; 2] = ["config.legacy.json", "config.v5.json"];

/// Every spelling gives an equal config.
pub(super) fn check_spellings(folder: &Path, config: &Config, report: &mut Report) -> Result<()> {
    for name in SPELLINGS {
        let path = folder.join(name);
        if path.exists() {
            let other = Config::from_json(&path, &read_json(&path)?)?;
            report.golden(name, f64::from(other != *config), bounds::EQUAL);
        }
    }
    Ok(())
}

/// Shapes, dtypes, finite values, codes and scales of the checkpoint; the error is the number of
/// tensors at fault. `false` if there are any.
pub(super) fn check(folder: &Path, config: &Config, report: &mut Report) -> Result<bool> {
    let checkpoint = Checkpoint::open(folder)?;
    let mut faults = 0;
    if let Err(fault) = checkpoint.check(config) {
        report.note(fault.to_string());
        faults += 1;
    } else {
        let source = FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization };
        for spec in config.tensors() {
            if let Some(fault) = fault(&source, &spec) {
                report.note(fault);
                faults += 1;
            }
        }
    }
    report.add("weights", f64::from(faults), bounds::EQUAL);
    let stored = config.tensors().into_iter().flat_map(|spec| spec.stored(config.quantization));
    let known: BTreeSet<String> = stored.map(|tensor| tensor.name).collect();
    let others = checkpoint.names().filter(|name| !known.contains(*name));
    report.unknown.extend(others.map(|name| format!("weight {name}")));
    Ok(faults == 0)
}

/// What is wrong with one tensor's values.
fn fault(source: &dyn Source, spec: &TensorSpec) -> Option<String> {
    let check = || match source.stored(spec)? {
        Stored::Ternary { .. } => source.codes(spec, 0, &mut vec![0; rows(spec) * row_words(width(spec))]),
        _ => {
            let mut values = vec![0.0; rows(spec) * width(spec)];
            source.floats(spec, 0, &mut values)?;
            finite(spec, 0, &values)
        }
    };
    check().err().map(|fault| fault.to_string())
}

/// Codes in the device's memory against `ternary.safetensors`: the number that differ.
pub(super) fn check_codes(folder: &Path, model: &Model, device: &Device, report: &mut Report) -> Result<()> {
    let path = folder.join("ternary.safetensors");
    if !path.exists() {
        return Ok(());
    }
    let golden = Golden::open(&path)?;
    for part in model.ternary_matrices() {
        let (name, codes) = (format!("ternary.{}", part.name), &part.codes);
        if golden.has(&[&name]) {
            let k = codes.spec().cols();
            let expected = golden.codes(&name, &[part.rows, k])?;
            let words: Vec<u32> = device.read(codes)?;
            let all = reference::decode(codes.spec(), &words);
            let found = &all[part.first * k..(part.first + part.rows) * k];
            let found: Vec<i8> = found.iter().map(|&t| t as i8).collect();
            report.golden(name, compare::differing(&found, expected), bounds::EQUAL);
        }
    }
    report.unknown.extend(golden.unused().into_iter().map(|name| format!("ternary.safetensors {name}")));
    Ok(())
}
