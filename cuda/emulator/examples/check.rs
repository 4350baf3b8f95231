//! Small and ragged cases of rows, by the CUDA kernels on the emulator, against the f64 reference.
//!
//! `check [--fast] [--seed N] [--variant NAME] [--list] ROW...`: all rows with CUDA variants if none is
//! named. `--fast` runs kernels that do not verify each access. The exit status is 1 if a case fails.

use std::process::ExitCode;
use std::time::Instant;
use tritter_cuda_emulator::{Options, device};
use tritter_runtime::check::check_case;
use tritter_runtime::op::{Row, Size};
use tritter_runtime::{Device, Opened};

struct Wanted {
    options: Options,
    list: bool,
    rows: Vec<String>,
}

fn main() -> ExitCode {
    match wanted(std::env::args().skip(1)).and_then(run) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} failed");
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted { options: Options::default(), list: false, rows: Vec::new() };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--fast" => wanted.options.checked = false,
            "--list" => wanted.list = true,
            "--seed" => wanted.options.seed = value()?.parse().map_err(|e| format!("--seed: {e}"))?,
            "--variant" => wanted.options.variant = Some(value()?),
            other if other.starts_with('-') => return Err(format!("no such option: {other}")),
            row => wanted.rows.push(row.into()),
        }
    }
    match wanted.rows.iter().find(|name| !Row::all().iter().any(|row| row.name == **name)) {
        Some(name) => Err(format!("no row is named `{name}`")),
        None => Ok(wanted),
    }
}

fn run(wanted: Wanted) -> Result<usize, String> {
    let seed = wanted.options.seed;
    let variant = wanted.options.variant.clone();
    let chosen = |row: &&Row| match &*wanted.rows {
        [] => !row.cuda.is_empty(),
        named => named.iter().any(|name| name == row.name),
    };
    let rows: Vec<&Row> = Row::all().iter().filter(chosen).collect();
    if wanted.list {
        for row in rows {
            let variants: Vec<&str> = row.cuda.iter().map(|v| v.name).collect();
            println!("{:<22} {}", row.name, variants.join(", "));
        }
        return Ok(0);
    }
    let device = match device(wanted.options) {
        Opened::Ready(device) => device,
        Opened::Absent { why } => return Err(why),
    };
    let mut failed = 0;
    for row in rows {
        failed += check(&device, row, variant.as_deref(), seed);
    }
    Ok(failed)
}

/// Runs the cases of a row that reach the wanted variant; the number that failed.
fn check(device: &Device, row: &Row, variant: Option<&str>, seed: u64) -> usize {
    let (mut failed, mut ran) = (0, 0);
    let start = Instant::now();
    for case in [Size::Small, Size::Ragged].into_iter().flat_map(row.cases).filter(|case| case.fits(device.caps())) {
        let variants = case.op.cuda(&case.specs(), device.caps());
        if variant.is_some_and(|name| variants.iter().all(|choice| choice.variant != name)) {
            continue;
        }
        ran += 1;
        let start = Instant::now();
        let (shown, fault) = match check_case(device, &case, seed) {
            Ok(found) => {
                let bound = format!("{:<10} error {:.2e} of {:.2e}", found.variant, found.error, found.bound);
                (bound, found.fault)
            }
            Err(error) => (String::new(), Some(error.to_string())),
        };
        let verdict = if fault.is_some() { "FAIL" } else { "ok" };
        println!("{verdict:<4} {:<20} {:<32} {shown} {:.2} s", row.name, case.label, start.elapsed().as_secs_f64());
        if let Some(fault) = fault {
            println!("     {fault}");
            failed += 1;
        }
    }
    if ran == 0 {
        println!("FAIL {:<20} no case reaches variant `{}`", row.name, variant.unwrap_or("?"));
        failed += 1;
    }
    println!("     {:<20} {ran} cases, {failed} failed, {:.2} s", row.name, start.elapsed().as_secs_f64());
    failed
}
