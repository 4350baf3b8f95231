//! The programs of training: a micro-step, an update and an evaluation.
//!
//! A *micro-step* runs forward, loss and backward over `batch × context` tokens and adds
//! to the gradients; it runs as often as gradients accumulate. An *update* takes the
//! global norm, clips, steps AdamW (not at all if the norm is not finite) and clears the
//! gradients. An *evaluation* sums the loss of a batch. All three share one arena.

mod plan;
mod record;
mod settings;

pub use plan::StepsPlan;
pub use settings::{Hyper, Precision, Shape};

use crate::data::Batch;
use crate::error::Result;
use tritter_model::forward::Stream;
use tritter_runtime::device::Program;
use tritter_runtime::{DType, Device, Tensor};

/// A parameter and what the optimiser keeps of it.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Master weight.
    pub weight: Tensor,
    /// Accumulated gradient.
    pub gradient: Tensor,
    /// First moment.
    pub first: Tensor,
    /// Second moment.
    pub second: Tensor,
}

impl Parameter {
    fn new(weight: Tensor) -> Self {
        let state = |what: &str| {
            let shape = weight.spec().shape.clone();
            Tensor::state(format!("{}.{what}", weight.name()), shape, DType::F32)
        };
        Parameter { gradient: state("gradient"), first: state("first_moment"), second: state("second_moment"), weight }
    }

    /// Does weight decay apply by default: matrices, not norms and biases.
    fn decays(&self) -> bool {
        self.weight.spec().shape.len() > 1
    }
}

struct Inputs {
    stream: Stream,
    targets: Tensor,
    scale: Tensor,
    hyper: Tensor,
    hyper_plain: Tensor,
}

struct States {
    loss: Tensor,
    reported: Tensor,
    norm: Tensor,
}

/// Outcome of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Mean loss over the tokens of all micro-steps, in nats.
    pub loss: f64,
    /// Global gradient norm before clipping; not finite where the loss is not.
    pub norm: f64,
}

impl Outcome {
    /// Was the update applied?
    pub fn applied(&self) -> bool {
        self.norm.is_finite()
    }
}

/// Compiled training programs.
pub struct Steps {
    device: Device,
    shape: Shape,
    parameters: Vec<Parameter>,
    inputs: Inputs,
    states: States,
    micro: Box<dyn Program>,
    update: Box<dyn Program>,
    evaluation: Box<dyn Program>,
    through_f32: usize,
    /// Row names of the nodes of micro-step and update.
    names: [Vec<&'static str>; 2],
}

impl Steps {
    /// Batch and context.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Ops of a micro-step that this device runs in f32 between casts, for want of bf16 kernels.
    pub fn through_f32(&self) -> usize {
        self.through_f32
    }

    /// Parameters with gradients and moments.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn write(&self, batch: &Batch, scale: f32) -> Result<()> {
        let device = &self.device;
        device.write(&self.inputs.stream.ids, &batch.tokens)?;
        device.write(&self.inputs.stream.positions, &batch.positions)?;
        device.write(&self.inputs.stream.span, &batch.span)?;
        device.write(&self.inputs.targets, &batch.targets)?;
        Ok(device.write(&self.inputs.scale, &vec![scale; self.shape.tokens()])?)
    }

    /// One optimiser step over micro-batches: gradients, then the update.
    pub fn step(&self, batches: &[Batch], hyper: &Hyper) -> Result<Outcome> {
        let tokens: usize = batches.iter().map(|b| b.valid).sum();
        let tokens = tokens.max(1);
        for batch in batches {
            self.write(batch, 1.0 / tokens as f32)?;
            self.micro.submit()?;
        }
        self.device.write(&self.inputs.hyper, &hyper.words(true))?;
        self.device.write(&self.inputs.hyper_plain, &hyper.words(hyper.decay_all))?;
        self.update.submit()?;
        let (loss, norm) = (self.device.fetch(&self.states.reported)?, self.device.fetch(&self.states.norm)?);
        let scalar =
            |bytes: Vec<u8>| bytemuck::pod_collect_to_vec::<u8, f32>(&bytes).first().copied().unwrap_or(f32::NAN);
        let (loss, norm) = (scalar(loss.wait()?), scalar(norm.wait()?));
        Ok(Outcome { loss: f64::from(loss) / tokens as f64, norm: f64::from(norm) })
    }

    /// Gradients of one micro-batch, added to the accumulators, without an update.
    pub fn gradients(&self, batch: &Batch) -> Result<()> {
        self.write(batch, 1.0 / batch.valid.max(1) as f32)?;
        self.micro.submit()?;
        Ok(())
    }

    /// Sum of the loss over the valid tokens of a batch, in nats, without z-loss.
    pub fn evaluate(&self, batch: &Batch) -> Result<f64> {
        self.device.write(&self.states.loss, &[0f32])?;
        self.write(batch, 0.0)?;
        self.evaluation.submit()?;
        let sum: Vec<f32> = self.device.read(&self.states.loss)?;
        self.device.write(&self.states.loss, &[0f32])?;
        Ok(f64::from(sum[0]))
    }

    /// Share of a step's time by row, largest first; runs both programs a few times, so gradients and
    /// weights move on. Empty where a device cannot time single dispatches.
    pub fn profile(&self) -> Result<Vec<(&'static str, f64)>> {
        let mut rows: Vec<(&'static str, f64)> = Vec::new();
        for (program, names) in [(&self.micro, &self.names[0]), (&self.update, &self.names[1])] {
            for (name, time) in names.iter().zip(program.time(3)?.nodes) {
                match rows.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sum)) => *sum += time.as_secs_f64(),
                    None => rows.push((name, time.as_secs_f64())),
                }
            }
        }
        let total: f64 = rows.iter().map(|(_, t)| t).sum();
        rows.iter_mut().for_each(|(_, t)| *t /= total);
        rows.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(rows)
    }
}
