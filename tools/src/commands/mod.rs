//! One file a command.

mod bench_decode;
mod bench_kernels;
mod bench_train;
mod bench_yardstick;
mod chat;
mod check;
mod convert;
mod demo;
mod devices;
mod generate;
mod init;
mod pack;
mod perplexity;
mod plan;
mod prompt_cache;
mod quantize;
mod tokenizer;
mod train;
mod validate;

use crate::cli::{Bench, Cli, Command};
use anyhow::Result;
use std::process::ExitCode;

/// Runs a command; its exit code is 0, 1 where a check failed, or 3 where a plan does not fit.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Demo(args) => demo::run(global, &args),
        Command::Train(args) => train::run(global, &args),
        Command::Generate(args) => generate::run(global, &args),
        Command::Chat(args) => chat::run(global, &args),
        Command::Tokenizer(args) => tokenizer::run(global, &args),
        Command::Devices => devices::run(global),
        Command::Check(args) => check::run(global, &args),
        Command::Bench(Bench::Kernels { row, seconds }) => bench_kernels::run(global, row.as_deref(), seconds),
        Command::Bench(Bench::Yardstick { seconds }) => bench_yardstick::run(global, seconds),
        Command::Bench(Bench::Decode(args)) => bench_decode::run(global, &args),
        Command::Bench(Bench::Train { preset, batch, context, steps, vocab, arch, precision, memory_limit }) => {
            let job = bench_train::Job { preset, batch, context, steps, vocab, arch, precision, memory_limit };
            bench_train::run(global, &job)
        }
        Command::Plan(args) => plan::run(global, &args),
        Command::Init(args) => init::run(global, &args),
        Command::Pack(args) => pack::pack(global, &args),
        Command::Perplexity(args) => perplexity::run(global, &args),
        Command::Quantize(args) => quantize::run(global, &args),
        Command::Unpack(args) => pack::unpack(global, &args),
        Command::Convert(args) => convert::run(global, &args),
        Command::Validate(args) => validate::run(global, &args),
    }
}
