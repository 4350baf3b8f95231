//! Lowering: a graph with its plan becomes a linear list of steps.
//!
//! For every node the first WGSL variant that the device can run is taken. An op
//! with an operand above the device's binding limit is cut by its row into pieces. A
//! slice that starts where the device cannot bind goes through a scratch buffer: it
//! is copied there before the dispatch and, if written, back after it.

use super::context::{Context, message};
use super::memory::Memory;
use super::pipeline::Pipeline;
use crate::device::Arena;
use crate::dtype::Spec;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Value};
use crate::op::{Choice, Op, Piece};
use crate::plan::Plan;
use std::sync::Arc;

/// One dispatch.
pub(super) struct Dispatch {
    /// Node of the graph.
    pub(super) node: usize,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) operands: wgpu::BindGroup,
    /// The op's parameters.
    pub(super) params: Vec<u8>,
    pub(super) groups: [u32; 3],
    /// Predicted seconds.
    pub(super) seconds: f64,
}

/// A step of a program.
pub(super) enum Step {
    Dispatch(Dispatch),
    /// Bytes from one buffer to another; stands between compute passes.
    Copy {
        from: Range,
        to: Range,
    },
}

/// Bytes of a buffer.
#[derive(Clone)]
pub(super) struct Range {
    pub(super) memory: Arc<Memory>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Name of the variant that would run an op, or why none does.
pub(super) fn supports(context: &Context, op: &Op, operands: &[Spec]) -> Result<&'static str> {
    op.check_operands(operands)?;
    let pieces = pieces(context, op, operands)?;
    let piece = pieces.first().map_or((op, operands.to_vec()), |p| (&p.op, piece_specs(operands, p)));
    Ok(choose(context, piece.0, &piece.1)?.variant)
}

fn unsupported(context: &Context, op: &Op, operands: &[Spec], reason: impl Into<String>) -> Error {
    Error::unsupported(&context.caps, op, operands, reason)
}

/// The best variant that the device can run.
fn choose(context: &Context, op: &Op, operands: &[Spec]) -> Result<Choice> {
    let forced = context.options.variant.as_deref().filter(|&name| op.row().wgsl.contains(&name));
    let limits = &context.limits;
    if operands.len() > limits.max_storage_buffers_per_shader_stage as usize {
        let most = limits.max_storage_buffers_per_shader_stage;
        return Err(unsupported(context, op, operands, format!("a kernel can bind {most} buffers")));
    }
    let mut reasons = Vec::new();
    for choice in op.wgsl(operands) {
        if forced.is_some_and(|name| name != choice.variant) {
            continue;
        }
        if let Some(missing) = choice.needs.missing(&context.caps) {
            reasons.push(format!("variant `{}` needs {missing}", choice.variant));
        } else if choice.launch.groups.iter().any(|&n| n > limits.max_compute_workgroups_per_dimension) {
            reasons.push(format!("variant `{}` needs {:?} workgroups", choice.variant, choice.launch.groups));
        } else {
            return Ok(choice);
        }
    }
    if reasons.is_empty() {
        reasons.push(match forced {
            Some(name) => format!("variant `{name}` does not take these operands"),
            None => "it has no WGSL variant for these operands".into(),
        });
    }
    Err(unsupported(context, op, operands, reasons.join("; ")))
}

/// Pieces of an op with an operand too large to bind; none if all can be bound whole.
fn pieces(context: &Context, op: &Op, operands: &[Spec]) -> Result<Vec<Piece<Op>>> {
    let limit = context.caps.max_binding;
    let Some(large) = operands.iter().find(|s| s.bytes() > limit) else { return Ok(Vec::new()) };
    let too_large = || {
        let reason =
            format!("{large} is larger than the {limit} bytes that one operand can bind, and the op cannot be cut");
        unsupported(context, op, operands, reason)
    };
    let pieces = op.shard(operands, limit).filter(|p| !p.is_empty()).ok_or_else(too_large)?;
    let inside = |p: &Piece<Op>| {
        p.rows.len() == operands.len()
            && p.rows.iter().zip(operands).all(|(&(first, count), spec)| {
                first.checked_add(count).is_some_and(|end| count > 0 && end <= spec.rows())
                    && count as u64 * spec.row_bytes() <= limit
            })
    };
    if pieces.iter().all(inside) { Ok(pieces) } else { Err(too_large()) }
}

fn piece_specs(operands: &[Spec], piece: &Piece<Op>) -> Vec<Spec> {
    let window = |(spec, &(_, count)): (&Spec, &(usize, usize))| match count == spec.rows() {
        true => spec.clone(),
        false => Spec::new([count, spec.cols()], spec.dtype),
    };
    operands.iter().zip(&piece.rows).map(window).collect()
}

/// Lowers graphs; holds what the steps share.
pub(super) struct Lowering<'a> {
    context: &'a Context,
    graph: &'a Graph,
    plan: &'a Plan,
    arena: &'a Arena,
    /// Scratch buffers of operand `i` so far, for slices that cannot be bound where they lie.
    scratch: Vec<Vec<Arc<Memory>>>,
    pub(super) steps: Vec<Step>,
    /// Keeps the count of memory in use honest while the program lives.
    pub(super) held: Vec<Arc<Memory>>,
}

