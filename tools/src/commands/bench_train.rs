//! `tritter bench train`: training tokens per second.

use crate::cli::{Arch, Global, Precision};
use crate::commands::train::through_f32;
use crate::measure::{Measure, MemoryReport};
use crate::plan::training::{self, Cut};
use crate::{device, output};
use anyhow::{Context, Result};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Instant;
use tritter_model::Config;
use tritter_model::config::Family;
use tritter_model::presets::preset;
use tritter_model::seeded::FromSeed;
use tritter_model::weights::{Form, Model};
use tritter_runtime::bench::median;
use tritter_runtime::error::bytes;
use tritter_runtime::random::Random;
use tritter_trainer::data::Batch;
use tritter_trainer::steps::{Hyper, Shape, StepsPlan};

pub(crate) struct Job {
    pub(crate) preset: String,
    pub(crate) batch: usize,
    pub(crate) context: usize,
    pub(crate) steps: u64,
    pub(crate) vocab: Option<usize>,
    pub(crate) arch: Arch,
    pub(crate) precision: Precision,
    pub(crate) memory_limit: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    preset: String,
    device: String,
    threads: usize,
    /// Sequences of a step.
    batch: usize,
    /// Sequences of a micro-batch: fewer where memory is short.
    micro_batch: usize,
    /// Whether the backward pass computes layers again, which it does where memory is shorter still.
    recompute: bool,
    context: usize,
    vocab: usize,
    precision: tritter_trainer::steps::Precision,
    tokens_per_second: f64,
    step_seconds_median: f64,
    /// 6 operations a token and matrix weight, and causal attention forward and backward.
    model_tera_ops_per_second: f64,
    used_bytes: u64,
    #[serde(flatten)]
    memory: MemoryReport,
    /// Share of a step's time by row, largest first.
    rows: Vec<(&'static str, f64)>,
}

/// Operations of one step as papers count them: `6·N` a token, with N the weights of all matrices that
/// a token is multiplied with, and for each layer and visible key `12·D` (two products of width D,
/// forward once and backward twice), half the context being visible on average.
fn operations(config: &Config, job: &Job) -> f64 {
    let count = config.parameters();
    let (width, tokens) = (config.hidden_size as f64, (job.batch * job.context) as f64);
    let head = if config.tie_embeddings { count.embedding } else { 0 };
    let matrices = (count.ternary + count.dense + head) as f64;
    let attention = 12.0 * config.num_layers as f64 * width * job.context as f64 / 2.0;
    tokens * (6.0 * matrices + attention)
}

impl From<Precision> for tritter_trainer::steps::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// Family of `--arch`.
pub(crate) fn family(arch: Arch) -> Family {
    match arch {
        Arch::Bitnet => Family::Bitnet,
        Arch::Llama => Family::Llama,
        Arch::Tritter => Family::Tritter,
    }
}

pub(crate) fn run(global: &Global, job: &Job) -> Result<ExitCode> {
    let shape = preset(&job.preset).with_context(|| format!("there is no preset `{}`", job.preset))?;
    let config = shape.config(family(job.arch), job.vocab, None);
    config.validate()?;
    let device = device::open_within(global, job.memory_limit)?;
    let measure = Measure::begin(&device);
    let model = Model::new(&config, Form::Train, job.context);
    let precision = job.precision.into();
    let asked = Cut { batch: job.batch, accumulate: 1, recompute: false };
    let Cut { batch, accumulate, recompute } = training::fit_on(&config, &device, asked, (job.context, precision))?;
    let shape = Shape { batch, context: job.context, z_loss: 1e-5, recompute, precision };
    let plan = StepsPlan::new(&model, shape)?.on(&device)?;
    let planned = model.bytes() + plan.total();
    model.load(&device, &FromSeed::new(&config, 1))?;
    let steps = plan.open(&device)?;
    if let Some(note) = through_f32(&steps, &device) {
        eprintln!("{note}");
    }
    let batches = random_batches(accumulate, batch, job.context, config.vocab_size);
    let hyper = |t| Hyper {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        t,
        max_norm: 1.0,
        decay_all: false,
    };
    steps.step(&batches, &hyper(1))?;
    let mut times = Vec::new();
    for t in 0..job.steps.max(1) {
        let start = Instant::now();
        steps.step(&batches, &hyper(t + 2))?;
        times.push(start.elapsed().as_secs_f64());
    }
    let median = median(times, f64::total_cmp);
    let rows = steps.profile()?;
    let report = Report {
        preset: job.preset.clone(),
        device: device.label(),
        threads: device.caps().threads,
        batch: job.batch,
        micro_batch: batch,
        recompute,
        context: job.context,
        vocab: config.vocab_size,
        precision,
        tokens_per_second: (job.batch * job.context) as f64 / median,
        step_seconds_median: median,
        model_tera_ops_per_second: operations(&config, job) / median / 1e12,
        used_bytes: device.backend().memory().buffers,
        memory: MemoryReport::of(&device, planned, &measure),
        rows,
    };
    if global.json {
        output::json(&report)?;
    } else {
        output::print(&format!(
            "{} on {}, {} threads: {:.1} tokens/s, {:.3} Top/s ({} x {} tokens, vocabulary {}, median step {:.3} s)\n{}; {} in buffers\n",
            report.preset,
            report.device,
            report.threads,
            report.tokens_per_second,
            report.model_tera_ops_per_second,
            report.batch,
            report.context,
            report.vocab,
            report.step_seconds_median,
            report.memory,
            bytes(report.used_bytes)
        ))?;
        let rows: Vec<Vec<String>> =
            report.rows.iter().map(|(row, share)| vec![row.to_string(), format!("{:.1} %", 100.0 * share)]).collect();
        output::print(&output::table(&["row", "of a step"], &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Micro-batches of random tokens.
fn random_batches(count: usize, batch: usize, context: usize, vocab: usize) -> Vec<Batch> {
    let mut random = Random::new(1);
    let m = batch * context;
    let mut draw = || (0..m).map(|_| random.below(vocab as u64) as u32).collect::<Vec<u32>>();
    let micro = |_| Batch {
        tokens: draw(),
        targets: draw(),
        positions: (0..m).map(|i| (i % context) as u32).collect(),
        span: (0..m).flat_map(|i| [(i / context * context) as u32, i as u32]).collect(),
        valid: m,
    };
    (0..count).map(micro).collect()
}
