//! `tritter validate`.

use crate::cli::{Global, Validate};
use crate::{device, output};
use anyhow::Result;
use std::process::ExitCode;

pub(crate) fn run(global: &Global, args: &Validate) -> Result<ExitCode> {
    let device = device::open(global)?;
    let report = tritter::validate::validate(&args.folder, &device)?;
    if global.json {
        output::json(&report)?
    } else {
        output::print(&report.to_string())?
    }
    match report.outcome() {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(why) => {
            eprintln!("error: {why}");
            Ok(ExitCode::from(1))
        }
    }
}
