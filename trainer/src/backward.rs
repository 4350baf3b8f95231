//! Reverse-mode differentiation of recorded graphs.
//!
//! The driver walks recorded nodes backwards and asks each row's rule for the
//! gradients of the operands that lead to something wanted. It sums over uses, adds
//! into the accumulators of what is wanted, prunes the rest, and, for ranges of nodes
//! that were not kept, records them a second time before it differentiates them
//! (Chen et al. 2016, "Training deep nets with sublinear memory cost").
//!
//! In mixed precision (Micikevicius et al. 2018) the gradient of a bf16 activation is bf16, and what is
//! wanted accumulates in f32: a cast is the identity for gradients, so the bf16 copy of a wanted f32
//! weight shares the weight's accumulator, and nothing of its gradient is ever rounded to bf16.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use tritter_runtime::error::{Error, Result};
use tritter_runtime::gradient::{Given, GradCx};
use tritter_runtime::graph::{Node, Origin};
use tritter_runtime::op::{Gradient, Op};
use tritter_runtime::ops::{accumulate, add, cast, fill};
use tritter_runtime::{DType, Graph, Value};

/// Records the backward pass of `nodes` (a range of the graph's nodes).
///
/// `seeds` are values with the gradients of the loss with respect to them; `wanted` are
/// values (usually weights) with accumulators of the same shape to which their gradients are
/// added. `again` are disjoint, ascending ranges within `nodes` whose activations are
/// recomputed instead of kept.
pub fn backward(
    g: &mut Graph,
    nodes: Range<usize>,
    seeds: &[(Value, Value)],
    wanted: &[(Value, Value)],
    again: &[Range<usize>],
) -> Result<()> {
    let forward: Vec<Node> = g.nodes()[nodes.clone()].to_vec();
    let mut accumulators: HashMap<Value, Value> = wanted.iter().map(|&(v, a)| (g.root(v).0, a)).collect();
    share_with_copies(g, &forward, &mut accumulators);
    let needed = needed(g, &forward, &accumulators);
    let mut driver = Driver { g, accumulators, needed, gradients: HashMap::new() };
    for &(value, gradient) in seeds {
        driver.contribute(value, gradient)?;
    }
    let mut end = nodes.end;
    for range in again.iter().rev().filter(|r| r.start >= nodes.start && r.end <= nodes.end) {
        driver.differentiate(&forward[range.end - nodes.start..end - nodes.start], &HashMap::new())?;
        let (copy, renamed) = driver.record_again(&forward[range.start - nodes.start..range.end - nodes.start])?;
        driver.differentiate(&copy, &renamed)?;
        end = range.start;
    }
    driver.differentiate(&forward[..end - nodes.start], &HashMap::new())
}

/// Gives the copies of wanted values in another dtype the accumulators of the originals.
fn share_with_copies(g: &Graph, forward: &[Node], accumulators: &mut HashMap<Value, Value>) {
    for node in forward.iter().filter(|node| matches!(node.op, Op::Cast(_))) {
        let [x, y] = [node.operands[0], node.operands[1]].map(|v| (g.root(v).0, g.spec(v).elements()));
        let whole = x.1 == g.spec(x.0).elements() && y.1 == g.spec(y.0).elements();
        if let (Some(&accumulator), true) = (accumulators.get(&x.0), whole) {
            accumulators.insert(y.0, accumulator);
        }
    }
}

/// Roots that something wanted flows into.
fn needed(g: &Graph, forward: &[Node], accumulators: &HashMap<Value, Value>) -> HashSet<Value> {
    let mut needed: HashSet<Value> = accumulators.keys().copied().collect();
    for node in forward {
        let row = node.op.row();
        let operands = || row.signature.operands.iter().zip(&node.operands);
        let reads = operands()
            .any(|(o, v)| o.access.reads() && !row.constant.contains(&o.name) && needed.contains(&g.root(*v).0));
        if reads {
            needed.extend(operands().filter(|(o, _)| o.access.writes()).map(|(_, v)| g.root(*v).0));
        }
    }
    needed
}

struct Driver<'a> {
    g: &'a mut Graph,
    accumulators: HashMap<Value, Value>,
    needed: HashSet<Value>,
    /// Gradients of whole root values, in the root's dtype or, where parts are added up and where a rule
    /// accumulates, in f32.
    gradients: HashMap<Value, Value>,
}

