//! A compiled program on the CPU: a list of kernel calls with resolved places.

use super::Cpu;
use super::memory::{Line, Memory, Reading};
use super::parallel;
use crate::bench::median;
use crate::device::{Arena, Backend, Program, Support, Ticket, Timings};
use crate::dtype::Spec;
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::op::{Args, Op};
use crate::plan::Plan;
use parking_lot::RwLockWriteGuard;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One operand of a call: which of the call's buffers, which words.
struct Place {
    writes: bool,
    buffer: usize,
    words: Range<usize>,
}

/// One kernel call. No buffer is both read and written: the planner and the recorder see to it.
struct Call {
    op: Op,
    specs: Vec<Spec>,
    places: Vec<Place>,
    read: Vec<Arc<Memory>>,
    written: Vec<Arc<Memory>>,
}

pub(super) struct CpuProgram {
    calls: Vec<Call>,
}

impl CpuProgram {
    pub(super) fn new(cpu: &Cpu, graph: &Graph, plan: &Plan, arena: &Arena) -> Result<Self> {
        let calls = graph.nodes().iter().map(|node| {
            let specs: Vec<Spec> = node.operands.iter().map(|&v| graph.spec(v).clone()).collect();
            if let Support::Missing(reason) = cpu.supports(&node.op, &specs) {
                return Err(Error::unsupported(&cpu.caps, &node.op, &specs, reason));
            }
            let mut call = Call { op: node.op, specs, places: Vec::new(), read: Vec::new(), written: Vec::new() };
            for (operand, &value) in node.op.row().signature.operands.iter().zip(&node.operands) {
                let (memory, first) = locate(cpu, graph, plan, arena, value)?;
                let writes = operand.access.writes();
                if writes && memory.is_read_only() {
                    let message = format!("graph `{}` writes to memory that is only read", graph.name());
                    return Err(Error::Device { device: cpu.caps.id.clone(), message });
                }
                let list = if writes { &mut call.written } else { &mut call.read };
                let known = list.iter().position(|m| Arc::ptr_eq(m, &memory));
                let buffer = known.unwrap_or_else(|| {
                    list.push(memory);
                    list.len() - 1
                });
                let words = first..first + (graph.spec(value).bytes() / 4) as usize;
                call.places.push(Place { writes, buffer, words });
            }
            Ok(call)
        });
        Ok(CpuProgram { calls: calls.collect::<Result<_>>()? })
    }
}

/// Memory of a value and its first word there.
fn locate(cpu: &Cpu, graph: &Graph, plan: &Plan, arena: &Arena, value: Value) -> Result<(Arc<Memory>, usize)> {
    let (buffer, offset) = plan.locate(graph, arena, value, &cpu.caps.id)?;
    Ok((cpu.memory_of(buffer)?, (offset / 4) as usize))
}

impl Call {
    fn run(&self) {
        let read: Vec<Reading<'_>> = self.read.iter().map(|m| m.read()).collect();
        let mut written: Vec<RwLockWriteGuard<'_, Vec<Line>>> = self.written.iter().map(|m| m.write()).collect();
        let reads: Vec<&[u32]> =
            self.places.iter().map(|p| if p.writes { &[] } else { &read[p.buffer].words()[p.words.clone()] }).collect();
        let mut writes: Vec<&mut [u32]> = self.places.iter().map(|_| Default::default()).collect();
        for (buffer, guard) in written.iter_mut().enumerate() {
            let mut parts: Vec<usize> =
                (0..self.places.len()).filter(|&i| self.places[i].writes && self.places[i].buffer == buffer).collect();
            parts.sort_by_key(|&i| self.places[i].words.start);
            let mut rest: &mut [u32] = bytemuck::cast_slice_mut(guard);
            let mut at = 0;
            for i in parts {
                let words = &self.places[i].words;
                let (part, tail) = rest.split_at_mut(words.start - at).1.split_at_mut(words.len());
                (writes[i], rest, at) = (part, tail, words.end);
            }
        }
        self.op.cpu(Args::new(&self.specs, reads, writes));
    }
}

impl Program for CpuProgram {
    fn submit(&self) -> Result<Ticket> {
        parallel::inside(|| self.calls.iter().for_each(Call::run));
        Ok(Ticket(0))
    }

    fn time(&self, repeats: u32) -> Result<Timings> {
        let mut nodes = vec![Vec::new(); self.calls.len()];
        let mut total = Vec::new();
        parallel::inside(|| {
            for _ in 0..repeats {
                let start = Instant::now();
                for (call, times) in self.calls.iter().zip(&mut nodes) {
                    let start = Instant::now();
                    call.run();
                    times.push(start.elapsed());
                }
                total.push(start.elapsed());
            }
        });
        Ok(Timings { total, nodes: nodes.into_iter().map(|times| median(times, Duration::cmp)).collect() })
    }

    fn dispatches(&self) -> usize {
        self.calls.len()
    }
}
