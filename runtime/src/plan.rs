//! Planning: a place for every value before anything runs.
//!
//! Tensors have memory of their own. Activations share an arena that is cut into a
//! few *slabs*, one buffer each: wgpu refuses a dispatch that binds one buffer both
//! read-only and writable, so no op may read and write the same slab. Values are
//! taken in the order in which they are first written; each goes to the slab, among
//! those its neighbours in an op leave open, whose top grows least (first fit over
//! the gaps between values that are alive at the same time).

use crate::device::{Arena, Buffer};
use crate::error::{Error, Result};
use crate::graph::{Graph, Origin, Value};
use crate::tensor::Role;
use std::collections::HashMap;

/// Offsets in a slab are multiples of this: what every wgpu adapter accepts, and a cache line pair.
pub const ALIGN: u64 = 256;

/// Where a root activation lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Slab.
    pub slab: usize,
    /// First byte.
    pub offset: u64,
    /// Bytes, a multiple of [`ALIGN`].
    pub bytes: u64,
}

/// Places of all activations, and what the graph takes in bytes.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    places: HashMap<Value, Place>,
    /// Bytes of each slab.
    pub slabs: Vec<u64>,
    /// Bytes of weights that the graph binds.
    pub weights: u64,
    /// Bytes of states.
    pub states: u64,
    /// Bytes of inputs.
    pub inputs: u64,
    /// Bytes that all activations would take side by side.
    pub activations: u64,
    /// The most bytes of activations alive at one op: no plan can be smaller.
    pub peak: u64,
}

/// First and last node that touch a root activation.
#[derive(Clone, Copy, Debug)]
struct Life {
    value: Value,
    first: usize,
    last: usize,
    bytes: u64,
}

impl Plan {
    /// Plans a graph.
    pub fn new(graph: &Graph) -> Plan {
        let mut plan = Plan::default();
        for tensor in graph.tensors() {
            let bytes = tensor.spec().bytes();
            match tensor.role() {
                Role::Weight => plan.weights += bytes,
                Role::State => plan.states += bytes,
                Role::Input | Role::Activation => plan.inputs += bytes,
            }
        }
        let lives = lives(graph);
        plan.activations = lives.iter().map(|l| l.bytes).sum();
        plan.peak = peak(graph.nodes().len(), &lives);
        let apart = neighbours(graph);
        let mut placed: Vec<Vec<(Life, u64)>> = Vec::new();
        for life in lives {
            let (slab, offset) = choose(&plan, &placed, &life, apart.get(&life.value));
            if slab == placed.len() {
                placed.push(Vec::new());
                plan.slabs.push(0);
            }
            placed[slab].push((life, offset));
            plan.slabs[slab] = plan.slabs[slab].max(offset + life.bytes);
            plan.places.insert(life.value, Place { slab, offset, bytes: life.bytes });
        }
        plan
    }

    /// Where a root activation lies.
    pub fn place(&self, value: Value) -> Option<Place> {
        self.places.get(&value).copied()
    }

    /// The memory of a value and its first byte in the backend's buffer, given the arena of a device (named for messages).
    pub fn locate<'a>(
        &self,
        graph: &'a Graph,
        arena: &'a Arena,
        value: Value,
        device: &str,
    ) -> Result<(&'a Buffer, u64)> {
        let (root, _) = graph.root(value);
        let (buffer, offset) = match graph.origin(root) {
            Origin::Bound(tensor) => {
                let missing = || Error::NotAllocated { tensor: tensor.name().into(), device: device.into() };
                let buffer = tensor.buffer().ok_or_else(missing)?;
                (buffer, buffer.first())
            }
            _ => {
                let place = self.place(root);
                let slab = place.and_then(|p| arena.slabs.get(p.slab).map(|slab| (slab, p)));
                match slab {
                    Some((slab, place)) if place.offset + place.bytes <= slab.bytes() => {
                        (slab, slab.first() + place.offset)
                    }
                    _ => {
                        let message = format!("graph `{}` does not fit the arena it was given", graph.name());
                        return Err(Error::Device { device: device.into(), message });
                    }
                }
            }
        };
        Ok((buffer, offset + graph.offset(value)))
    }

    /// Bytes of the arena.
    pub fn arena(&self) -> u64 {
        self.slabs.iter().sum()
    }

    /// All bytes: weights, states, inputs and arena.
    pub fn total(&self) -> u64 {
        self.weights + self.states + self.inputs + self.arena()
    }
}