impl Driver<'_> {
    /// Differentiates nodes in reverse. `renamed` maps roots of recomputed nodes to the originals.
    fn differentiate(&mut self, nodes: &[Node], renamed: &HashMap<Value, Value>) -> Result<()> {
        for node in nodes.iter().rev() {
            self.node(node, renamed)?;
        }
        Ok(())
    }

    fn original(&self, value: Value, renamed: &HashMap<Value, Value>) -> Value {
        let (root, _) = self.g.root(value);
        renamed.get(&root).copied().unwrap_or(root)
    }

    fn node(&mut self, node: &Node, renamed: &HashMap<Value, Value>) -> Result<()> {
        let row = node.op.row();
        let mut upstream = vec![None; node.operands.len()];
        let mut wanted = vec![false; node.operands.len()];
        let mut accumulators = vec![None; node.operands.len()];
        for (i, (operand, &value)) in row.signature.operands.iter().zip(&node.operands).enumerate() {
            let root = self.original(value, renamed);
            if operand.access.writes() && !row.saved.contains(&operand.name) {
                upstream[i] = self.upstream(root, value)?;
            }
            if operand.access.reads() {
                wanted[i] = self.needed.contains(&root) && !row.constant.contains(&operand.name);
                accumulators[i] = self.accumulator(root, value)?;
            }
        }
        if upstream.iter().all(Option::is_none) || !wanted.contains(&true) {
            return Ok(());
        }
        if let Gradient::None(why) = row.gradient {
            let message = format!("{} is on the way to a wanted gradient but has none: {why}", row.name);
            return Err(Error::Record { graph: self.g.name().into(), message });
        }
        let mut cx = GradCx::new(self.g, &node.operands, &upstream, &wanted, &accumulators);
        node.op.gradient(&mut cx)?;
        for (i, given) in cx.finish().into_iter().enumerate() {
            if let (Some(Given::Value(gradient)), true) = (given, wanted[i]) {
                let root = self.original(node.operands[i], renamed);
                self.add(root, node.operands[i], gradient)?;
            }
        }
        Ok(())
    }

    /// Gradient of an output, seen in the output's own shape and, where that is bf16, in its dtype.
    fn upstream(&mut self, root: Value, value: Value) -> Result<Option<Value>> {
        let Some(&gradient) = self.gradients.get(&root) else { return Ok(None) };
        let gradient = match self.g.spec(root).dtype {
            DType::Bf16 => self.cast(gradient, DType::Bf16)?,
            _ => gradient,
        };
        self.gradients.insert(root, gradient);
        self.part(gradient, value).map(Some)
    }

    fn cast(&mut self, gradient: Value, dtype: DType) -> Result<Value> {
        cast::cast(self.g, gradient, dtype)
    }

    /// Accumulator of an operand, seen in the operand's own shape.
    fn accumulator(&mut self, root: Value, value: Value) -> Result<Option<Value>> {
        let Some(&accumulator) = self.accumulators.get(&root) else { return Ok(None) };
        self.part(accumulator, value).map(Some)
    }

    /// The part of a root-shaped value that corresponds to `value` within its root.
    fn part(&mut self, whole: Value, value: Value) -> Result<Value> {
        let (_, first) = self.g.root(value);
        let spec = self.g.spec(value).clone();
        if self.g.spec(whole).shape == spec.shape {
            return Ok(whole);
        }
        let elements = if self.g.spec(whole).elements() == spec.elements() {
            whole
        } else {
            self.g.elements(whole, first, spec.elements())?
        };
        self.g.view(elements, spec.shape)
    }

    fn contribute(&mut self, value: Value, gradient: Value) -> Result<()> {
        let (root, _) = self.g.root(value);
        self.add(root, value, gradient)
    }

    /// Adds a contribution to the gradient of a root.
    fn add(&mut self, root: Value, value: Value, gradient: Value) -> Result<()> {
        if let Some(accumulator) = self.accumulator(root, value)? {
            let gradient = self.cast(gradient, DType::F32)?;
            return accumulate::accumulate(self.g, gradient, accumulator, 1.0);
        }
        let shape = self.g.spec(root).shape.clone();
        let whole = self.g.spec(value).elements() == self.g.spec(root).elements();
        let sum = match (whole, self.gradients.get(&root).copied()) {
            (true, None) => self.g.view(gradient, shape)?,
            (true, Some(known)) => {
                let mut gradient = self.g.view(gradient, shape)?;
                let mut known = known;
                if self.g.spec(known).dtype != self.g.spec(gradient).dtype {
                    (known, gradient) = (self.cast(known, DType::F32)?, self.cast(gradient, DType::F32)?);
                }
                add::add(self.g, known, gradient)?
            }
            (false, known) => {
                // A slice: its contribution goes into a gradient of the whole, which must be ours.
                let target = fill::zeros(self.g, shape)?;
                if let Some(known) = known {
                    let known = self.cast(known, DType::F32)?;
                    accumulate::accumulate(self.g, known, target, 1.0)?;
                }
                let part = self.part(target, value)?;
                let gradient = self.cast(gradient, DType::F32)?;
                accumulate::accumulate(self.g, gradient, part, 1.0)?;
                target
            }
        };
        self.gradients.insert(root, sum);
        Ok(())
    }

    /// Records nodes a second time with fresh activations; gives the copies and fresh root → original root.
    fn record_again(&mut self, nodes: &[Node]) -> Result<(Vec<Node>, HashMap<Value, Value>)> {
        let mut fresh: HashMap<Value, Value> = HashMap::new();
        let mut copies = Vec::new();
        for node in nodes {
            let mut operands = Vec::new();
            for (operand, &value) in node.op.row().signature.operands.iter().zip(&node.operands) {
                let (root, _) = self.g.root(value);
                let activation = matches!(self.g.origin(root), Origin::Activation);
                if operand.access.writes() && activation && !fresh.contains_key(&root) {
                    let spec = self.g.spec(root).clone();
                    let copy = self.g.activation(spec.shape, spec.dtype);
                    fresh.insert(root, copy);
                }
                operands.push(self.renamed(value, &fresh)?);
            }
            self.g.record(node.op, &operands)?;
            copies.push(Node { op: node.op, operands });
        }
        let renamed = fresh.into_iter().map(|(original, copy)| (copy, original)).collect();
        Ok((copies, renamed))
    }

    /// `value` within the fresh copy of its root, if there is one.
    fn renamed(&mut self, value: Value, fresh: &HashMap<Value, Value>) -> Result<Value> {
        let (root, first) = self.g.root(value);
        match fresh.get(&root) {
            None => Ok(value),
            Some(&copy) if value == root => Ok(copy),
            Some(&copy) => {
                let spec = self.g.spec(value).clone();
                if spec.elements() == self.g.spec(root).elements() {
                    return self.g.view(copy, spec.shape);
                }
                let rows = self.g.rows(copy, first / spec.cols(), spec.rows())?;
                self.g.view(rows, spec.shape)
            }
        }
    }
}
