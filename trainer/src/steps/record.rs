//! The graphs of training.
//!
//! The loss is taken over chunks of rows: a chunk's logits live only until their
//! gradient has gone into `dx` and `dW`, so the logits of all tokens never exist at once.

use super::{Inputs, Parameter, Shape, States};
use crate::backward::backward;
use crate::error::{Error, Result};
use tritter_model::forward::{self, Trace};
use tritter_model::weights::Model;
use tritter_runtime::ops::cross_entropy::CrossEntropy;
use tritter_runtime::ops::cross_entropy_grad::CrossEntropyGrad;
use tritter_runtime::ops::{accumulate, adamw, cast, copy, fill, matmul_nn, matmul_nt, matmul_tn, norm, reduce};
use tritter_runtime::{DType, Graph, Tensor, Value};

/// Elements of logits that exist at once, about.
const LOGITS: usize = 8 << 20;

/// What is recorded, and the tensors that the programs share.
pub(super) struct Recorder<'a> {
    pub(super) model: &'a Model,
    pub(super) shape: Shape,
    pub(super) parameters: &'a [Parameter],
    pub(super) inputs: &'a Inputs,
    pub(super) states: &'a States,
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

    pub(super) fn micro(&self) -> Result<Graph> {
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

    pub(super) fn update(&self) -> Result<Graph> {
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

    pub(super) fn evaluation(&self) -> Result<Graph> {
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
