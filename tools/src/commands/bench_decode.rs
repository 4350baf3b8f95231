//! `tritter bench decode`: tokens per second of prefill and of single steps.

use crate::cli::{Global, WeightArgs};
use crate::device;
use crate::open::Opened;
use crate::output;
use anyhow::{Result, bail};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Instant;
use tritter_model::session::SessionPlan;
use tritter_runtime::DType;
use tritter_runtime::error::bytes;

#[derive(Serialize)]
struct Report {
    model: String,
    device: String,
    threads: usize,
    load_seconds: f64,
    first_token_seconds: f64,
    prompt_tokens: usize,
    prefill_tokens_per_second: f64,
    decoded_tokens: usize,
    decode_tokens_per_second: f64,
    decode_ms_median: f64,
    /// Weights read per token over the median step.
    decode_gb_per_second: f64,
    dispatches_per_step: usize,
    encode_and_submit_us_median: f64,
    planned_bytes: u64,
    used_bytes: u64,
}

pub(crate) fn run(
    global: &Global,
    model: &str,
    prompt: usize,
    tokens: usize,
    vocab: Option<usize>,
    formats: WeightArgs,
) -> Result<ExitCode> {
    if prompt == 0 || tokens == 0 {
        bail!("--prompt and --tokens must be at least 1");
    }
    let start = Instant::now();
    let mut opened = Opened::new(model)?.with(formats);
    if let (None, Some(vocab)) = (&opened.folder, vocab) {
        opened.config.vocab_size = vocab;
        opened.config.validate()?;
    }
    let device = device::open(global)?;
    let capacity = prompt + tokens + 1;
    let loaded = opened.load(&device, capacity)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let plan = SessionPlan::new(&loaded, capacity, DType::F32)?;
    let planned = plan.total();
    let streamed = plan.weights();
    let mut session = plan.open(&device)?;
    let ids: Vec<u32> = (0..prompt).map(|i| (i * 7919 % opened.config.vocab_size) as u32).collect();
    session.prefill(&ids)?;
    session.token()?.wait()?;
    let first_token_seconds = start.elapsed().as_secs_f64();
    session.reset();
    let begin = Instant::now();
    session.prefill(&ids)?;
    session.token()?.wait()?;
    let prefill = begin.elapsed().as_secs_f64();
    let (mut steps, mut submits) = (Vec::new(), Vec::new());
    for _ in 0..tokens {
        let begin = Instant::now();
        session.step()?;
        submits.push(begin.elapsed().as_secs_f64());
        session.token()?.wait()?;
        steps.push(begin.elapsed().as_secs_f64());
    }
    let decode: f64 = steps.iter().sum();
    let median = median(steps);
    let report = Report {
        model: model.into(),
        device: device.label(),
        threads: device.caps().threads,
        load_seconds,
        first_token_seconds,
        prompt_tokens: prompt,
        prefill_tokens_per_second: prompt as f64 / prefill,
        decoded_tokens: tokens,
        decode_tokens_per_second: tokens as f64 / decode,
        decode_ms_median: median * 1e3,
        decode_gb_per_second: streamed as f64 / median / 1e9,
        dispatches_per_step: session.step_dispatches(),
        encode_and_submit_us_median: self::median(submits) * 1e6,
        planned_bytes: planned,
        used_bytes: device.backend().memory().buffers,
    };
    if global.json {
        output::json(&report)?
    } else {
        output::print(&text(&report))?
    }
    Ok(ExitCode::SUCCESS)
}

/// Median of times.
pub(crate) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

fn text(r: &Report) -> String {
    format!(
        "{} on {}, {} threads\n\
         loaded in {:.2} s, first token {:.2} s after start\n\
         prefill  {:8.1} tokens/s ({} tokens)\n\
         decode   {:8.1} tokens/s ({} tokens, median {:.2} ms a token, {:.1} GB/s of weights)\n\
         a step   {} dispatches, {:.0} us until it is submitted\n\
         memory   {} planned, {} in use\n",
        r.model,
        r.device,
        r.threads,
        r.load_seconds,
        r.first_token_seconds,
        r.prefill_tokens_per_second,
        r.prompt_tokens,
        r.decode_tokens_per_second,
        r.decoded_tokens,
        r.decode_ms_median,
        r.decode_gb_per_second,
        r.dispatches_per_step,
        r.encode_and_submit_us_median,
        bytes(r.planned_bytes),
        bytes(r.used_bytes)
    )
}
