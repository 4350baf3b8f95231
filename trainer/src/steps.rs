//! The programs of training: a micro-step, an update and an evaluation.
//!
//! A *micro-step* runs forward, loss and backward over `batch × context` tokens and adds
//! to the gradients; it runs as often as gradients accumulate. An *update* takes the
//! global norm, clips, steps AdamW (not at all if the norm is not finite) and clears the
//! gradients. An *evaluation* sums the loss of a batch. All three share one arena.
//!
//! The loss is taken over chunks of rows: a chunk's logits live only until their
//! gradient has gone into `dx` and `dW`, so the logits of all tokens never exist at once.

use crate::backward::backward;
use crate::data::Batch;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use tritter_model::forward::{self, Stream, Trace};
use tritter_model::weights::Model;
use tritter_runtime::device::Program;
use tritter_runtime::ops::cross_entropy::CrossEntropy;
use tritter_runtime::ops::cross_entropy_grad::CrossEntropyGrad;
use tritter_runtime::ops::{accumulate, adamw, cast, copy, fill, matmul_nn, matmul_nt, matmul_tn, norm, reduce};
use tritter_runtime::plan::shared_slabs;
use tritter_runtime::{DType, Device, Graph, Plan, Role, Tensor, Value};

/// Elements of logits that exist at once, about.
const LOGITS: usize = 8 << 20;

/// What the programs are for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Sequences in a micro-step.
    pub batch: usize,
    /// Tokens in a sequence.
    pub context: usize,
    /// Weight of `log²Z` in the loss.
    pub z_loss: f32,
    /// Keep only the residual stream between layers and compute the rest again.
    pub recompute: bool,
    /// Dtype of activations and their gradients.
    pub precision: Precision,
}

/// Dtype of activations and of their gradients in training. Master weights, their gradients, the
/// optimiser's moments, norm weights, scales, softmax and loss are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// bf16 activations, f32 master weights (Micikevicius et al. 2018; Kalamkar et al. 2019).
    Bf16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.dtype().name())
    }
}

impl Precision {
    /// The dtype of activations.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

impl Shape {
    /// Tokens in a micro-step.
    pub fn tokens(&self) -> usize {
        self.batch * self.context
    }
}

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Number of this update, from 1, for the bias corrections.
    pub t: u64,
    /// Gradients with a larger global norm are scaled to it; 0 does not clip.
    pub max_norm: f32,
    /// Norm weights and biases decay too.
    pub decay_all: bool,
}

impl Hyper {
    fn words(&self, decay: bool) -> [f32; 8] {
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(self.t as f64)) as f32;
        let decay = if decay { self.weight_decay } else { 0.0 };
        let (c1, c2) = (correction(self.beta1), correction(self.beta2));
        [self.lr, self.beta1, self.beta2, self.eps, decay, c1, c2, self.max_norm]
    }
}

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

/// Recorded training programs: what they take is known before anything is allocated.
pub struct StepsPlan {
    shape: Shape,
    parameters: Vec<Parameter>,
    inputs: Inputs,
    states: States,
    graphs: [Graph; 3],
    plans: [Plan; 3],
    through_f32: usize,
}

impl StepsPlan {
    /// Records micro-step, update and evaluation of a model in training form.
    pub fn new(model: &Model, shape: Shape) -> Result<StepsPlan> {
        let m = shape.tokens();
        let parameters: Vec<Parameter> = model.parameters().into_iter().map(Parameter::new).collect();
        let inputs = Inputs {
            stream: Stream::new("batch", m),
            targets: Tensor::input("batch.targets", [m], DType::U32),
            scale: Tensor::input("batch.scale", [m], DType::F32),
            hyper: Tensor::input("hyper", [8], DType::F32),
            hyper_plain: Tensor::input("hyper without decay", [8], DType::F32),
        };
        let scalar = |name: &str| Tensor::state(name, [1], DType::F32);
        let states = States { loss: scalar("loss"), reported: scalar("reported loss"), norm: scalar("gradient norm") };
        let recorder = Recorder { model, shape, parameters: &parameters, inputs: &inputs, states: &states };
        let graphs = [recorder.micro()?, recorder.update()?, recorder.evaluation()?];
        let plans = graphs.each_ref().map(Plan::new);
        Ok(StepsPlan { shape, parameters, inputs, states, graphs, plans, through_f32: 0 })
    }

    /// The plan on a device: where it has no kernels for bf16 operands, with the f32 copies that these ops
    /// go through ([`Graph::widened`]). Until then the plan is that of a device that has them all.
    pub fn on(mut self, device: &Device) -> Result<StepsPlan> {
        self.through_f32 += device.through_f32(&self.graphs[0]);
        for (graph, plan) in self.graphs.iter_mut().zip(&mut self.plans) {
            let widened = match device.widened(graph)? {
                Cow::Owned(widened) => widened,
                Cow::Borrowed(_) => continue,
            };
            *plan = Plan::new(&widened);
            *graph = widened;
        }
        Ok(self)
    }

