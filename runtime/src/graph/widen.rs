//! bf16 on devices without kernels for it: the same op in f32 between casts.
//!
//! A device says by [`Backend::supports`] which operands its kernels take. [`Graph::widened`] rewrites
//! every node that it does not take: each bf16 operand is replaced by an f32 activation, cast from it
//! before where the op reads it, and back to it after where the op writes it. What is stored in bf16
//! stays so, rounded where it would be on a device with native kernels; only the op between computes on
//! f32 copies. It costs the casts' traffic, and room for the copies while they live.

use super::{Graph, Node, Value};
use crate::device::{Backend, Support};
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::op::{Access, Op};
use crate::ops::cast::cast_into;
use std::borrow::Cow;
use std::collections::HashMap;

/// Nodes after its last use for which a copy is kept for the next reader. Neighbours share casts (the
/// projections of one input, the two products of one gradient); a copy that lived from the forward to
/// the backward pass would take more memory than bf16 saves.
const NEAR: usize = 8;

/// These operands with f32 for bf16; `None` where there is no bf16.
pub(crate) fn wide(operands: &[Spec]) -> Option<Vec<Spec>> {
    let dtype = |s: &Spec| if s.dtype == DType::Bf16 { DType::F32 } else { s.dtype };
    let some = operands.iter().any(|s| s.dtype == DType::Bf16);
    some.then(|| operands.iter().map(|s| Spec::new(s.shape.clone(), dtype(s))).collect())
}

impl Graph {
    /// The graph that a device runs: this one, or, where it has no kernel for some node's bf16
    /// operands, one in which these nodes run in f32 between casts. Values keep their meaning and
    /// their place in memory. A node that the device cannot run in f32 either stays as it is, and
    /// compiling refuses it.
    pub fn widened(&self, backend: &dyn Backend) -> Result<Cow<'_, Graph>> {
        let native = |node: &Node| {
            let specs = self.specs(node);
            let missing = |specs: &[Spec]| matches!(backend.supports(&node.op, specs), Support::Missing(_));
            !missing(&specs) || wide(&specs).is_none_or(|specs| missing(&specs))
        };
        let native: Vec<bool> = self.nodes.iter().map(native).collect();
        if native.iter().all(|&n| n) {
            return Ok(Cow::Borrowed(self));
        }
        let through = native.iter().filter(|&&n| !n).count();
        tracing::debug!("graph `{}`: {through} of {} ops go through f32", self.name, self.nodes.len());
        let mut graph = self.clone();
        let nodes = std::mem::take(&mut graph.nodes);
        let mut widening = Widening { graph, copies: HashMap::new() };
        for (at, (node, native)) in nodes.into_iter().zip(native).enumerate() {
            widening.node(at, node, native)?;
        }
        Ok(Cow::Owned(widening.graph))
    }

    fn specs(&self, node: &Node) -> Vec<Spec> {
        node.operands.iter().map(|&v| self.spec(v).clone()).collect()
    }
}

/// An f32 copy of some elements, and the node that used it last.
struct Copy {
    value: Value,
    used: usize,
}

/// Elements of a root value: first and count.
type Place = (Value, usize, usize);

struct Widening {
    graph: Graph,
    copies: HashMap<Place, Copy>,
}

impl Widening {
    fn node(&mut self, at: usize, node: Node, native: bool) -> Result<()> {
        let accesses: Vec<Access> = node.op.row().signature.operands.iter().map(|o| o.access).collect();
        if native {
            self.graph.nodes.push(node.clone());
        } else {
            self.through_f32(at, &node.op, &node.operands, &accesses)?;
        }
        for (access, &value) in accesses.iter().zip(&node.operands) {
            if access.writes() {
                let (written, _) = self.graph.root(value);
                self.copies.retain(|(root, ..), _| *root != written);
            }
        }
        Ok(())
    }

    fn through_f32(&mut self, at: usize, op: &Op, operands: &[Value], accesses: &[Access]) -> Result<()> {
        let (mut wide, mut back) = (Vec::with_capacity(operands.len()), Vec::new());
        for (&value, access) in operands.iter().zip(accesses) {
            if self.graph.spec(value).dtype != DType::Bf16 {
                wide.push(value);
                continue;
            }
            let copy = match access {
                Access::In => self.shared(at, value)?,
                Access::InOut => self.fresh(value)?,
                Access::Out => self.graph.activation(self.graph.spec(value).shape.clone(), DType::F32),
            };
            if access.writes() {
                back.push((copy, value));
            }
            wide.push(copy);
        }
        self.graph.record(*op, &wide)?;
        back.into_iter().try_for_each(|(copy, value)| cast_into(&mut self.graph, copy, value))
    }

