//! Checks named rows on a wgpu device, software adapters included, or on the CPU, against their references.
//!
//! `cargo run -p tritter-runtime --example check_wgpu -- [--cpu] [--variant NAME] [--uniform] [--seed N] [--times N] ROW...`
//!
//! Prints a line for every row and variant that ran, with its worst error, and one for every failure.
//! `--variant` checks only the cases that the variant takes, `--uniform` passes parameters as browsers
//! do, `--times` goes on with as many seeds, for bounds that fail once in a thousand runs. Fails if a case fails or nothing ran.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use tritter_runtime::check::check_rows;
use tritter_runtime::device::Runs;
use tritter_runtime::gpu::{self, Options};
use tritter_runtime::op::Case;
use tritter_runtime::{Error, Opened, Result};

fn main() -> Result<ExitCode> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
    let (mut options, mut seed, mut rows) = (Options { allow_software: true, ..Options::default() }, clock, Vec::new());
    let (mut cpu, mut times) = (false, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--variant" => options.variant = arguments.next(),
            "--cpu" => cpu = true,
            "--uniform" => options.uniform_params = true,
            "--seed" => seed = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(seed),
            "--times" => times = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(times),
            _ => rows.push(argument),
        }
    }
    let variant = options.variant.clone();
    let device = match if cpu { Opened::Ready(tritter_runtime::cpu::open()) } else { gpu::open_with(options) } {
        Opened::Ready(device) => device,
        Opened::Absent { why } => return Err(Error::Absent { name: "wgpu".into(), why }),
    };
    println!("{} with seed {seed}", device.label());
    let wanted = |case: &Case| {
        let takes = || match (&variant, device.runs(&case.op, &case.specs())) {
            (None, _) => true,
            (Some(name), Runs::Native(found) | Runs::ThroughF32(found)) => name == found,
            (Some(_), Runs::Missing(_)) => false,
        };
        rows.iter().any(|row| row == case.op.row().name) && takes()
    };
    let mut worst: BTreeMap<(&str, String), (usize, f64, f64)> = BTreeMap::new();
    let (mut passed, mut failed) = (0, 0);
    for seed in (0..times).map(|i| seed.wrapping_add(i)) {
        let counts = check_rows(&device, seed, wanted, &mut |found| {
            if let Some(fault) = &found.fault {
                println!("FAIL {} `{}` {} with seed {seed}: {fault}", found.row, found.case, found.variant);
            }
            let entry = worst.entry((found.row, found.variant.clone())).or_default();
            *entry = (entry.0 + 1, entry.1.max(found.error), entry.2.max(found.bound));
        })?;
        (passed, failed) = (passed + counts.0, failed + counts.1);
    }
    for ((row, variant), (checks, error, bound)) in worst {
        println!("{row:<20} {variant:<28} {checks:>4} checks, error {error:.1e} of {bound:.1e}");
    }
    println!("{passed} passed, {failed} failed");
    Ok(ExitCode::from(u8::from(failed > 0 || passed == 0)))
}