    /// The recorded micro-step.
    pub fn micro_step(&self) -> &Graph {
        &self.graphs[0]
    }

    /// Bytes of activations.
    pub fn arena(&self) -> u64 {
        shared_slabs(&self.plans.each_ref()).iter().sum()
    }

    /// Bytes of gradients.
    pub fn gradients(&self) -> u64 {
        self.parameters.iter().map(|p| p.gradient.spec().bytes()).sum()
    }

    /// Bytes of optimiser moments.
    pub fn moments(&self) -> u64 {
        2 * self.gradients()
    }

    /// Bytes of inputs and scalars.
    pub fn small(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let tensors = self.graphs.iter().flat_map(Graph::tensors);
        let small = tensors.filter(|t| t.role() == Role::Input || t.spec().elements() == 1);
        small.filter(|t| t.role() != Role::Weight && seen.insert(t.id())).map(|t| t.spec().bytes()).sum()
    }

    /// Everything beside the weights.
    pub fn total(&self) -> u64 {
        self.arena() + self.gradients() + self.moments() + self.small()
    }

    /// Allocates and compiles; the model's weights must be loaded.
    pub fn open(self, device: &Device) -> Result<Steps> {
        let this = self.on(device)?;
        let what = format!("training with batch {} and context {}", this.shape.batch, this.shape.context);
        device.check_budget(&what, this.total(), "use a smaller --batch or --context, or --recompute")?;
        let arena = device.arena(&this.plans.each_ref())?;
        let mut programs = Vec::new();
        for (graph, plan) in this.graphs.iter().zip(&this.plans) {
            for tensor in graph.tensors() {
                device.allocate(tensor)?;
            }
            programs.push(device.compile(graph, plan, &arena)?);
        }
        let Ok([micro, update, evaluation]) = <[Box<dyn Program>; 3]>::try_from(programs) else {
            return Err(Error::Internal("three graphs give three programs".into()));
        };
        let names = |graph: &Graph| graph.nodes().iter().map(|n| n.op.row().name).collect();
        Ok(Steps {
            device: device.clone(),
            shape: this.shape,
            through_f32: this.through_f32,
            names: [names(&this.graphs[0]), names(&this.graphs[1])],
            parameters: this.parameters,
            inputs: this.inputs,
            states: this.states,
            micro,
            update,
            evaluation,
        })
    }
}

struct Recorder<'a> {
    model: &'a Model,
    shape: Shape,
    parameters: &'a [Parameter],
    inputs: &'a Inputs,
    states: &'a States,
}

