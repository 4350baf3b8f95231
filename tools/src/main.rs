//! The `tritter` command line.

mod cli;
mod commands;
mod device;
mod measure;
mod open;
mod output;
mod peaks;
mod plan;
mod sizes;
mod stream;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    output::start_logs();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            ExitCode::from(1)
        }
    }
}

/// The chain of causes as `what: why`, without causes that the outer message already says.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