/// Slab sizes that serve all of these plans.
pub fn shared_slabs(plans: &[&Plan]) -> Vec<u64> {
    let count = plans.iter().map(|p| p.slabs.len()).max().unwrap_or(0);
    let largest = |i: usize| plans.iter().filter_map(|p| p.slabs.get(i)).copied().max().unwrap_or(0);
    (0..count).map(largest).collect()
}

fn lives(graph: &Graph) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    let mut index: HashMap<Value, usize> = HashMap::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        for &operand in &node.operands {
            let (root, _) = graph.root(operand);
            if !matches!(graph.origin(root), Origin::Activation) {
                continue;
            }
            let i = *index.entry(root).or_insert_with(|| {
                let bytes = graph.spec(root).bytes().next_multiple_of(ALIGN);
                lives.push(Life { value: root, first: at, last: at, bytes });
                lives.len() - 1
            });
            lives[i].last = at;
        }
    }
    lives
}

fn peak(nodes: usize, lives: &[Life]) -> u64 {
    let mut change = vec![0i64; nodes + 1];
    for life in lives {
        change[life.first] += life.bytes as i64;
        change[life.last + 1] -= life.bytes as i64;
    }
    let mut now = 0;
    change
        .iter()
        .map(|c| {
            now += c;
            now
        })
        .max()
        .unwrap_or(0) as u64
}

/// For each activation, those that some op reads while it writes this one, or the other way round.
fn neighbours(graph: &Graph) -> HashMap<Value, Vec<Value>> {
    let mut apart: HashMap<Value, Vec<Value>> = HashMap::new();
    for node in graph.nodes() {
        let operands = node.op.row().signature.operands.iter().zip(&node.operands);
        let operands: Vec<_> = operands.map(|(o, &v)| (o.access.writes(), graph.root(v).0)).collect();
        for &(writes, value) in operands.iter().filter(|(writes, _)| *writes) {
            for &(other, read) in operands.iter().filter(|(w, _)| *w != writes) {
                debug_assert!(!other);
                apart.entry(value).or_default().push(read);
                apart.entry(read).or_default().push(value);
            }
        }
    }
    apart
}

fn choose(plan: &Plan, placed: &[Vec<(Life, u64)>], life: &Life, apart: Option<&Vec<Value>>) -> (usize, u64) {
    let taken: Vec<usize> = apart.into_iter().flatten().filter_map(|v| plan.place(*v)).map(|p| p.slab).collect();
    let mut best = (life.bytes, placed.len(), 0);
    for (slab, content) in placed.iter().enumerate().filter(|(slab, _)| !taken.contains(slab)) {
        let offset = first_fit(content, life);
        let growth = (offset + life.bytes).saturating_sub(plan.slabs[slab]);
        if growth < best.0 || (growth == best.0 && slab < best.1) {
            best = (growth, slab, offset);
        }
    }
    (best.1, best.2)
}

fn first_fit(content: &[(Life, u64)], life: &Life) -> u64 {
    let alive = |other: &Life| other.first <= life.last && life.first <= other.last;
    let mut busy: Vec<(u64, u64)> = content
        .iter()
        .filter(|(other, _)| alive(other))
        .map(|(other, offset)| (*offset, offset + other.bytes))
        .collect();
    busy.sort_unstable();
    let mut offset = 0;
    for (start, end) in busy {
        if start >= offset + life.bytes {
            break;
        }
        offset = offset.max(end);
    }
    offset
}
