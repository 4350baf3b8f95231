//! `tritter demo`: the main job on an embedded default, from text to a packed model that talks.

use crate::cli::{Demo, Global};
use crate::commands::train::through_f32;
use crate::{device, output};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tritter_model::bpe_train::train_bpe;
use tritter_model::cache::CacheFormat;
use tritter_model::config::{Config, Family};
use tritter_model::demo_text::stories;
use tritter_model::presets::preset;
use tritter_model::save::{Floats, Layout, packed_config, write_folder};
use tritter_model::session::{Draw, SessionPlan};
use tritter_model::source::FromCheckpoint;
use tritter_model::tensors::Checkpoint;
use tritter_model::tokenizer::Tokenizer;
use tritter_model::weights::{Form, Model};
use tritter_runtime::Device;
use tritter_runtime::error::bytes;
use tritter_trainer::checkpoint::RunFolder;
use tritter_trainer::data::{Corpus, Source};
use tritter_trainer::metrics::{bits_per_byte, unigram_nats};
use tritter_trainer::run::{Run, Settings, Start};
use tritter_trainer::schedule::{Rates, Schedule};

/// Share by which the trained model must be below the token-unigram model.
const MARGIN: f64 = 0.15;
const VOCAB: usize = 1024;
const CONTEXT: usize = 128;
const BATCH: usize = 8;
const PROMPTS: [&str; 2] = ["# The", "One morning Maren"];
const SAMPLE: usize = 60;

#[derive(Serialize)]
struct Report {
    device: String,
    folder: String,
    parameters: u64,
    ternary: u64,
    train_seconds: f64,
    steps: u64,
    train_tokens_per_second: f64,
    bits_per_byte_before: f64,
    bits_per_byte_after: f64,
    unigram_bits_per_byte: f64,
    below_unigram: f64,
    samples_before: Vec<String>,
    samples_after: Vec<String>,
    packed_bytes: u64,
    master_bytes: u64,
    same_text_in_fresh_process: bool,
    decode_tokens_per_second: f64,
    planned_bytes: u64,
    used_bytes: u64,
    passed: bool,
}

pub(crate) fn run(global: &Global, args: &Demo) -> Result<ExitCode> {
    if args.seconds == 0 {
        bail!("--seconds must be at least 1");
    }
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = args.out.clone().unwrap_or_else(|| temporary.path().join("demo"));
    let say = |text: &str| {
        if global.json {
            eprint!("{text}")
        } else {
            let _ = output::print(text);
        }
    };
    let device = device::open(global)?;

    let tokenizer = train_bpe(stories(), VOCAB)?;
    let corpus = corpus(temporary.path(), &tokenizer, args.seed)?;
    let config = config(&tokenizer)?;
    let unigram = bits_per_byte(unigram_nats(&corpus.train, &corpus.val, config.vocab_size), corpus.val.bytes);
    let count = config.parameters();
    say(&format!(
        "{} stories, {} tokens to learn from, {} held out; a model of {:.2} M parameters, {:.2} M of them ternary\n",
        stories().count(),
        corpus.train.tokens.len(),
        corpus.val.tokens.len(),
        count.total() as f64 / 1e6,
        count.ternary as f64 / 1e6
    ));
    let start = Start {
        config: &config,
        tokenizer: &tokenizer,
        corpus,
        settings: settings(args),
        folder: Some(RunFolder::create(&folder)?),
    };
    let mut training = Run::new(&device, start, false)?;
    let (planned, used) = (training.planned(), device.backend().memory().buffers);
    if let Some(note) = through_f32(training.steps(), &device) {
        say(&format!("{note}\n"));
    }
    let before = training.evaluate()?;
    let samples_before = samples(&device, &folder, &tokenizer)?;
    say(&format!("before training: {:.3} bits per byte\n{}", before.bits_per_byte, show(&samples_before)));
    let trained = train(&mut training, Duration::from_secs(args.seconds))?;
    let after = training.evaluate()?;
    drop(training);
    let samples_after = samples(&device, &folder, &tokenizer)?;
    let below = 1.0 - after.bits_per_byte / unigram;
    say(&format!(
        "after {} steps in {:.0} s: {:.3} bits per byte\n{}",
        trained.steps,
        trained.seconds,
        after.bits_per_byte,
        show(&samples_after)
    ));

    let packed = folder.join("packed");
    pack(&folder, &packed, &tokenizer)?;
    let fresh = fresh_process(global, &packed)?;
    let same = fresh.text == samples_after[0];
    let passed = below >= MARGIN && same;
    let size = |path: &Path| -> Result<u64> { Ok(Checkpoint::open(path)?.data_bytes()) };
    let report = Report {
        device: device.label(),
        folder: folder.display().to_string(),
        parameters: count.total(),
        ternary: count.ternary,
        train_seconds: trained.seconds,
        steps: trained.steps,
        train_tokens_per_second: trained.tokens_per_second,
        bits_per_byte_before: before.bits_per_byte,
        bits_per_byte_after: after.bits_per_byte,
        unigram_bits_per_byte: unigram,
        below_unigram: below,
        samples_before,
        samples_after,
        packed_bytes: size(&packed)?,
        master_bytes: size(&folder)?,
        same_text_in_fresh_process: same,
        decode_tokens_per_second: fresh.rate,
        planned_bytes: planned,
        used_bytes: used,
        passed,
    };
    if global.json {
        output::json(&report)?
    } else {
        output::print(&text(&report, args.out.is_some()))?
    }
    Ok(ExitCode::from(u8::from(!passed)))
}

