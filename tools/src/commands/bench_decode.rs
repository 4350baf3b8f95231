//! `tritter bench decode`: tokens per second of prefill and of decoding, and their shares of what the
//! device was just seen to reach.
//!
//! As llama-bench counts: a prompt is fed into an empty cache; tokens are decoded one by one from an empty
//! cache (or one of random content, `--fill`), greedily; each is run once to warm up and then repeated, and the
//! medians are given.

use crate::cli::{BenchDecode, Global};
use crate::device;
use crate::measure::{Measure, MemoryReport};
use crate::open::Opened;
use crate::output;
use crate::peaks;
use crate::stream::{self, Streaming, Streams};
use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::{Map, Value};
use std::process::ExitCode;
use std::time::Instant;
use tritter_model::session::Session;
use tritter_runtime::bench::median;
use tritter_runtime::error::bytes;
use tritter_runtime::random::Random;

#[derive(Serialize)]
struct Report {
    model: String,
    device: String,
    threads: usize,
    /// Median tokens per second by length of the prompt.
    prefill: Map<String, Value>,
    /// Median tokens per second.
    decode: f64,
    /// Weights and cache that a step reads, at the mean position.
    bytes_per_token: f64,
    bandwidth_gb_s: f64,
    bandwidth_share: f64,
    dot_peak_tops: Option<f64>,
    dot_share: Option<f64>,
    /// Least and most of the repeats.
    prefill_spread: Map<String, Value>,
    decode_spread: [f64; 2],
    repeats: usize,
    decoded_tokens: usize,
    /// Tokens in the cache before the first of them, and how it is stored.
    filled: usize,
    kv: String,
    window: Option<usize>,
    load_seconds: f64,
    first_token_seconds: f64,
    decode_ms_median: f64,
    dispatches_per_step: usize,
    encode_and_submit_us_median: f64,
    used_bytes: u64,
    #[serde(flatten)]
    memory: MemoryReport,
    /// Of the decoding alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    streaming: Option<Streaming>,
}

