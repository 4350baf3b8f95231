//! Training programs before anything is allocated.

use super::record::Recorder;
use super::{Inputs, Parameter, Shape, States, Steps};
use crate::error::{Error, Result};
use std::borrow::Cow;
use tritter_model::forward::Stream;
use tritter_model::weights::Model;
use tritter_runtime::device::Program;
use tritter_runtime::plan::shared_slabs;
use tritter_runtime::{DType, Device, Graph, Plan, Role, Tensor};

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