impl Recorder<'_> {
    fn head(&self) -> &Tensor {
        &self.model.head.as_ref().unwrap_or(&self.model.embedding).values
    }

    /// Chunks of rows `(first, count)`; starts are multiples of 64, so that slices are aligned.
    fn chunks(&self) -> Vec<(usize, usize)> {
        let m = self.shape.tokens();
        let most = (LOGITS / self.model.config.vocab_size / 64 * 64).max(64);
        (0..m).step_by(most).map(|first| (first, most.min(m - first))).collect()
    }

    fn micro(&self) -> Result<Graph> {
        let mut graph = Graph::new("training step");
        let g = &mut graph;
        let mut trace = Trace::default();
        let dtype = self.shape.precision.dtype();
        let x = forward::hidden(g, self.model, &self.inputs.stream, None, dtype, &mut trace)?;
        let nodes = 0..g.nodes().len();
        let wanted: Vec<(Value, Value)> =
            self.parameters.iter().map(|p| (g.bind(&p.weight), g.bind(&p.gradient))).collect();
        let head = g.bind(self.head());
        let accumulator = wanted.iter().find(|(w, _)| *w == head).map(|(_, a)| *a);
        let accumulator = accumulator.ok_or_else(|| Error::Internal("the head is not a parameter".into()))?;
        let head = cast::cast(g, head, dtype)?;
        let dx = g.activation(g.spec(x).shape.clone(), dtype);
        let loss = g.activation([self.shape.tokens()], DType::F32);
        for chunk in self.chunks() {
            self.loss_chunk(g, chunk, Head { weight: head, accumulator, x, dx, loss })?;
        }
        self.add_loss(g, loss)?;
        let again: Vec<_> = trace.boundaries.windows(2).map(|w| w[0]..w[1]).collect();
        let again = if self.shape.recompute { again } else { Vec::new() };
        backward(g, nodes, &[(x, dx)], &wanted, &again)?;
        Ok(graph)
    }

    /// Loss, `dx` and the head's gradient of one chunk of rows.
    fn loss_chunk(&self, g: &mut Graph, (first, count): (usize, usize), head: Head) -> Result<()> {
        let (d, v) = (self.model.config.hidden_size as u32, self.model.config.vocab_size as u32);
        let m = count as u32;
        let x = g.rows(head.x, first, count)?;
        let logits = matmul_nt::matmul_nt(g, x, head.weight)?;
        let targets = g.bind(&self.inputs.targets);
        let targets = g.elements(targets, first, count)?;
        let scale = g.bind(&self.inputs.scale);
        let scale = g.elements(scale, first, count)?;
        let loss = g.elements(head.loss, first, count)?;
        let lse = g.activation([count], DType::F32);
        let z = self.shape.z_loss;
        g.record(CrossEntropy { m, v, z }, &[logits, targets, loss, lse])?;
        let dlogits = g.apply(CrossEntropyGrad { m, v, z }, &[logits, targets, lse, scale])?;
        let dx = g.rows(head.dx, first, count)?;
        g.record(matmul_nn::MatmulNn::whole(m, v, d), &[dlogits, head.weight, dx])?;
        matmul_tn::matmul_tn_add(g, dlogits, x, head.accumulator)?;
        Ok(())
    }

    fn add_loss(&self, g: &mut Graph, loss: Value) -> Result<()> {
        let sum = reduce::reduce_to_scalar(g, loss, reduce::Kind::Sum, 1.0, f32::MIN)?;
        let state = g.bind(&self.states.loss);
        Ok(accumulate::accumulate(g, sum, state, 1.0)?)
    }

    fn update(&self) -> Result<Graph> {
        let mut graph = Graph::new("update");
        let g = &mut graph;
        // One slot of 64 words a parameter: a slot is then aligned wherever it is bound.
        let count = self.parameters.len() + 1;
        let slots = fill::zeros(g, [count, 64])?;
        for (i, parameter) in self.parameters.iter().enumerate() {
            let gradient = g.bind(&parameter.gradient);
            let slot = g.elements(slots, 64 * i, 1)?;
            reduce::reduce_into(g, gradient, reduce::Kind::Square, 1.0, f32::MIN, slot)?;
        }
        // The last slot holds 0 · loss: nothing, unless the loss is not finite.
        let loss = g.bind(&self.states.loss);
        let slot = g.elements(slots, 64 * self.parameters.len(), 1)?;
        reduce::reduce_into(g, loss, reduce::Kind::Sum, 0.0, f32::MIN, slot)?;
        let global = g.bind(&self.states.norm);
        let slots = g.view(slots, [count * 64])?;
        g.record(norm::Norm { n: 64 * count as u32, scale: 1.0 }, &[slots, global])?;
        let (hyper, plain) = (g.bind(&self.inputs.hyper), g.bind(&self.inputs.hyper_plain));
        for parameter in self.parameters {
            let [weight, gradient, first, second] =
                [&parameter.weight, &parameter.gradient, &parameter.first, &parameter.second].map(|t| g.bind(t));
            let hyper = if parameter.decays() { hyper } else { plain };
            adamw::adamw(g, gradient, hyper, global, weight, first, second)?;
            fill::fill(g, gradient, 0.0)?;
        }
        let reported = g.bind(&self.states.reported);
        copy::copy_into(g, loss, reported)?;
        fill::fill(g, loss, 0.0)?;
        Ok(graph)
    }

    fn evaluation(&self) -> Result<Graph> {
        let mut graph = Graph::new("evaluation");
        let g = &mut graph;
        let dtype = self.shape.precision.dtype();
        let x = forward::hidden(g, self.model, &self.inputs.stream, None, dtype, &mut Trace::default())?;
        let (head, v) = (g.bind(self.head()), self.model.config.vocab_size as u32);
        let head = cast::cast(g, head, dtype)?;
        let targets = g.bind(&self.inputs.targets);
        let all = g.activation([self.shape.tokens()], DType::F32);
        for (first, count) in self.chunks() {
            let x = g.rows(x, first, count)?;
            let logits = matmul_nt::matmul_nt(g, x, head)?;
            let targets = g.elements(targets, first, count)?;
            let loss = g.elements(all, first, count)?;
            let lse = g.activation([count], DType::F32);
            g.record(CrossEntropy { m: count as u32, v, z: 0.0 }, &[logits, targets, loss, lse])?;
        }
        self.add_loss(g, all)?;
        Ok(graph)
    }
}

#[derive(Clone, Copy)]
struct Head {
    weight: Value,
    accumulator: Value,
    x: Value,
    dx: Value,
    loss: Value,
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