pub(crate) fn run(global: &Global, job: &BenchDecode) -> Result<ExitCode> {
    let prompts: Vec<usize> = job.prompt.iter().copied().filter(|&length| length > 0).collect();
    if job.tokens == 0 || job.repeats == 0 {
        bail!("--tokens and --repeats must be at least 1");
    }
    let start = Instant::now();
    let mut opened = Opened::new(&job.model)?.with(job.formats);
    if let (None, Some(vocab)) = (&opened.folder, job.vocab) {
        opened.config.vocab_size = vocab;
        opened.config.validate()?;
    }
    let capacity = prompts.iter().copied().fold(job.fill.saturating_add(job.tokens), usize::max);
    let opened = opened.reaching(Some(job.cache.reach(capacity)))?;
    let device = device::open_within(global, job.cache.memory_limit)?;
    let measure = Measure::begin(&device);
    let (plan, weights) = stream::load(&opened, &device, job.cache.layout(capacity), job.cache.may(), job.streaming)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let (planned, layout) = (plan.total(), plan.layout());
    let visible = (job.fill as f64 + (job.tokens as f64 + 1.0) / 2.0)
        .min((layout.window.unwrap_or(capacity) + layout.sinks) as f64);
    let bytes_per_token = plan.step_bytes(visible);
    let streams = Streams::of(&plan);
    let mut session = plan.open_with(&device, weights)?;
    let mut random = Random::new(1);
    let vocab = opened.config.vocab_size as u64;
    let ids: Vec<u32> = (0..capacity).map(|_| random.below(vocab) as u32).collect();
    prefill(&mut session, &ids[..prompts.first().copied().unwrap_or(1)])?;
    let first_token_seconds = start.elapsed().as_secs_f64();

    let (mut medians, mut spreads, mut longest) = (Map::new(), Map::new(), (0, 0.0));
    for &length in &prompts {
        let rates = repeated(job.repeats, || Ok(length as f64 / prefill(&mut session, &ids[..length])?))?;
        let rate = median(rates.clone(), f64::total_cmp);
        if length > longest.0 {
            longest = (length, rate);
        }
        medians.insert(length.to_string(), rate.into());
        spreads.insert(length.to_string(), spread(&rates).to_vec().into());
    }
    let before = session.streaming().unwrap_or_default();
    let mut steps = Vec::new();
    let decoding = || {
        let times = decode(&mut session, ids[0], job)?;
        steps.extend_from_slice(&times);
        Ok(job.tokens as f64 / times.iter().sum::<f64>())
    };
    let rates = repeated(job.repeats, decoding)?;
    let rate = median(rates.clone(), f64::total_cmp);
    // The first run was to warm up.
    steps.drain(..job.tokens.min(steps.len()));
    let streamed = session.streaming().unwrap_or_default().since(&before);
    let submit = submitting(&mut session, ids[0], job)?;
    let memory = MemoryReport::of(&device, planned, &measure);
    let (used_bytes, dispatches_per_step) = (device.backend().memory().buffers, session.step_dispatches());
    // Bandwidth is measured with memory of its own.
    drop(session);
    let peaks = peaks::measure(&device)?;
    let ternary = opened.config.parameters().ternary as f64;
    let dots = longest.1 * 2.0 * ternary / 1e12;
    let report = Report {
        model: job.model.clone(),
        device: device.label(),
        threads: device.caps().threads,
        prefill: medians,
        decode: rate,
        bytes_per_token,
        bandwidth_gb_s: peaks.bandwidth_gb_s,
        bandwidth_share: rate * bytes_per_token / 1e9 / peaks.bandwidth_gb_s,
        dot_peak_tops: peaks.dot_tops,
        dot_share: peaks.dot_tops.filter(|_| ternary > 0.0 && longest.1 > 0.0).map(|peak| dots / peak),
        prefill_spread: spreads,
        decode_spread: spread(&rates),
        repeats: job.repeats,
        decoded_tokens: job.tokens,
        filled: job.fill,
        kv: layout.cache.to_string(),
        window: layout.window,
        load_seconds,
        first_token_seconds,
        decode_ms_median: median(steps, f64::total_cmp) * 1e3,
        dispatches_per_step,
        encode_and_submit_us_median: submit * 1e6,
        used_bytes,
        memory,
        streaming: streams.map(|streams| streams.report(streamed, Some(rate))),
    };
    if global.json {
        output::json(&report)?
    } else {
        output::print(&text(&report, peaks.dot_name))?
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs once to warm up, then as often as asked.
fn repeated(repeats: usize, mut once: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    once()?;
    (0..repeats).map(|_| once()).collect()
}

/// Seconds until the token after a prompt is here.
fn prefill(session: &mut Session, ids: &[u32]) -> Result<f64> {
    session.reset();
    let begin = Instant::now();
    session.prefill(ids)?;
    session.token()?.wait()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Puts the session behind `fill` tokens of random content.
fn begin_at(session: &mut Session, fill: usize) -> Result<()> {
    if session.position() < fill || session.rewind(0, fill)? != fill {
        // What is there counts as well until it is gone.
        session.reset();
        session.fill(0, fill, 1)?;
    }
    Ok(())
}

/// Seconds from token to token. Where runs are queued, a step is put into the queue before the token of
/// the one before it is read, as `generate` does.
fn decode(session: &mut Session, first: u32, job: &BenchDecode) -> Result<Vec<f64>> {
    begin_at(session, job.fill)?;
    let tokens = job.tokens;
    session.put(first)?;
    let (mut times, mut under_way) = (Vec::new(), None);
    let mut begin = Instant::now();
    for i in 0..tokens {
        if under_way.is_none() {
            session.step()?;
            under_way = Some(session.token()?);
        }
        let mut next = None;
        if session.queues() && i + 1 < tokens {
            session.step()?;
            next = Some(session.token()?);
        }
        if let Some(token) = std::mem::replace(&mut under_way, next) {
            token.wait()?;
        }
        times.push(begin.elapsed().as_secs_f64());
        begin = Instant::now();
    }
    Ok(times)
}

/// Median seconds until a step is in the queue; where nothing is queued, until it is done.
fn submitting(session: &mut Session, first: u32, job: &BenchDecode) -> Result<f64> {
    begin_at(session, job.fill)?;
    let tokens = job.tokens.min(32);
    session.put(first)?;
    let mut times = Vec::new();
    for _ in 0..tokens {
        let begin = Instant::now();
        session.step()?;
        times.push(begin.elapsed().as_secs_f64());
        session.token()?.wait()?;
    }
    Ok(median(times, f64::total_cmp))
}

fn spread(values: &[f64]) -> [f64; 2] {
    let of = |f: fn(f64, f64) -> f64| values.iter().copied().reduce(f).unwrap_or(0.0);
    [of(f64::min), of(f64::max)]
}

fn text(r: &Report, dot: Option<&str>) -> String {
    let mut rows = Vec::new();
    let between = |spread: [f64; 2]| format!("{:.1} to {:.1}", spread[0], spread[1]);
    for (length, rate) in &r.prefill {
        let at = |i: usize| r.prefill_spread.get(length).and_then(|s| s.get(i)?.as_f64()).unwrap_or(0.0);
        let rate = format!("{:.1}", rate.as_f64().unwrap_or(0.0));
        rows.push(vec![format!("prefill {length}"), rate, between([at(0), at(1)])]);
    }
    rows.push(vec![
        match r.filled {
            0 => format!("decode {}", r.decoded_tokens),
            filled => format!("decode {} after {filled} ({})", r.decoded_tokens, r.kv),
        },
        format!("{:.1}", r.decode),
        between(r.decode_spread),
    ]);
    let mut text = format!("{} on {}, {} threads, {} repeats\n", r.model, r.device, r.threads, r.repeats);
    text += &output::table(&["", "tokens/s", "spread"], &rows);
    text += &format!(
        "bandwidth  {:.0} % of {:.1} GB/s: {:.1} MB read per token\n",
        100.0 * r.bandwidth_share,
        r.bandwidth_gb_s,
        r.bytes_per_token / 1e6
    );
    if let (Some(share), Some(peak)) = (r.dot_share, r.dot_peak_tops) {
        text += &format!("int8 dot   {:.0} % of {peak:.2} Top/s ({})\n", 100.0 * share, dot.unwrap_or("as measured"));
    }
    text += &format!(
        "loaded in {:.2} s, first token {:.2} s after start; a step is {} dispatches, median {:.2} ms\n{}; {} in buffers\n",
        r.load_seconds,
        r.first_token_seconds,
        r.dispatches_per_step,
        r.decode_ms_median,
        r.memory,
        bytes(r.used_bytes)
    );
    text += &r.streaming.map(|streaming| streaming.text()).unwrap_or_default();
    text
}
