//! The first steps of training a base model: gradients, losses, updated parameters.

use super::bounds::{self, Training};
use super::golden::Golden;
use super::report::Report;
use super::{compare, read_json};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use tritter_model::Config;
use tritter_model::source::FromCheckpoint;
use tritter_model::tensors::Checkpoint;
use tritter_model::weights::{Form, Model};
use tritter_runtime::Device;
use tritter_trainer::data::{Batch, IGNORED};
use tritter_trainer::steps::{Hyper, Precision, Shape, Steps, StepsPlan};

/// Keys of `golden.json`: what is read here, and what describes how it was made.
const KEYS: [&str; 6] = ["losses", "optimizer", "loss", "seed", "repro", "sensitivity_params_times_1+1e-7N"];

/// Lists the keys of `golden.json` that nothing reads: all, where it is of another kind.
pub(super) fn check_keys(json: &Value, training: bool, report: &mut Report) {
    let keys = json.as_object().into_iter().flat_map(|map| map.keys());
    let unknown = keys.filter(|key| !(training && KEYS.contains(&key.as_str())));
    report.unknown.extend(unknown.map(|key| format!("golden.json {key}")));
}

/// Trains the base model on the golden batch and compares.
pub(super) fn check(
    folder: &Path,
    base: &Path,
    device: &Device,
    golden: &Golden,
    bounds: &Training,
    report: &mut Report,
) -> Result<()> {
    if !golden.has(&["input_ids", "labels", "losses"]) {
        return Ok(());
    }
    let json = read_json(&folder.join("golden.json"))?;
    let hyper = hyper(&json).with_context(|| format!("{}", folder.join("golden.json").display()))?;
    let (batch, shape) = batch(golden)?;
    let steps = golden.shape("losses")?.iter().product();
    let expected = Expected {
        losses: golden.floats("losses", &[steps])?,
        norms: golden.has(&["grad_norms"]).then(|| golden.floats("grad_norms", &[steps])).transpose()?,
    };
    let config = Config::load(base)?;
    let model = Model::new(&config, Form::Train, shape.context);
    let checkpoint = Checkpoint::open(base)?;
    checkpoint.check(&config)?;
    model.load(device, &FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization })?;
    let run = Run { device, golden, steps: StepsPlan::new(&model, shape)?.open(device)?, batch, hyper, bounds };
    run.gradients(&expected, report)?;
    let (losses, norms) = run.train(steps, report)?;
    compare_losses("losses", &losses, &expected.losses, bounds, report);
    if let Some(list) = json.get("losses").and_then(Value::as_array) {
        let list: Vec<f32> = list.iter().map(|v| v.as_f64().unwrap_or(f64::NAN) as f32).collect();
        compare_losses("golden.json losses", &losses, &list, bounds, report);
    }
    if let Some(expected) = &expected.norms {
        compare_norms(&norms, expected, bounds, report);
    }
    Ok(())
}

struct Expected {
    losses: Vec<f32>,
    norms: Option<Vec<f32>>,
}

/// Steps that are held to the strict bound, and their share of a name.
fn certain(bounds: &Training, found: &[f32], expected: &[f32]) -> (usize, String) {
    let steps = bounds.certain.min(found.len()).min(expected.len());
    (steps, if steps < found.len() { format!(" (first {steps})") } else { String::new() })
}

fn compare_losses(name: &str, found: &[f32], expected: &[f32], bounds: &Training, report: &mut Report) {
    let (first, which) = certain(bounds, found, expected);
    report.golden(format!("{name}{which}"), compare::max_abs(&found[..first], &expected[..first]), bounds.loss);
    if first < found.len() {
        report.golden(name, compare::max_abs(found, expected), bounds.loss_later);
    }
}

fn compare_norms(found: &[f32], expected: &[f32], bounds: &Training, report: &mut Report) {
    let (first, which) = certain(bounds, found, expected);
    let error = compare::relative_each(&found[..first], &expected[..first]);
    report.golden(format!("grad_norms{which} (relative)"), error, bounds.norm);
    if first < found.len() {
        report.golden("grad_norms (relative)", compare::relative_each(found, expected), bounds.norm_later);
        let error = compare::relative_to_largest(found, expected);
        report.golden("grad_norms (relative to the largest)", error, bounds.norm_later_of_largest);
    }
}

