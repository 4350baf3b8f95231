//! The `tritter` command line.

mod cli;
mod commands;
mod open;
mod output;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    output::start_logs();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => {
            // One sentence: the chain of causes joined, as `what: why`.
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}
