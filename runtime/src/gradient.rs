//! What a row's gradient rule sees.
//!
//! A rule records nodes for the operands that are wanted, from the upstream
//! gradients of the outputs and from saved values. Gradients of a quantised pair
//! (codes and scales) are those of the dequantised value and travel, in f32 and the
//! shape of the codes, on the codes' operand; scales get none (straight-through:
//! Bengio, Léonard and Courville 2013).

use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Graph, Value};

/// The gradient of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// A value of its own (perhaps an upstream gradient, unchanged).
    Value(Value),
    /// Already added to the operand's accumulator.
    Added,
}

/// Context of one rule.
pub struct GradCx<'a> {
    /// Where to record.
    pub graph: &'a mut Graph,
    operands: &'a [Value],
    upstream: &'a [Option<Value>],
    wanted: &'a [bool],
    accumulators: &'a [Option<Value>],
    given: Vec<Option<Given>>,
}

impl<'a> GradCx<'a> {
    /// A context; all slices are in the order of the signature. `upstream` holds gradients of
    /// outputs, `accumulators` values to which an operand's gradient is to be added.
    pub fn new(
        graph: &'a mut Graph,
        operands: &'a [Value],
        upstream: &'a [Option<Value>],
        wanted: &'a [bool],
        accumulators: &'a [Option<Value>],
    ) -> Self {
        let given = vec![None; operands.len()];
        GradCx { graph, operands, upstream, wanted, accumulators, given }
    }

    /// Operand `i` of the forward op.
    pub fn operand(&self, i: usize) -> Value {
        self.operands[i]
    }

    /// Gradient with respect to output operand `i`, if the loss depends on it.
    pub fn upstream(&self, i: usize) -> Option<Value> {
        self.upstream[i]
    }

    /// Is the gradient of operand `i` wanted?
    pub fn wanted(&self, i: usize) -> bool {
        self.wanted[i]
    }

    /// Gives the gradient of operand `i`.
    pub fn give(&mut self, i: usize, gradient: Value) {
        self.given[i] = Some(Given::Value(gradient));
    }

    /// A value to which a rule's in-out op adds the gradient of operand `i`: the caller's
    /// accumulator, or a fresh one filled with zeros. Counts as given.
    pub fn accumulator(&mut self, i: usize) -> Result<Value> {
        if let Some(accumulator) = self.accumulators[i] {
            self.given[i] = Some(Given::Added);
            return Ok(accumulator);
        }
        let shape = self.graph.spec(self.operands[i]).shape.clone();
        let fresh = self.graph.activation(shape, DType::F32);
        crate::ops::fill::fill(self.graph, fresh, 0.0)?;
        self.give(i, fresh);
        Ok(fresh)
    }

    /// What was given, in the order of the signature.
    pub fn finish(self) -> Vec<Option<Given>> {
        self.given
    }
}
