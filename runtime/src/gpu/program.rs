//! A compiled program: encoded and submitted anew at every run.

use super::context::Context;
use super::lower::{Lowering, Step};
use super::memory::{Counted, Memory};
use super::pipeline::UNIFORM_BYTES;
use super::submits::{cut, overlong};
use super::timing::{Clock, Reading, medians};
use crate::device::{Arena, Program, Ticket, Timings};
use crate::error::Result;
use crate::graph::Graph;
use crate::ledger::Kind;
use crate::plan::Plan;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

pub(super) struct GpuProgram {
    context: Arc<Context>,
    steps: Vec<Step>,
    nodes: usize,
    dispatches: usize,
    /// Parameters of all dispatches as one uniform buffer, where there are no immediates.
    params: Option<Uniform>,
    submits: Mutex<Submits>,
    _held: Vec<Arc<Memory>>,
}

struct Uniform {
    group: wgpu::BindGroup,
    stride: u32,
    _buffer: Counted,
}

/// How the program is cut, and whether the cut has proved itself.
struct Submits {
    budget: f64,
    ranges: Vec<Range<usize>>,
    watch: Watch,
}

/// The first run is timed on the device, and again after every change of the budget.
enum Watch {
    Wanted,
    Running(Reading),
    Done,
}

/// What a run is timed for.
#[derive(Clone, Copy, PartialEq)]
enum Label {
    Submit,
    Node,
}

impl GpuProgram {
    pub(super) fn new(context: &Arc<Context>, graph: &Graph, plan: &Plan, arena: &Arena) -> Result<Self> {
        let mut lowering = Lowering::new(context, graph, plan, arena);
        lowering.run()?;
        let (steps, held) = (lowering.steps, lowering.held);
        context.pipelines.save();
        let params = if context.immediates { None } else { Some(uniform(context, &steps)?) };
        let budget = context.submit_budget().as_secs_f64();
        let watch = if context.caps.timestamps { Watch::Wanted } else { Watch::Done };
        let submits = Mutex::new(Submits { budget, ranges: cut(&steps, budget), watch });
        let dispatches = steps.iter().filter(|s| matches!(s, Step::Dispatch(_))).count();
        let nodes = graph.nodes().len();
        Ok(GpuProgram { context: context.clone(), steps, nodes, dispatches, params, submits, _held: held })
    }

    /// Encodes a range of steps. With a clock for nodes every dispatch is a pass of its own.
    fn encode(&self, range: Range<usize>, mut clock: Option<(&mut Clock, Label, usize)>) -> wgpu::CommandEncoder {
        let mut encoder = self.context.device.create_command_encoder(&Default::default());
        let mut at = range.start;
        while at < range.end {
            if let Step::Copy { from, to } = &self.steps[at] {
                let (source, target) = (from.memory.buffer(), to.memory.buffer());
                encoder.copy_buffer_to_buffer(source, from.offset, target, to.offset, from.bytes);
                at += 1;
                continue;
            }
            let (timestamp_writes, single) = match (&mut clock, &self.steps[at]) {
                (Some((clock, Label::Node, _)), Step::Dispatch(d)) => (clock.pass(d.node), true),
                (Some((clock, _, submit)), _) => (clock.pass(*submit), false),
                (None, _) => (None, false),
            };
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
            at = self.encode_pass(&mut pass, at, if single { at + 1 } else { range.end });
        }
        encoder
    }

    /// Encodes dispatches up to the next copy, and returns the step after them.
    fn encode_pass(&self, pass: &mut wgpu::ComputePass<'_>, first: usize, end: usize) -> usize {
        let mut at = first;
        while let Some(Step::Dispatch(dispatch)) = self.steps[..end].get(at) {
            pass.set_pipeline(&dispatch.pipeline.pipeline);
            pass.set_bind_group(0, &dispatch.operands, &[]);
            match &self.params {
                Some(uniform) => pass.set_bind_group(1, &uniform.group, &[uniform.stride * at as u32]),
                None if dispatch.params.is_empty() => {}
                None => pass.set_immediates(0, &dispatch.params),
            }
            let [x, y, z] = dispatch.groups;
            pass.dispatch_workgroups(x, y, z);
            at += 1;
        }
        at
    }

