//! A compiled program: launches with resolved addresses, recorded once and replayed.

use crate::backend::Context;
use crate::driver::{Address, Launch, Operand, Replay};
use crate::memory::Memory;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tritter_runtime::bench::median;
use tritter_runtime::device::{Arena, Program, Ticket, Timings};
use tritter_runtime::dtype::Spec;
use tritter_runtime::op::{CudaChoice, Op};
use tritter_runtime::{Graph, Plan, Result};

/// The launches of one node of the graph.
struct Node {
    op: Op,
    specs: Vec<Spec>,
    launches: Vec<Launch>,
}

pub(crate) struct CudaProgram {
    context: Arc<Context>,
    nodes: Vec<Node>,
    /// All launches as one, unless each is to be waited for.
    replay: Option<Box<dyn Replay>>,
    /// What the launches point to.
    _held: Vec<Arc<Memory>>,
}

impl CudaProgram {
    pub(crate) fn new(context: &Arc<Context>, graph: &Graph, plan: &Plan, arena: &Arena) -> Result<Self> {
        let mut lowering = Lowering { context, graph, plan, arena, held: Vec::new() };
        let chosen = graph.nodes().iter().map(|node| lowering.choose(node)).collect::<Result<Vec<_>>>()?;
        let scratch = chosen.iter().map(|c| c.choice.launch.scratch).max().unwrap_or(0);
        let scratch = if scratch > 0 { Some(context.workspace(scratch)?) } else { None };
        let address = scratch.as_ref().map_or(0, |memory| memory.address());
        let nodes = chosen.into_iter().map(|c| c.launches(context, address)).collect::<Result<Vec<_>>>()?;
        let mut held = lowering.held;
        held.extend(scratch);
        let mut program = CudaProgram { context: context.clone(), nodes, replay: None, _held: held };
        if !context.options.serial && !program.nodes.is_empty() {
            let replay = context.driver.record(&program.launches());
            program.replay = Some(replay.map_err(|fault| context.error(&fault))?);
        }
        Ok(program)
    }

    fn launches(&self) -> Vec<Launch> {
        self.nodes.iter().flat_map(|node| node.launches.iter().cloned()).collect()
    }

    /// Launches one by one and waits for each, so that an error names its op.
    fn run_serially(&self) -> Result<()> {
        let driver = &self.context.driver;
        let _alone = self.context.order.lock();
        for node in &self.nodes {
            for launch in &node.launches {
                let outcome = driver.launch(launch).and_then(|()| driver.wait());
                outcome.map_err(|fault| self.context.error_in(&node.op, &node.specs, &fault))?;
            }
        }
        Ok(())
    }

    /// Median time of each node on the device.
    fn node_times(&self, repeats: u32) -> Result<Vec<Duration>> {
        let launches = self.launches();
        let mut times = vec![Vec::new(); self.nodes.len()];
        let _alone = self.context.order.lock();
        for _ in 0..repeats {
            let each = self.context.driver.time(&launches).map_err(|fault| self.context.error(&fault))?;
            let mut each = each.into_iter();
            for (node, times) in self.nodes.iter().zip(&mut times) {
                times.push(each.by_ref().take(node.launches.len()).sum::<Duration>());
            }
        }
        Ok(times.into_iter().map(|times| median(times, Duration::cmp)).collect())
    }
}

impl Program for CudaProgram {
    fn submit(&self) -> Result<Ticket> {
        match &self.replay {
            Some(replay) => {
                let _whole = self.context.order.lock();
                replay.submit().map_err(|fault| self.context.error(&fault))?
            }
            None => self.run_serially()?,
        }
        Ok(self.context.ticket())
    }

    fn time(&self, repeats: u32) -> Result<Timings> {
        let wait = || self.context.driver.wait().map_err(|fault| self.context.error(&fault));
        let mut total = Vec::new();
        for _ in 0..repeats {
            wait()?;
            let start = Instant::now();
            self.submit()?;
            wait()?;
            total.push(start.elapsed());
        }
        Ok(Timings { total, nodes: self.node_times(repeats)? })
    }

    fn dispatches(&self) -> usize {
        self.nodes.iter().map(|node| node.launches.len()).sum()
    }
}

/// What lowering shares, and the memory that the launches need.
struct Lowering<'a> {
    context: &'a Context,
    graph: &'a Graph,
    plan: &'a Plan,
    arena: &'a Arena,
    held: Vec<Arc<Memory>>,
}

/// A node with its variant and where its operands lie.
struct Chosen {
    op: Op,
    specs: Vec<Spec>,
    places: Vec<Operand>,
    choice: CudaChoice,
}

impl Lowering<'_> {
    fn choose(&mut self, node: &tritter_runtime::graph::Node) -> Result<Chosen> {
        let specs: Vec<Spec> = node.operands.iter().map(|&v| self.graph.spec(v).clone()).collect();
        let mut places = Vec::with_capacity(specs.len());
        for ((info, &value), spec) in node.op.row().signature.operands.iter().zip(&node.operands).zip(&specs) {
            let (buffer, offset) = self.plan.locate(self.graph, self.arena, value, &self.context.caps.id)?;
            let memory = self.context.memory_of(buffer)?;
            memory.check_range(self.context, offset, spec.bytes())?;
            let address = memory.address() + offset;
            places.push(Operand {
                address,
                bytes: spec.bytes(),
                reads: info.access.reads(),
                writes: info.access.writes(),
            });
            if !self.held.iter().any(|m| Arc::ptr_eq(m, &memory)) {
                self.held.push(memory);
            }
        }
        let align = places.iter().map(|p| 1 << p.address.trailing_zeros().min(8)).min().unwrap_or(1);
        let choice = self.context.choose(&node.op, &specs, align)?;
        Ok(Chosen { op: node.op, specs, places, choice })
    }
}

impl Chosen {
    /// Its launches, with scratch memory at `scratch`.
    fn launches(self, context: &Context, scratch: Address) -> Result<Node> {
        let Chosen { op, specs, mut places, choice } = self;
        if choice.launch.scratch > 0 {
            places.push(Operand { address: scratch, bytes: choice.launch.scratch, reads: false, writes: true });
        }
        let mut launches = Vec::new();
        for kernel in &choice.launch.kernels {
            let loaded = context.kernel(op.row().name, kernel.entry);
            launches.push(Launch {
                kernel: loaded.map_err(|fault| context.error_in(&op, &specs, &fault))?,
                grid: kernel.grid,
                block: kernel.block,
                shared: kernel.shared,
                params: op.params().to_vec(),
                operands: places.clone(),
            });
            // What one kernel wrote, the next may read.
            places.iter_mut().filter(|p| p.writes).for_each(|p| p.reads = true);
        }
        Ok(Node { op, specs, launches })
    }
}
