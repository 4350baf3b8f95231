//! `tritter train`.

use crate::cli::{Course, Global, Train};
use crate::commands::bench_train::family;
use crate::measure::{Measure, MemoryReport};
use crate::plan::training::{self, Cut};
use crate::{device, output};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tritter_model::Config;
use tritter_model::presets::preset;
use tritter_model::tokenizer::Tokenizer;
use tritter_runtime::Device;
use tritter_runtime::error::bytes;
use tritter_trainer::checkpoint::RunFolder;
use tritter_trainer::data::{Corpus, Source};
use tritter_trainer::metrics::{bits_per_byte, unigram_nats};
use tritter_trainer::run::{End, Evaluation, Event, Progress, Run, Settings, Start};
use tritter_trainer::schedule::{Rates, Schedule};
use tritter_trainer::steps::Steps;

#[derive(Serialize)]
struct Report {
    out: String,
    device: String,
    steps: u64,
    stopped: bool,
    skipped: u64,
    last_loss: Option<f64>,
    bits_per_byte: Option<f64>,
    perplexity: Option<f64>,
    unigram_bits_per_byte: Option<f64>,
    seconds: f64,
    used_bytes: u64,
    #[serde(flatten)]
    memory: MemoryReport,
}

pub(crate) fn run(global: &Global, args: &Train) -> Result<ExitCode> {
    let begin = Instant::now();
    let folder = if args.resume { RunFolder::open(&args.out)? } else { RunFolder::create(&args.out)? };
    let tokenizer = Tokenizer::load(&args.tokenizer)?;
    let config = config(args, &tokenizer)?;
    let source = Source::open(&args.data)?;
    let corpus = Corpus::tokenize(&source, &tokenizer, args.validation, args.seed)?;
    let unigram = (corpus.val.tokens.len() > 1)
        .then(|| bits_per_byte(unigram_nats(&corpus.train, &corpus.val, config.vocab_size), corpus.val.bytes));
    let s = &corpus.summary;
    eprintln!(
        "data: {} documents, {} bytes, {} tokens to train on, {} held out",
        s.documents,
        s.bytes,
        corpus.train.tokens.len(),
        corpus.val.tokens.len()
    );
    let device = device::open_within(global, args.memory_limit)?;
    let measure = Measure::begin(&device);
    let stop = stop_on_signal()?;
    let mut settings = settings(args);
    settings.rates.warmup = warmup(args, &folder)?;
    let room = (settings.context, settings.precision);
    let Cut { batch, accumulate, recompute } =
        training::fit_on(&config, &device, cut(args, &folder, &settings)?, room)?;
    let settings = Settings { batch, accumulate, recompute, ..settings };
    let start = Start { config: &config, tokenizer: &tokenizer, corpus, settings, folder: Some(folder) };
    let mut run = Run::new(&device, start, args.resume)?;
    match (args.resume, run.progress().step) {
        (false, _) => {}
        (true, 0) => eprintln!("{}: no step is committed yet, starting from the beginning", args.out.display()),
        (true, step) => eprintln!("resuming after step {step}"),
    }
    eprintln!("memory: {} planned, {} in use", bytes(run.planned()), bytes(device.backend().memory().buffers));
    if let Some(note) = through_f32(run.steps(), &device) {
        eprintln!("{note}");
    }
    let (end, watched) = watch(&mut run, &stop)?;
    let report = Report {
        out: args.out.display().to_string(),
        device: device.label(),
        steps: run.progress().step,
        stopped: end == End::Stopped,
        skipped: run.progress().skipped,
        last_loss: watched.loss,
        bits_per_byte: watched.evaluation.map(|e| e.bits_per_byte),
        perplexity: watched.evaluation.map(|e| e.perplexity),
        unigram_bits_per_byte: unigram,
        seconds: begin.elapsed().as_secs_f64(),
        used_bytes: device.backend().memory().buffers,
        memory: MemoryReport::of(&device, run.planned(), &measure),
    };
    if global.json {
        output::json(&report)?
    } else {
        output::print(&text(&report))?
    }
    Ok(ExitCode::SUCCESS)
}

/// The model's config: preset, block and the tokenizer's vocabulary.
fn config(args: &Train, tokenizer: &Tokenizer) -> Result<Config> {
    let shape = preset(&args.preset).with_context(|| {
        let names: Vec<&str> = tritter_model::presets::PRESETS.iter().map(|p| p.name).collect();
        format!("--preset {}: there is no such preset; use one of {}", args.preset, names.join(", "))
    })?;
    let mut config = shape.config(family(args.arch), Some(tokenizer.vocab_size()), None);
    config.bos_token_id = tokenizer.bos_id();
    config.eos_token_ids = tokenizer.eos_id().into_iter().collect();
    config.pad_token_id = tokenizer.pad_id();
    config.validate()?;
    if args.context < 2 {
        bail!("--context {}: a sequence needs at least 2 tokens", args.context);
    }
    Ok(config)
}

