//! The training loop: batches, schedule, evaluation, checkpoints, resuming.

mod settings;

pub use settings::Settings;

use crate::checkpoint::RunFolder;
use crate::data::{BatchState, Batches, Corpus, validation};
use crate::error::{Error, Result};
use crate::metrics::{JsonLines, bits_per_byte};
use crate::steps::{Hyper, Outcome, Shape, Steps, StepsPlan};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tritter_model::Config;
use tritter_model::seeded::FromSeed;
use tritter_model::source::FromCheckpoint;
use tritter_model::tensors::{Checkpoint, SINGLE_FILE};
use tritter_model::tokenizer::Tokenizer;
use tritter_model::weights::{Form, Model};
use tritter_runtime::Device;

/// Updates skipped in a row after which a run ends.
pub const MOST_SKIPS: u64 = 10;

/// How far a run is: everything beside weights and moments that resuming needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Updates applied (steps without the skipped ones): Adam's t.
    pub updates: u64,
    /// Updates skipped because loss or gradient was not finite.
    pub skipped: u64,
    /// Skipped in a row, up to now.
    pub skipped_in_a_row: u64,
    /// Where the batches are.
    pub data: BatchState,
    /// Fingerprint of the training tokens.
    pub corpus: u64,
    /// Settings of the run.
    pub settings: Settings,
}

/// One step, as reported and as a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss in nats (z-loss included).
    pub loss: f64,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// The update was skipped.
    pub skipped: bool,
    /// Tokens per second of this step.
    pub tokens_per_second: f64,
}

/// An evaluation on held-out text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Steps done.
    pub step: u64,
    /// Bits per byte of the held-out text.
    pub bits_per_byte: f64,
    /// Perplexity per token.
    pub perplexity: f64,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug)]
pub enum Event {
    /// A step was done.
    Step(StepReport),
    /// Held-out text was evaluated.
    Evaluated(Evaluation),
    /// A checkpoint was committed.
    Saved(u64),
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Done,
    /// It was asked to stop, and saved.
    Stopped,
}

/// A training run.
pub struct Run {
    device: Device,
    /// The model in training form.
    pub model: Model,
    steps: Steps,
    corpus: Corpus,
    batches: Batches,
    progress: Progress,
    folder: Option<RunFolder>,
    metrics: Option<JsonLines>,
    saved: Option<u64>,
    planned: u64,
}

/// What a run starts from.
pub struct Start<'a> {
    /// Shapes of the model.
    pub config: &'a Config,
    /// Its tokenizer, for the folder.
    pub tokenizer: &'a Tokenizer,
    /// Its data.
    pub corpus: Corpus,
    /// Its settings.
    pub settings: Settings,
    /// Where it is kept; `None` keeps nothing.
    pub folder: Option<RunFolder>,
}