    /// An f32 copy that only reads share.
    fn shared(&mut self, at: usize, value: Value) -> Result<Value> {
        let shape = self.graph.spec(value).shape.clone();
        let (root, first) = self.graph.root(value);
        let place = (root, first, self.graph.spec(value).elements());
        let known = self.copies.get(&place).filter(|copy| at - copy.used <= NEAR).map(|copy| copy.value);
        let copy = match known {
            Some(copy) => copy,
            None => self.fresh(value)?,
        };
        self.copies.insert(place, Copy { value: copy, used: at });
        if self.graph.spec(copy).shape == shape { Ok(copy) } else { self.graph.view(copy, shape) }
    }

    fn fresh(&mut self, value: Value) -> Result<Value> {
        let copy = self.graph.activation(self.graph.spec(value).shape.clone(), DType::F32);
        cast_into(&mut self.graph, value, copy)?;
        Ok(copy)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cpu;
    use crate::ops::add::add;
    use crate::ops::cast::cast;
    use crate::ops::copy::copy_into;
    use crate::reference::{decode, encode};
    use crate::tensor::Tensor;

    fn names(graph: &Graph) -> Vec<&'static str> {
        graph.nodes().iter().map(|n| n.op.row().name).collect()
    }

    #[test]
    fn graphs_without_bf16_stay_as_they_are() {
        let x = Tensor::state("x", [3, 5], DType::F32);
        let mut g = Graph::new("plain");
        let v = g.bind(&x);
        add(&mut g, v, v).unwrap();
        assert!(matches!(g.widened(cpu::open().backend()).unwrap(), Cow::Borrowed(_)));
    }

    #[test]
    fn neighbours_share_a_cast_until_the_value_is_written_again() {
        let (x, y) = (Tensor::state("x", [3, 5], DType::Bf16), Tensor::state("y", [3, 5], DType::Bf16));
        let mut g = Graph::new("shared");
        let (a, b) = (g.bind(&x), g.bind(&y));
        add(&mut g, a, a).unwrap();
        add(&mut g, a, b).unwrap();
        copy_into(&mut g, b, a).unwrap();
        let last = add(&mut g, a, b).unwrap();
        assert_eq!(g.spec(last).dtype, DType::Bf16);
        let device = cpu::open();
        let wide = g.widened(device.backend()).unwrap();
        // x; y; the copy writes x; x again.
        let expected = ["cast", "add", "cast", "cast", "add", "cast", "copy", "cast", "cast", "add", "cast"];
        assert_eq!(names(&wide), expected);
        let again = wide.widened(device.backend()).unwrap();
        assert_eq!(names(&again), expected, "widening twice changes nothing");
    }

    #[test]
    fn what_is_far_away_is_cast_again() {
        let x = Tensor::state("x", [3, 5], DType::Bf16);
        let mut g = Graph::new("far");
        let a = g.bind(&x);
        add(&mut g, a, a).unwrap();
        let mut v = cast(&mut g, a, DType::F32).unwrap();
        for _ in 0..NEAR {
            v = add(&mut g, v, v).unwrap();
        }
        add(&mut g, a, a).unwrap();
        let wide = g.widened(cpu::open().backend()).unwrap().into_owned();
        let reads = |n: &&Node| n.op.row().name == "cast" && wide.spec(n.operands[0]).dtype == DType::Bf16;
        assert_eq!(wide.nodes().iter().filter(reads).count(), 3);
    }

    #[test]
    fn results_are_rounded_to_bf16_after_every_op() {
        let device = cpu::open();
        let (x, y) = (Tensor::state("x", [1, 3], DType::Bf16), Tensor::state("y", [1, 3], DType::Bf16));
        let mut g = Graph::new("rounded");
        let (a, out) = (g.bind(&x), g.bind(&y));
        let two = add(&mut g, a, a).unwrap();
        let three = add(&mut g, two, a).unwrap();
        copy_into(&mut g, three, out).unwrap();
        let program = device.prepare(&g).unwrap();
        // 1 + 2^-7 is a bf16, three times it is not: it lies between 3.015625 and 3.03125.
        device.write(&x, &encode(x.spec(), &[1.0078125, -1.0078125, 0.5])).unwrap();
        program.submit().unwrap();
        let words: Vec<u32> = device.read(&y).unwrap();
        assert_eq!(decode(y.spec(), &words), [3.03125, -3.03125, 1.5]);
    }

    #[test]
    fn a_device_never_compiles_bf16_operands_that_its_kernels_do_not_take() {
        let device = cpu::open();
        let x = Tensor::state("x", [3, 5], DType::Bf16);
        device.allocate(&x).unwrap();
        let mut g = Graph::new("narrow");
        let a = g.bind(&x);
        add(&mut g, a, a).unwrap();
        let plan = crate::plan::Plan::new(&g);
        let arena = device.arena(&[&plan]).unwrap();
        let error = device.compile(&g, &plan, &arena).err().unwrap().to_string();
        assert!(error.contains("add") && error.contains("bf16"), "{error}");
    }
}
