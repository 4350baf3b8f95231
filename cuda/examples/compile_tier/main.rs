//! Compiles every kernel for every architecture that kernels travel for, and judges what came out.
//!
//! ```text
//! cargo run --release -p tritter-cuda --example compile_tier -- --check   compare with what is committed
//! cargo run --release -p tritter-cuda --example compile_tier -- --fresh   compare source hashes only: no compiler
//! cargo run --release -p tritter-cuda --example compile_tier -- --write   write it anew
//! cargo run --release -p tritter-cuda --example compile_tier -- rope add  show the table of some files
//! ```
//!
//! What is committed: the ready cubins `cuda/cubins/<arch>.bin` and the table `cuda/kernels/TABLE.md`.
//! NVRTC is found as the backend finds it (`TRITTER_NVRTC`), nvdisasm through `TRITTER_NVDISASM`, the
//! path, or beside NVRTC; `.ci/cuda-tools` installs both. Ends with an error if a file does not
//! compile or warns, a kernel marked hot touches local memory, rows and files disagree about entry
//! points, or, with `--check`, what is committed is not what the sources give.

mod committed;
mod disassembly;
mod judge;
mod ptxas;
mod table;

use anyhow::{Result, bail};
use committed::Committed;
use disassembly::Disassembler;
use judge::Problems;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tritter_cuda::cubin::{Arch, READY, Source, Target};
use tritter_cuda::nvrtc::{ADVICE, Nvrtc, Rank};

/// Compilations at once.
const THREADS: usize = 2;

/// What to do.
enum Mode {
    Check,
    Fresh,
    Write,
    Show(Vec<String>),
}

/// One file for one architecture.
struct Unit {
    source: Source,
    arch: Arch,
    /// The machine code, and what is known of each entry point; or why there is none.
    outcome: Result<Made, String>,
}

struct Made {
    cubin: Vec<u8>,
    entries: Vec<ptxas::Entry>,
    /// Lines of the log that should not be there.
    warnings: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let mode = mode(std::env::args().skip(1))?;
    let mut problems = Problems::default();
    if let Mode::Fresh = mode {
        Committed::here().check_hashes(&mut problems);
        return Ok(problems.report("the ready cubins are of these sources"));
    }
    let whole = |nvrtc: &Nvrtc| READY.iter().all(|arch| nvrtc.archs().contains(arch));
    let rank = |nvrtc: &Nvrtc| match whole(nvrtc) {
        true => Rank::Best,
        false => Rank::Useless(format!("{nvrtc} does not know all of {}", names(READY))),
    };
    let nvrtc = Nvrtc::find(rank).map_err(|why| anyhow::anyhow!("{why} ({ADVICE})"))?;
    let disassembler = Disassembler::find(&nvrtc);
    eprintln!("{nvrtc}");
    match &disassembler {
        Some(found) => eprintln!("{found}"),
        None => eprintln!("nvdisasm was not found (TRITTER_NVDISASM may name it): instructions are not counted"),
    }
    let sources: Vec<Source> = Source::all().filter(|source| wanted(&mode, source.name)).collect();
    let units = compile_all(&nvrtc, disassembler.as_ref(), &sources);
    problems.in_units(&units);
    problems.in_rows(&units);
    problems.in_launches(&units);
    let table = table::Table::new(&nvrtc.name(), disassembler.is_some(), &units);
    match mode {
        Mode::Show(_) => println!("{}", table.text()),
        Mode::Check => Committed::here().check(&nvrtc.name(), &units, &table, &mut problems),
        Mode::Fresh => {}
        // Nothing half right is written.
        Mode::Write if !problems.is_empty() => {}
        Mode::Write if disassembler.is_none() => bail!("the table needs nvdisasm"),
        Mode::Write => Committed::here().write(&nvrtc.name(), &units, &table)?,
    }
    Ok(problems.report("all kernels are as they should be"))
}

fn mode(arguments: impl Iterator<Item = String>) -> Result<Mode> {
    let arguments: Vec<String> = arguments.collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--check"] => Ok(Mode::Check),
        ["--fresh"] => Ok(Mode::Fresh),
        ["--write"] => Ok(Mode::Write),
        [] => bail!("--check, --fresh, --write, or names of kernel files to show"),
        names => match names.iter().find(|name| Source::named(name).is_none()) {
            Some(unknown) => bail!("there is no cuda/kernels/{unknown}.cu"),
            None => Ok(Mode::Show(arguments)),
        },
    }
}

fn wanted(mode: &Mode, name: &str) -> bool {
    if let Mode::Show(names) = mode { names.iter().any(|n| n == name) } else { true }
}

fn names(archs: &[Arch]) -> String {
    archs.iter().map(Arch::to_string).collect::<Vec<_>>().join(", ")
}

/// Every file for every architecture, in their order.
fn compile_all(nvrtc: &Nvrtc, disassembler: Option<&Disassembler>, sources: &[Source]) -> Vec<Unit> {
    let start = Instant::now();
    let jobs: Vec<(Source, Arch)> = sources.iter().flat_map(|&s| READY.iter().map(move |&arch| (s, arch))).collect();
    let next = AtomicUsize::new(0);
    let done = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(&(source, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = compile(nvrtc, disassembler, &source, arch);
                    let state = if outcome.is_ok() { "" } else { " FAILED" };
                    eprintln!("{:4} s  {} {arch}{state}", start.elapsed().as_secs(), source.name);
                    let mut done = done.lock().unwrap_or_else(|e| e.into_inner());
                    done.push(Unit { source, arch, outcome });
                }
            });
        }
    });
    let mut units = std::mem::take(&mut *done.lock().unwrap_or_else(|e| e.into_inner()));
    units.sort_by_key(|unit| (unit.source.name, unit.arch));
    units
}

fn compile(nvrtc: &Nvrtc, tool: Option<&Disassembler>, source: &Source, arch: Arch) -> Result<Made, String> {
    let compiled = nvrtc.compile(source, Target::Cubin(arch), &["--ptxas-options=-v"])?;
    let (mut entries, warnings) = ptxas::read(&compiled.log);
    if let Some(tool) = tool {
        let counts = tool.count(&compiled.image.0).map_err(|e| format!("nvdisasm on {}.cu: {e:#}", source.name))?;
        for entry in &mut entries {
            let code = counts.get(&entry.name).filter(|counts| counts.all > 0);
            entry.counts = Some(*code.ok_or_else(|| format!("nvdisasm shows no code of `{}`", entry.name))?);
        }
    }
    Ok(Made { cubin: compiled.image.0, entries, warnings })
}