impl Run {
    /// Starts a run, or goes on with the one in the folder where `resume` says so and a step is
    /// committed there.
    pub fn new(device: &Device, start: Start<'_>, resume: bool) -> Result<Run> {
        let Start { config, tokenizer, corpus, settings, folder } = start;
        settings.check()?;
        if settings.context > config.max_positions {
            let problem = format!("the model has {} positions", config.max_positions);
            return Err(Error::setting("context", settings.context, problem));
        }
        let model = Model::new(config, Form::Train, settings.context);
        let shape = Shape {
            batch: settings.batch,
            context: settings.context,
            z_loss: settings.z_loss as f32,
            recompute: settings.recompute,
            precision: settings.precision,
        };
        let plan = StepsPlan::new(&model, shape)?.on(device)?;
        let planned = model.bytes() + plan.total();
        device.check_budget("training", planned, "use a smaller --batch or --context, or --recompute")?;
        let committed = match (&folder, resume) {
            (Some(folder), true) => folder.committed()?,
            _ => None,
        };
        match (&folder, committed) {
            (Some(folder), Some(_)) => {
                folder.check_config(config)?;
                let checkpoint = Checkpoint::open_file(&folder.path().join(SINGLE_FILE))?;
                checkpoint.check(config)?;
                let quantization = config.quantization;
                model.load(device, &FromCheckpoint { checkpoint: &checkpoint, quantization })?;
            }
            _ => model.load(device, &FromSeed::new(config, settings.seed))?,
        }
        let steps = plan.open(device)?;
        let progress = match (&folder, committed) {
            (Some(folder), Some(step)) => resumed(folder, step, &steps, device, &corpus, settings)?,
            _ => fresh(&corpus, settings)?,
        };
        let s = &progress.settings;
        let batches = Batches::resume(corpus.train.clone(), s.batch, s.context, progress.data)?;
        if let (Some(folder), None) = (&folder, committed) {
            folder.describe(config, tokenizer)?;
        }
        let metrics = folder.as_ref().map(|f| JsonLines::append(&f.path().join("metrics.jsonl"))).transpose()?;
        let device = device.clone();
        let mut run =
            Run { device, model, steps, corpus, batches, progress, folder, metrics, saved: committed, planned };
        if committed.is_none() {
            run.save()?;
        }
        Ok(run)
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Bytes planned for weights, gradients, moments, activations and inputs.
    pub fn planned(&self) -> u64 {
        self.planned
    }

    /// Its data.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The compiled programs.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Changes the total number of steps (and so the course of the schedule).
    pub fn set_total(&mut self, steps: u64) {
        self.progress.settings.steps = steps;
        self.progress.settings.rates.steps = steps;
    }

    /// Runs until all steps are done or `stop` is set; saves at the end either way.
    pub fn run(&mut self, stop: &AtomicBool, on: &mut dyn FnMut(&Event)) -> Result<End> {
        while self.progress.step < self.progress.settings.steps {
            if stop.load(Ordering::Relaxed) {
                self.commit(on)?;
                return Ok(End::Stopped);
            }
            let report = self.step()?;
            on(&Event::Step(report));
            self.stop_if_stuck()?;
            let (step, settings) = (self.progress.step, &self.progress.settings);
            let due = |every: u64| every > 0 && step % every == 0 && step < settings.steps;
            let (evaluate, save) = (due(settings.evaluate_every), due(settings.checkpoint_every));
            if evaluate {
                self.report_evaluation(on)?;
            }
            if save {
                self.commit(on)?;
            }
        }
        self.report_evaluation(on)?;
        self.commit(on)?;
        Ok(End::Done)
    }

    /// One optimiser step.
    pub fn step(&mut self) -> Result<StepReport> {
        let begin = Instant::now();
        let settings = &self.progress.settings;
        let (lr, weight_decay) = settings.rates.at(self.progress.step);
        let batches: Vec<_> = (0..settings.accumulate).map(|_| self.batches.next_batch()).collect();
        let (beta1, beta2, eps) = settings.adam;
        let hyper = Hyper {
            lr: lr as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: eps as f32,
            weight_decay: weight_decay as f32,
            t: self.progress.updates + 1,
            max_norm: settings.clip as f32,
            decay_all: false,
        };
        let outcome = self.steps.step(&batches, &hyper)?;
        let tokens = settings.accumulate * settings.batch * settings.context;
        self.advance(&outcome);
        let report = StepReport {
            step: self.progress.step,
            loss: outcome.loss,
            gradient_norm: outcome.norm,
            lr,
            skipped: !outcome.applied(),
            tokens_per_second: tokens as f64 / begin.elapsed().as_secs_f64().max(1e-9),
        };
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&report)?;
        }
        Ok(report)
    }

    fn advance(&mut self, outcome: &Outcome) {
        let progress = &mut self.progress;
        progress.step += 1;
        progress.data = self.batches.state();
        if outcome.applied() {
            progress.updates += 1;
            progress.skipped_in_a_row = 0;
        } else {
            progress.skipped += 1;
            progress.skipped_in_a_row += 1;
            tracing::warn!(step = progress.step, "loss or gradient is not finite: the update was skipped");
        }
    }

    fn stop_if_stuck(&self) -> Result<()> {
        if self.progress.skipped_in_a_row < MOST_SKIPS {
            return Ok(());
        }
        let last = self.saved.map_or("nothing was saved".into(), |s| format!("step {s} is kept in the folder"));
        Err(Error::Diverged { step: self.progress.step, skipped: MOST_SKIPS, last })
    }

    /// Loss on the held-out text.
    pub fn evaluate(&self) -> Result<Evaluation> {
        let s = &self.progress.settings;
        let (mut nats, mut tokens) = (0.0, 0);
        for batch in validation(&self.corpus.val, s.batch, s.context)? {
            nats += self.steps.evaluate(&batch)?;
            tokens += batch.valid as u64;
        }
        Ok(Evaluation {
            step: self.progress.step,
            bits_per_byte: bits_per_byte(nats, self.corpus.val.bytes),
            perplexity: (nats / tokens.max(1) as f64).exp(),
        })
    }

    fn report_evaluation(&mut self, on: &mut dyn FnMut(&Event)) -> Result<()> {
        if self.corpus.val.tokens.len() < 2 {
            return Ok(());
        }
        let evaluation = self.evaluate()?;
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&evaluation)?;
        }
        on(&Event::Evaluated(evaluation));
        Ok(())
    }

    fn commit(&mut self, on: &mut dyn FnMut(&Event)) -> Result<()> {
        if self.folder.is_some() && self.saved != Some(self.progress.step) {
            self.save()?;
            on(&Event::Saved(self.progress.step));
        }
        Ok(())
    }

    /// Commits a checkpoint of the present step, if the run has a folder.
    fn save(&mut self) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let step = self.progress.step;
        folder.save(step, &self.progress, &self.model, self.steps.parameters(), &self.device)?;
        self.saved = Some(step);
        Ok(())
    }
}

fn fresh(corpus: &Corpus, settings: Settings) -> Result<Progress> {
    let data = Batches::new(corpus.train.clone(), settings.batch, settings.context, settings.seed)?.state();
    let corpus = fingerprint(&corpus.train.tokens);
    Ok(Progress { step: 0, updates: 0, skipped: 0, skipped_in_a_row: 0, data, corpus, settings })
}

fn resumed(
    folder: &RunFolder,
    step: u64,
    steps: &Steps,
    device: &Device,
    corpus: &Corpus,
    settings: Settings,
) -> Result<Progress> {
    let mut progress: Progress = folder.load_state(step, steps.parameters(), device)?;
    let refuse = |why: String| Error::NoRun { path: folder.path().to_path_buf(), why };
    let conflicts = settings.conflicts(&progress.settings);
    if !conflicts.is_empty() {
        return Err(refuse(format!("it was started with other settings of {}; give the same", conflicts.join(", "))));
    }
    if progress.corpus != fingerprint(&corpus.train.tokens) {
        return Err(refuse("it was started on other training text; give the same --data and --tokenizer".into()));
    }
    if settings.steps < progress.step {
        return Err(refuse(format!("{} steps are done already; give --steps of at least that", progress.step)));
    }
    progress.settings = settings;
    progress.skipped_in_a_row = 0;
    Ok(progress)
}

/// FNV-1a over the token ids: tells other data, not tampering.
fn fingerprint(tokens: &[u32]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    tokens.iter().flat_map(|t| t.to_le_bytes()).fold(0xCBF2_9CE4_8422_2325, |hash, byte| step(hash, &byte))
}