fn settings(args: &Train) -> Settings {
    let schedule = match args.schedule {
        Course::Constant => Schedule::Constant,
        Course::Cosine => Schedule::Cosine { floor: 0.1 },
        Course::TwoStage => Schedule::TWO_STAGE,
    };
    Settings {
        steps: args.steps,
        batch: args.batch,
        accumulate: args.accumulate,
        context: args.context,
        rates: Rates { schedule, peak: args.lr, weight_decay: args.weight_decay, warmup: 0, steps: args.steps },
        clip: args.clip,
        z_loss: 1e-5,
        seed: args.seed,
        checkpoint_every: args.checkpoint_every,
        evaluate_every: args.evaluate_every,
        recompute: args.recompute,
        adam: (0.9, 0.95, 1e-8),
        precision: args.precision.into(),
    }
}

/// The warm-up asked for, else that of the run that goes on, else a fiftieth of the steps.
fn warmup(args: &Train, folder: &RunFolder) -> Result<u64> {
    let stored = || -> Result<Option<u64>> {
        let progress: Option<Progress> = if args.resume { folder.progress()? } else { None };
        Ok(progress.map(|p| p.settings.rates.warmup))
    };
    Ok(match args.warmup {
        Some(steps) => steps,
        None => stored()?.unwrap_or((args.steps / 50).min(500)),
    })
}

/// The micro-batches asked for; of a run that goes on those that it has, if memory was short when it began and they
/// are smaller ones of the same step.
fn cut(args: &Train, folder: &RunFolder, asked: &Settings) -> Result<Cut> {
    let &Settings { batch, accumulate, recompute, .. } = asked;
    let progress: Option<Progress> = if args.resume { folder.progress()? } else { None };
    let begun = progress.map(|progress| (progress.settings.batch, progress.settings.accumulate));
    let smaller = |&(b, a): &(usize, usize)| b <= batch && b.checked_mul(a) == batch.checked_mul(accumulate);
    let (batch, accumulate) = begun.filter(smaller).unwrap_or((batch, accumulate));
    Ok(Cut { batch, accumulate, recompute })
}

/// Says so where a device has no bf16 kernels for a part of the step.
pub(crate) fn through_f32(steps: &Steps, device: &Device) -> Option<String> {
    let count = steps.through_f32();
    let id = &device.caps().id;
    (count > 0).then(|| format!("bf16: {count} ops of a step go through f32 on {id}: it saves memory, not time"))
}

/// A flag that Ctrl-C (or a termination signal) sets.
pub(crate) fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; once more to stop at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

/// What was seen last.
#[derive(Default)]
struct Watched {
    loss: Option<f64>,
    evaluation: Option<Evaluation>,
}

fn watch(run: &mut Run, stop: &AtomicBool) -> Result<(End, Watched)> {
    let (done, total) = (run.progress().step, run.progress().settings.steps);
    let bar = output::progress(total, "steps");
    bar.set_position(done);
    bar.reset_eta();
    let mut watched = Watched::default();
    let end = run.run(stop, &mut |event| match event {
        Event::Step(step) => {
            watched.loss = Some(step.loss);
            bar.set_position(step.step);
            bar.set_message(format!("loss {:.3}  {:.0} tokens/s", step.loss, step.tokens_per_second));
            if step.skipped {
                bar.suspend(|| eprintln!("step {}: loss or gradient is not finite, the update was skipped", step.step));
            }
        }
        Event::Evaluated(e) => {
            watched.evaluation = Some(*e);
            bar.suspend(|| {
                eprintln!(
                    "step {}: held-out {:.3} bits per byte, perplexity {:.1}",
                    e.step, e.bits_per_byte, e.perplexity
                )
            });
        }
        Event::Saved(step) => tracing::info!(step, "checkpoint"),
    })?;
    bar.finish_and_clear();
    Ok((end, watched))
}

fn text(report: &Report) -> String {
    let state = if report.stopped { "stopped and saved" } else { "done" };
    let mut text = format!("{}: {state} at step {} after {:.1} s\n", report.out, report.steps, report.seconds);
    if let Some(loss) = report.last_loss {
        text += &format!("loss {loss:.3}, {} updates skipped\n", report.skipped);
    }
    if let (Some(bits), Some(unigram)) = (report.bits_per_byte, report.unigram_bits_per_byte) {
        text += &format!("held-out {bits:.3} bits per byte; a token-unigram model gets {unigram:.3}\n");
    }
    if report.stopped {
        text += "go on with the same command and --resume\n";
    }
    text
}