impl<'a> Lowering<'a> {
    pub(super) fn new(context: &'a Context, graph: &'a Graph, plan: &'a Plan, arena: &'a Arena) -> Self {
        Lowering { context, graph, plan, arena, scratch: Vec::new(), steps: Vec::new(), held: Vec::new() }
    }

    pub(super) fn run(&mut self) -> Result<()> {
        for (index, node) in self.graph.nodes().iter().enumerate() {
            self.node(index, node)?;
        }
        let copies = self.steps.iter().filter(|s| matches!(s, Step::Copy { .. })).count();
        if copies > 0 {
            let name = self.graph.name();
            tracing::debug!("graph `{name}`: {copies} copies for slices that cannot be bound where they lie");
        }
        Ok(())
    }

    fn node(&mut self, index: usize, node: &Node) -> Result<()> {
        let specs: Vec<Spec> = node.operands.iter().map(|&v| self.graph.spec(v).clone()).collect();
        let ranges = node.operands.iter().zip(&specs).map(|(&v, spec)| self.locate(v, spec.bytes()));
        let ranges = ranges.collect::<Result<Vec<Range>>>()?;
        let pieces = pieces(self.context, &node.op, &specs)?;
        if pieces.is_empty() {
            return self.dispatch(index, &node.op, &specs, ranges);
        }
        for piece in &pieces {
            let windows = ranges.iter().zip(&specs).zip(&piece.rows);
            let windows = windows.map(|((range, spec), &(first, count))| Range {
                memory: range.memory.clone(),
                offset: range.offset + first as u64 * spec.row_bytes(),
                bytes: count as u64 * spec.row_bytes(),
            });
            self.dispatch(index, &piece.op, &piece_specs(&specs, piece), windows.collect())?;
        }
        Ok(())
    }

    /// Where a value lies.
    fn locate(&mut self, value: Value, bytes: u64) -> Result<Range> {
        let (buffer, offset) = self.plan.locate(self.graph, self.arena, value, &self.context.caps.id)?;
        let memory = self.context.memory_of(buffer)?;
        memory.check_range(self.context, offset, bytes)?;
        if !self.held.iter().any(|m| Arc::ptr_eq(m, &memory)) {
            self.held.push(memory.clone());
        }
        Ok(Range { memory, offset, bytes })
    }

    fn dispatch(&mut self, node: usize, op: &Op, specs: &[Spec], mut ranges: Vec<Range>) -> Result<()> {
        let choice = choose(self.context, op, specs)?;
        let pipeline = self.context.pipelines.get(self.context, op, &choice)?;
        let mut back = Vec::new();
        let align = u64::from(self.context.limits.min_storage_buffer_offset_alignment);
        for (i, operand) in op.row().signature.operands.iter().enumerate() {
            if ranges[i].offset.is_multiple_of(align) {
                continue;
            }
            let scratch = Range { memory: self.scratch(i, ranges[i].bytes)?, offset: 0, bytes: ranges[i].bytes };
            let place = std::mem::replace(&mut ranges[i], scratch.clone());
            if operand.access.reads() {
                self.steps.push(Step::Copy { from: place.clone(), to: scratch.clone() });
            }
            if operand.access.writes() {
                back.push(Step::Copy { from: scratch, to: place });
            }
        }
        let operands = self.bind(op, &pipeline, &ranges)?;
        self.steps.push(Step::Dispatch(Dispatch {
            node,
            pipeline,
            operands,
            params: op.params().to_vec(),
            groups: choice.launch.groups,
            seconds: super::submits::predict(self.context.info.device_type, op.cost(specs)),
        }));
        self.steps.extend(back);
        Ok(())
    }

    /// A scratch buffer for operand `i`; dispatches run one after the other, so they share it.
    fn scratch(&mut self, i: usize, bytes: u64) -> Result<Arc<Memory>> {
        self.scratch.resize_with(self.scratch.len().max(i + 1), Vec::new);
        if let Some(memory) = self.scratch[i].iter().find(|m| m.bytes() >= bytes) {
            return Ok(memory.clone());
        }
        let name = format!("scratch of graph {}", self.graph.name());
        let memory = Arc::new(Memory::new(self.context, bytes.next_power_of_two(), &name)?);
        self.scratch[i].push(memory.clone());
        self.held.push(memory.clone());
        Ok(memory)
    }

    fn bind(&self, op: &Op, pipeline: &Pipeline, ranges: &[Range]) -> Result<wgpu::BindGroup> {
        let entries: Vec<_> = ranges.iter().enumerate().map(entry).collect();
        let descriptor =
            wgpu::BindGroupDescriptor { label: Some(op.row().name), layout: &pipeline.operands, entries: &entries };
        let (group, error) = self.context.scoped(|| self.context.device.create_bind_group(&descriptor));
        match error {
            None => Ok(group),
            Some(error) => Err(self.context.error(format!("{}: {}", op.row().name, message(&error)))),
        }
    }
}

fn entry((i, range): (usize, &Range)) -> wgpu::BindGroupEntry<'_> {
    wgpu::BindGroupEntry {
        binding: i as u32,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: range.memory.buffer(),
            offset: range.offset,
            size: wgpu::BufferSize::new(range.bytes),
        }),
    }
}