/// Hyper-parameters of `golden.json`: decay everywhere, no clipping.
fn hyper(json: &Value) -> Result<Hyper> {
    let number = |value: Option<&Value>, key: &str| {
        let value = value.and_then(Value::as_f64);
        value.map(|v| v as f32).with_context(|| format!("`optimizer.{key}` should be a number"))
    };
    let optimizer = json.get("optimizer").context("`optimizer` is missing")?;
    let beta = |i: usize| number(optimizer.get("betas").and_then(|betas| betas.get(i)), "betas");
    Ok(Hyper {
        lr: number(optimizer.get("lr"), "lr")?,
        beta1: beta(0)?,
        beta2: beta(1)?,
        eps: number(optimizer.get("eps"), "eps")?,
        weight_decay: number(optimizer.get("weight_decay"), "weight_decay")?,
        t: 1,
        max_norm: 0.0,
        decay_all: true,
    })
}

/// The golden batch: a token's target is the next label; labels below 0 and the last token have none.
fn batch(golden: &Golden) -> Result<(Batch, Shape)> {
    let ids = golden.ids("input_ids")?;
    let (rows, length, labels) = golden.integers("labels")?;
    if (rows, length) != (ids.batch, ids.length) {
        bail!("{}: `labels` and `input_ids` have different shapes", golden.path().display());
    }
    let target = |i: usize| {
        let next = if (i + 1).is_multiple_of(length) { None } else { labels.get(i + 1) };
        next.and_then(|&label| u32::try_from(label).ok()).unwrap_or(IGNORED)
    };
    let n = ids.ids.len();
    let targets: Vec<u32> = (0..n).map(target).collect();
    let batch = Batch {
        valid: targets.iter().filter(|&&t| t != IGNORED).count(),
        positions: (0..n).map(|i| (i % length) as u32).collect(),
        span: (0..n).flat_map(|i| [(i / length * length) as u32, i as u32]).collect(),
        tokens: ids.ids,
        targets,
    };
    Ok((batch, Shape { batch: rows, context: length, z_loss: 0.0, recompute: false, precision: Precision::F32 }))
}

struct Run<'a> {
    device: &'a Device,
    golden: &'a Golden,
    steps: Steps,
    batch: Batch,
    hyper: Hyper,
    bounds: &'a Training,
}

impl Run<'_> {
    /// Gradients and loss of the untrained model; clears both again.
    fn gradients(&self, expected: &Expected, report: &mut Report) -> Result<()> {
        self.steps.gradients(&self.batch)?;
        for parameter in self.steps.parameters() {
            let name = format!("grad.{}", parameter.weight.name());
            let found: Vec<f32> = self.device.read(&parameter.gradient)?;
            if self.golden.has(&[&name]) {
                let expected = self.golden.floats(&name, &parameter.weight.spec().shape)?;
                let (error, relative) =
                    (compare::max_abs(&found, &expected), compare::relative_norm(&found, &expected));
                if error > bounds::GRADIENT && relative <= bounds::GRADIENT_RELATIVE {
                    report.golden(format!("{name} (relative norm)"), relative, bounds::GRADIENT_RELATIVE);
                } else {
                    report.golden(name, error, bounds::GRADIENT);
                }
            }
            self.device.write(&parameter.gradient, &vec![0.0f32; found.len()])?;
        }
        // An evaluation leaves the running sum of losses empty.
        let loss = self.steps.evaluate(&self.batch)? / self.batch.valid.max(1) as f64;
        if let Some(first) = expected.losses.first() {
            report.golden(
                "losses (evaluation before step 1)",
                compare::max_abs(&[loss as f32], &[*first]),
                self.bounds.loss,
            );
        }
        Ok(())
    }

    /// Takes all steps; gives loss and gradient norm of each.
    fn train(&self, steps: usize, report: &mut Report) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for done in 1..=steps {
            let hyper = Hyper { t: done as u64, ..self.hyper };
            let outcome = self.steps.step(std::slice::from_ref(&self.batch), &hyper)?;
            losses.push(outcome.loss as f32);
            norms.push(outcome.norm as f32);
            self.parameters(done, report)?;
        }
        Ok((losses, norms))
    }

    /// Parameters after that many steps, where they are golden.
    fn parameters(&self, done: usize, report: &mut Report) -> Result<()> {
        for parameter in self.steps.parameters() {
            let name = format!("after{done}.{}", parameter.weight.name());
            if self.golden.has(&[&name]) {
                let expected = self.golden.floats(&name, &parameter.weight.spec().shape)?;
                let found: Vec<f32> = self.device.read(&parameter.weight)?;
                let most = bounds::parameter_move(f64::from(self.hyper.lr), done);
                report.golden(name.clone(), compare::max_abs(&found, &expected), most);
                let relative = compare::relative_norm(&found, &expected);
                report.golden(format!("{name} (relative norm)"), relative, self.bounds.parameters);
            }
        }
        Ok(())
    }
}
