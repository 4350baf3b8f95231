//! `tritter check`: every kernel of a device against its f64 reference.

use crate::cli::{Check, Global};
use crate::{device, output};
use anyhow::{Result, bail};
use serde::Serialize;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use tritter_runtime::Device;
use tritter_runtime::check::{Finding, check_replays, check_rows};
use tritter_runtime::device::Support;
use tritter_runtime::op::{Case, Gradient, Row, Size};

#[derive(Serialize)]
struct Line {
    row: &'static str,
    case: String,
    variant: String,
    error: Option<f64>,
    bound: f64,
    pass: bool,
    fault: Option<String>,
}

#[derive(Serialize)]
struct Report {
    device: String,
    seed: u64,
    checks: Vec<Line>,
    passed: usize,
    failed: usize,
    /// Runs of one program of all rows.
    replays: usize,
    /// What grew over them.
    growth: Option<String>,
}

/// A seed that differs from run to run.
pub(crate) fn clock_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
}

pub(crate) fn run(global: &Global, args: &Check) -> Result<ExitCode> {
    if args.coverage {
        return coverage(global);
    }
    let wanted = args.row.as_deref().unwrap_or("");
    if !Row::all().iter().any(|row| row.name.contains(wanted)) {
        bail!("no row has `{wanted}` in its name; `tritter check --coverage` lists them");
    }
    let device = device::open(global)?;
    let seed = args.seed.unwrap_or_else(clock_seed);
    let mut checks = Vec::new();
    let mut report = |f: &Finding| {
        if !global.json && !f.passed() {
            let fault = f.fault.as_deref().unwrap_or_default();
            let _ = output::print(&format!("FAIL {} `{}` {}: {fault}\n", f.row, f.case, f.variant));
        }
        checks.push(Line {
            row: f.row,
            case: f.case.clone(),
            variant: f.variant.clone(),
            error: f.error.is_finite().then_some(f.error),
            bound: f.bound,
            pass: f.passed(),
            fault: f.fault.clone(),
        });
    };
    let named = |case: &Case| case.op.row().name.contains(wanted);
    let (mut passed, mut failed) = check_rows(&device, seed, named, &mut report)?;
    for variant in variants(device.caps().backend) {
        // Cases that the device would run by another variant of this name.
        let choice = device::with_variant(&device.caps().id, Some(variant))?.device;
        let takes = |device: &Device, case: &Case| matches!(device.backend().supports(&case.op, &case.specs()), Support::Variant(name) if name == variant);
        let wanted = |case: &Case| named(case) && takes(&choice, case) && !takes(&device, case);
        let (more, bad) = check_rows(&choice, seed, wanted, &mut report)?;
        (passed, failed) = (passed + more, failed + bad);
    }
    let growth = growth(&device, args.replays)?;
    failed += usize::from(growth.is_some());
    if global.json {
        output::json(&Report { device: device.label(), seed, checks, passed, failed, replays: args.replays, growth })?;
    } else {
        output::print(&summary(&checks))?;
        if let Some(growth) = growth {
            output::print(&format!("FAIL {growth}\n"))?;
        }
        output::print(&format!("{passed} passed, {failed} failed on {} with seed {seed}\n", device.label()))?;
    }
    Ok(ExitCode::from(u8::from(failed > 0 || passed == 0)))
}

/// Names of all kernel variants of a backend.
fn variants(backend: &str) -> Vec<&'static str> {
    let of = |row: &'static Row| -> Vec<&'static str> {
        match backend {
            "wgpu" => row.wgsl.clone(),
            "cuda" => row.cuda.iter().map(|v| v.name).collect(),
            _ => Vec::new(),
        }
    };
    let mut names: Vec<&str> = Row::all().iter().flat_map(of).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Replays a program of all rows and says by how much memory grew, if it did.
fn growth(device: &Device, replays: usize) -> Result<Option<String>> {
    if replays == 0 {
        return Ok(None);
    }
    let (before, after) = check_replays(device, replays)?;
    Ok((before != after)
        .then(|| format!("{replays} runs of one program changed memory in use from {before:?} to {after:?}")))
}

#[derive(Serialize)]
struct Covered {
    row: &'static str,
    signature: &'static str,
    wgsl: Vec<&'static str>,
    cuda: Vec<&'static str>,
    gradient: &'static str,
    cases: usize,
}

/// What each row has.
fn coverage(global: &Global) -> Result<ExitCode> {
    let covered = |row: &Row| Covered {
        row: row.name,
        signature: row.signature.text,
        wgsl: row.wgsl.clone(),
        cuda: row.cuda.iter().map(|v| v.name).collect(),
        gradient: match row.gradient {
            Gradient::Rule => "yes",
            Gradient::None(why) => why,
        },
        cases: [Size::Small, Size::Ragged, Size::Bench].into_iter().map(|size| (row.cases)(size).len()).sum(),
    };
    let all: Vec<Covered> = Row::all().iter().map(covered).collect();
    if global.json {
        output::json(&serde_json::json!({ "rows": all }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|c| {
            let gradient = if c.gradient == "yes" { "yes".into() } else { format!("no: {}", c.gradient) };
            vec![c.row.into(), c.cases.to_string(), "yes".into(), c.wgsl.join(" "), c.cuda.join(" "), gradient]
        })
        .collect();
    output::print(&output::table(&["row", "cases", "cpu", "wgsl", "cuda", "gradient"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Worst error of each row and variant.
fn summary(checks: &[Line]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut worst: Vec<(&str, &str, usize, f64, f64)> = Vec::new();
    for check in checks {
        let error = check.error.unwrap_or(f64::NAN);
        match worst.iter_mut().find(|w| w.0 == check.row && w.1 == check.variant) {
            Some(w) => {
                w.2 += 1;
                w.3 = w.3.max(error);
                w.4 = w.4.max(check.bound);
            }
            None => worst.push((check.row, &check.variant, 1, error, check.bound)),
        }
    }
    for (row, variant, cases, error, bound) in worst {
        rows.push(vec![row.into(), variant.into(), cases.to_string(), format!("{error:.1e}"), format!("{bound:.1e}")]);
    }
    output::table(&["row", "variant", "cases", "error", "bound"], &rows)
}