    /// Submits all ranges; a clock counts passes to submits or to nodes.
    fn run(&self, ranges: &[Range<usize>], mut clock: Option<(&mut Clock, Label)>) {
        for (i, range) in ranges.iter().enumerate() {
            let clock = clock.as_mut().map(|(clock, label)| (&mut **clock, *label, i));
            self.context.submit(self.encode(range.clone(), clock));
        }
    }

    /// Passes that a run has at most: one for each dispatch.
    fn clock(&self) -> Clock {
        Clock::new(&self.context, self.dispatches)
    }

    fn timed_run(&self, ranges: &[Range<usize>], label: Label) -> Result<Reading> {
        let mut clock = self.clock();
        self.run(ranges, Some((&mut clock, label)));
        clock.stop(&self.context)
    }
}

impl Submits {
    /// Takes in what the watch has seen: one submit of more than twice the budget halves it.
    fn learn(&mut self, program: &GpuProgram) -> Result<()> {
        let reading = match std::mem::replace(&mut self.watch, Watch::Done) {
            Watch::Running(reading) => reading,
            other => {
                self.watch = other;
                return Ok(());
            }
        };
        let times = match reading.try_wait(self.ranges.len()) {
            Ok(times) => times?,
            Err(reading) => {
                self.watch = Watch::Running(reading);
                return Ok(());
            }
        };
        let allowed = 2.0 * program.context.submit_budget().as_secs_f64();
        if overlong(&self.ranges, &times, allowed) {
            self.budget /= 2.0;
            self.ranges = cut(&program.steps, self.budget);
            self.watch = Watch::Wanted;
            let (count, budget) = (self.ranges.len(), self.budget);
            tracing::debug!("a submit took more than {allowed} s: now {count} submits of {budget} s predicted work");
        }
        Ok(())
    }
}

impl Program for GpuProgram {
    fn submit(&self) -> Result<Ticket> {
        self.context.raise()?;
        let mut submits = self.submits.lock();
        submits.learn(self)?;
        if matches!(submits.watch, Watch::Wanted) && self.dispatches > 0 {
            submits.watch = Watch::Running(self.timed_run(&submits.ranges, Label::Submit)?);
        } else {
            self.run(&submits.ranges, None);
        }
        self.context.raise()?;
        Ok(self.context.ticket())
    }

    /// Where there are timestamps, runs twice as often: times of nodes need a pass for each
    /// dispatch, which the totals are to be free of.
    fn time(&self, repeats: u32) -> Result<Timings> {
        let mut timings = Timings::default();
        for _ in 0..repeats {
            self.context.wait(None)?;
            let start = Instant::now();
            self.submit()?;
            self.context.wait(None)?;
            timings.total.push(start.elapsed());
        }
        if self.context.caps.timestamps && self.dispatches > 0 {
            let ranges = self.submits.lock().ranges.clone();
            let runs = (0..repeats).map(|_| self.timed_run(&ranges, Label::Node)?.wait(self.nodes));
            timings.nodes = medians(&runs.collect::<Result<Vec<_>>>()?);
        }
        Ok(timings)
    }

    fn dispatches(&self) -> usize {
        self.dispatches
    }
}

/// Parameters of step `i` at `i · stride`.
fn uniform(context: &Context, steps: &[Step]) -> Result<Uniform> {
    let align = u64::from(context.limits.min_uniform_buffer_offset_alignment);
    let stride = UNIFORM_BYTES.next_multiple_of(align.max(1));
    let mut bytes = vec![0; stride as usize * steps.len().max(1)];
    for (step, place) in steps.iter().zip(bytes.chunks_exact_mut(stride as usize)) {
        if let Step::Dispatch(dispatch) = step {
            let Some(place) = place.get_mut(..dispatch.params.len()) else {
                return Err(context.error("an op has more than 64 bytes of parameters"));
            };
            place.copy_from_slice(&dispatch.params);
        }
    }
    let descriptor = wgpu::BufferDescriptor {
        label: Some("params"),
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    };
    let buffer = Counted::new(context, Kind::Beside, &descriptor)?;
    let create = || {
        context.queue.write_buffer(&buffer, 0, &bytes);
        context.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("params"),
            layout: &context.pipelines.params,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &buffer,
                    offset: 0,
                    size: wgpu::BufferSize::new(UNIFORM_BYTES),
                }),
            }],
        })
    };
    let (group, error) = context.scoped(create);
    match error {
        None => Ok(Uniform { group, stride: stride as u32, _buffer: buffer }),
        Some(error) => Err(context.error(super::context::message(&error))),
    }
}
