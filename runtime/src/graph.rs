//! Recording: ops into a graph of values.
//!
//! A value is bound to a [`Tensor`] (weight, state, input), or is an activation
//! that lives in the arena for one run, or is a contiguous run of rows (or another
//! shape) of such a value. Recording checks every operand against the row's
//! signature, that nothing is read before it is written, and that an op does not
//! write what it also reads under another operand.

use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::op::{Op, Operand};
use crate::tensor::Tensor;
use std::collections::HashMap;

pub(crate) mod widen;

/// A value of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

impl Value {
    /// Position in the graph's list of values.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value lives.
#[derive(Clone, Debug)]
pub enum Origin {
    /// In a tensor's own memory.
    Bound(Tensor),
    /// In the arena.
    Activation,
    /// In another root value, from this logical element and this byte on.
    Part {
        /// The root value.
        root: Value,
        /// First logical element.
        element: usize,
        /// First byte.
        byte: u64,
    },
}

#[derive(Clone, Debug)]
struct Info {
    spec: Spec,
    origin: Origin,
    written: bool,
}

/// One recorded op.
#[derive(Clone, Debug)]
pub struct Node {
    /// The op with its parameters.
    pub op: Op,
    /// Operands in the order of its signature.
    pub operands: Vec<Value>,
}

/// Recorded ops in the order in which they run.
#[derive(Clone, Debug)]
pub struct Graph {
    name: String,
    values: Vec<Info>,
    nodes: Vec<Node>,
    bound: HashMap<usize, Value>,
    tensors: Vec<Tensor>,
}

impl Graph {
    /// An empty graph; the name is for messages.
    pub fn new(name: impl Into<String>) -> Self {
        Graph { name: name.into(), values: Vec::new(), nodes: Vec::new(), bound: HashMap::new(), tensors: Vec::new() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Recorded ops.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Tensors that the graph binds, in order of first use.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        (0..self.values.len() as u32).map(Value)
    }

    /// Shape and dtype of a value.
    pub fn spec(&self, value: Value) -> &Spec {
        &self.values[value.index()].spec
    }

    /// Where a value lives.
    pub fn origin(&self, value: Value) -> &Origin {
        &self.values[value.index()].origin
    }

    /// The root value that holds a value, and the logical element where it starts there.
    pub fn root(&self, value: Value) -> (Value, usize) {
        match self.origin(value) {
            Origin::Part { root, element, .. } => (*root, *element),
            _ => (value, 0),
        }
    }

    /// The byte of its root where a value starts.
    pub fn offset(&self, value: Value) -> u64 {
        match self.origin(value) {
            Origin::Part { byte, .. } => *byte,
            _ => 0,
        }
    }

    /// A name for messages.
    pub fn value_name(&self, value: Value) -> String {
        match self.origin(self.root(value).0) {
            Origin::Bound(tensor) => tensor.name().to_string(),
            _ => format!("%{}", value.0),
        }
    }

    fn add(&mut self, spec: Spec, origin: Origin, written: bool) -> Value {
        self.values.push(Info { spec, origin, written });
        Value(self.values.len() as u32 - 1)
    }

    fn error(&self, message: String) -> Error {
        Error::Record { graph: self.name.clone(), message }
    }

    /// The value of a tensor; the same value for the same tensor.
    pub fn bind(&mut self, tensor: &Tensor) -> Value {
        if let Some(&value) = self.bound.get(&tensor.id()) {
            return value;
        }
        let value = self.add(tensor.spec().clone(), Origin::Bound(tensor.clone()), true);
        self.bound.insert(tensor.id(), value);
        self.tensors.push(tensor.clone());
        value
    }

    /// A new activation that some op will write.
    pub fn activation(&mut self, shape: impl Into<Vec<usize>>, dtype: DType) -> Value {
        self.add(Spec::new(shape, dtype), Origin::Activation, false)
    }

    /// `count` rows of a value from row `first` on, as `[count, cols]`.
    pub fn rows(&mut self, value: Value, first: usize, count: usize) -> Result<Value> {
        let spec = self.spec(value).clone();
        if count == 0 || first.checked_add(count).is_none_or(|end| end > spec.rows()) {
            return Err(
                self.error(format!("rows {first}+{count} of `{}` ({spec}) do not exist", self.value_name(value)))
            );
        }
        // Interleaved rows can be cut only between groups.
        let group = spec.dtype.row_group();
        let end = first + count;
        if !first.is_multiple_of(group) || end.next_multiple_of(group) > spec.rows().next_multiple_of(group) {
            let message = format!(
                "rows {first}+{count} of `{}` ({spec}): start at a multiple of {group}",
                self.value_name(value)
            );
            return Err(self.error(message));
        }
        let part = Spec::new([count, spec.cols()], spec.dtype);
        Ok(self.part(value, part, first * spec.cols(), first as u64 * spec.row_bytes()))
    }

    /// `count` elements of a value without padding from element `first` on, as `[count]`; of 16-bit
    /// dtypes an even number of elements from an even one on.
    pub fn elements(&mut self, value: Value, first: usize, count: usize) -> Result<Value> {
        let spec = self.spec(value).clone();
        let whole = [spec.cols(), first, count].into_iter().all(|n| spec.dtype.padded(n) == n);
        if !whole || count == 0 || first.checked_add(count).is_none_or(|end| end > spec.elements()) {
            return Err(
                self.error(format!("elements {first}+{count} of `{}` ({spec}) do not exist", self.value_name(value)))
            );
        }
        Ok(self.part(value, Spec::new([count], spec.dtype), first, spec.dtype.row_bytes(first) as u64))
    }

    /// The same elements in another shape; the last extent may change only where rows are not padded.
    pub fn view(&mut self, value: Value, shape: impl Into<Vec<usize>>) -> Result<Value> {
        let spec = self.spec(value).clone();
        let new = Spec::new(shape, spec.dtype);
        if new.elements() != spec.elements() || new.bytes() != spec.bytes() {
            return Err(self.error(format!("`{}` ({spec}) cannot be seen as {new}", self.value_name(value))));
        }
        Ok(self.part(value, new, 0, 0))
    }

    fn part(&mut self, of: Value, spec: Spec, element: usize, byte: u64) -> Value {
        let (root, first) = self.root(of);
        let byte = self.offset(of) + byte;
        self.add(spec, Origin::Part { root, element: first + element, byte }, true)
    }

    /// Records an op.
    pub fn record(&mut self, op: impl Into<Op>, operands: &[Value]) -> Result<()> {
        let op = op.into();
        let specs: Vec<Spec> = operands.iter().map(|&v| self.spec(v).clone()).collect();
        op.check_operands(&specs)?;
        let signature = &op.row().signature;
        let roots: Vec<Value> = operands.iter().map(|&v| self.root(v).0).collect();
        for (i, operand) in signature.operands.iter().enumerate() {
            if operand.access.reads() && !self.values[roots[i].index()].written {
                return Err(self.error(format!(
                    "{}: operand `{}` is read before anything is written to it",
                    op.row().name,
                    operand.name
                )));
            }
            let clash = |j: usize| j != i && roots[j] == roots[i] && (operand.access.writes());
            if let Some(j) = (0..roots.len()).find(|&j| clash(j)) {
                return Err(self.error(format!(
                    "{}: operand `{}` is written but shares memory with operand `{}`",
                    op.row().name,
                    operand.name,
                    signature.operands[j].name
                )));
            }
        }
        for (operand, root) in signature.operands.iter().zip(&roots) {
            if operand.access.writes() {
                self.values[root.index()].written = true;
            }
        }
        self.nodes.push(Node { op, operands: operands.to_vec() });
        Ok(())
    }

    /// Records an op whose last operand is its one output, and returns that as a new activation. It is
    /// bf16 where it may be and an input that may be is; else it has the signature's first dtype.
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value> {
        let op = op.into();
        let operands = &op.row().signature.operands;
        let may = |o: Option<&Operand>| o.is_some_and(|o| o.dtypes.contains(&DType::Bf16));
        let narrow = inputs.iter().zip(operands).any(|(&v, o)| may(Some(o)) && self.spec(v).dtype == DType::Bf16);
        let usual = operands.last().and_then(|o| o.dtypes.first()).copied().unwrap_or(DType::F32);
        self.apply_to(op, inputs, if narrow && may(operands.last()) { DType::Bf16 } else { usual })
    }

    /// As [`Graph::apply`], with the output in a dtype that the inputs do not tell.
    pub fn apply_to(&mut self, op: impl Into<Op>, inputs: &[Value], dtype: DType) -> Result<Value> {
        let op = op.into();
        let shape = op.specs().pop().map_or(vec![1], |spec| spec.shape);
        let output = Spec::new(shape, dtype);
        output.check(op.row().name)?;
        let output = self.activation(output.shape, dtype);
        let mut operands = inputs.to_vec();
        operands.push(output);
        self.record(op, &operands)?;
        Ok(output)
    }
}