/// The embedded stories as documents, through the same path as a user's files.
fn corpus(folder: &Path, tokenizer: &Tokenizer, seed: u64) -> Result<Corpus> {
    let line = |story: &str| serde_json::json!({ "text": story }).to_string();
    let lines: Vec<String> = stories().map(line).collect();
    let path = folder.join("stories.jsonl");
    std::fs::write(&path, lines.join("\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Corpus::tokenize(&Source::open(&[path])?, tokenizer, 0.1, seed)?)
}

/// A model small enough to learn within a minute on two cores.
fn config(tokenizer: &Tokenizer) -> Result<Config> {
    let shape = preset("test").context("the preset `test` is missing")?;
    let mut config = shape.config(Family::Bitnet, Some(tokenizer.vocab_size()), Some(1024));
    config.bos_token_id = tokenizer.bos_id();
    config.eos_token_ids = tokenizer.eos_id().into_iter().collect();
    config.pad_token_id = tokenizer.pad_id();
    config.validate()?;
    Ok(config)
}

fn settings(args: &Demo) -> Settings {
    Settings {
        // Replaced as soon as the speed of this machine is known.
        steps: u64::MAX,
        batch: BATCH,
        accumulate: 1,
        context: CONTEXT,
        rates: Rates { schedule: Schedule::TWO_STAGE, peak: 4e-3, weight_decay: 0.1, warmup: 10, steps: 1000 },
        clip: 1.0,
        z_loss: 1e-5,
        seed: args.seed,
        checkpoint_every: 0,
        evaluate_every: 0,
        recompute: false,
        adam: (0.9, 0.95, 1e-8),
        precision: args.precision.into(),
    }
}

struct Trained {
    steps: u64,
    seconds: f64,
    tokens_per_second: f64,
}

/// Times a few steps, sets the number of steps to what the time allows, and runs them.
fn train(run: &mut Run, time: Duration) -> Result<Trained> {
    const PROBE: u64 = 5;
    let begin = Instant::now();
    for _ in 0..PROBE {
        run.step()?;
    }
    let step = begin.elapsed() / PROBE as u32;
    let left = time.saturating_sub(begin.elapsed()).as_secs_f64();
    let total = PROBE + (left / step.as_secs_f64().max(1e-6)) as u64;
    run.set_total(total.max(PROBE + 1));
    let stop = super::train::stop_on_signal()?;
    let bar = output::progress(total, "steps");
    // The machine may slow down: time, not the number of steps, is what was asked for.
    let deadline = begin + time + time / 10;
    run.run(&stop, &mut |event| {
        if let tritter_trainer::run::Event::Step(step) = event {
            bar.set_position(step.step);
            bar.set_message(format!("loss {:.3}", step.loss));
        }
        if Instant::now() > deadline {
            stop.store(true, Ordering::Relaxed);
        }
    })?;
    bar.finish_and_clear();
    let seconds = begin.elapsed().as_secs_f64();
    let steps = run.progress().step;
    Ok(Trained { steps, seconds, tokens_per_second: (steps as usize * BATCH * CONTEXT) as f64 / seconds })
}

fn running_model(device: &Device, folder: &Path) -> Result<Model> {
    let config = Config::load(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let model = Model::new(&config, Form::Run, config.max_positions);
    model.load(device, &FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization })?;
    Ok(model)
}

/// Greedy continuations of the prompts.
fn samples(device: &Device, folder: &Path, tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let model = running_model(device, folder)?;
    let mut session = SessionPlan::new(&model, 256, CacheFormat::F32)?.open(device)?;
    session.set_draw(Draw::GREEDY)?;
    let mut texts = Vec::new();
    for prompt in PROMPTS {
        session.reset();
        session.prefill(&tokenizer.encode(prompt, true)?)?;
        let mut ids = vec![session.token()?.wait()?];
        while ids.len() < SAMPLE && !model.config.eos_token_ids.contains(&ids[ids.len() - 1]) {
            session.step()?;
            ids.push(session.token()?.wait()?);
        }
        ids.retain(|id| !model.config.eos_token_ids.contains(id));
        texts.push(tokenizer.decode(&ids, true)?);
    }
    Ok(texts)
}

fn pack(folder: &Path, packed: &Path, tokenizer: &Tokenizer) -> Result<()> {
    super::pack::fresh(packed)?;
    tokenizer.save_folder(packed)?;
    let config = Config::load(folder)?;
    let source = FromCheckpoint { checkpoint: &Checkpoint::open(folder)?, quantization: config.quantization };
    let layout = Layout { floats: Floats::F32, shard: None };
    Ok(write_folder(packed, &packed_config(&config), &source, layout)?)
}

struct Fresh {
    text: String,
    rate: f64,
}

/// `tritter generate` on the packed model in a process of its own.
fn fresh_process(global: &Global, packed: &Path) -> Result<Fresh> {
    let program: PathBuf = std::env::current_exe().context("cannot find this executable")?;
    let mut command = Command::new(program);
    command.arg("generate").arg(packed).arg(PROMPTS[0]).args(["--temperature", "0", "--json"]);
    command.args(["--max-tokens", &SAMPLE.to_string(), "--device", &global.device]);
    if let Some(threads) = global.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::piped()).output().context("cannot start a fresh process")?;
    if !output.status.success() {
        bail!(
            "the packed model does not generate in a fresh process: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("the fresh process printed no JSON")?;
    let text = json["text"].as_str().unwrap_or_default().to_string();
    Ok(Fresh { text, rate: json["decode_tokens_per_second"].as_f64().unwrap_or(0.0) })
}

fn show(samples: &[String]) -> String {
    let line = |(prompt, text): (&&str, &String)| format!("  {prompt}|{}\n", text.replace('\n', "\n  "));
    PROMPTS.iter().zip(samples).map(line).collect()
}

fn text(r: &Report, kept: bool) -> String {
    let same = if r.same_text_in_fresh_process { "the same text as in memory" } else { "OTHER TEXT than in memory" };
    let mut text = format!(
        "held-out text: {:.3} bits per byte before, {:.3} after; a token-unigram model gets {:.3} ({:.0} % below it)\n\
         packed: {} of weights, {} before; a fresh process generates {same}, at {:.0} tokens/s\n\
         training ran at {:.0} tokens/s; memory {} planned, {} in use\n",
        r.bits_per_byte_before,
        r.bits_per_byte_after,
        r.unigram_bits_per_byte,
        100.0 * r.below_unigram,
        bytes(r.packed_bytes),
        bytes(r.master_bytes),
        r.decode_tokens_per_second,
        r.train_tokens_per_second,
        bytes(r.planned_bytes),
        bytes(r.used_bytes)
    );
    if r.below_unigram < MARGIN {
        text += &format!(
            "FAILED: at least {:.0} % below the unigram model were expected; a longer --seconds may do\n",
            100.0 * MARGIN
        );
    }
    if kept {
        text +=
            &format!("the model is in {}; try: tritter generate {} \"# The\" --temperature 0.7\n", r.folder, r.folder);
    }
    text
}
