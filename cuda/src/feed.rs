//! Weights that come from pinned host memory by a copy stream, while kernels compute.
//!
//! All of them are pinned where they take at most half of the memory that the system has left. Else each slot has a
//! pinned buffer of its own, which is filled from the file before its copy begins.

use crate::backend::Context;
use crate::driver::{Copies, Fault};
use crate::memory::Memory;
use parking_lot::Mutex;
use std::sync::Arc;
use tritter_runtime::Result;
use tritter_runtime::stream::{Feed, Figures, Load};

/// Slots that groups take in turn: one is read while the other is written.
pub(crate) const SLOTS: usize = 2;

pub(crate) struct CudaFeed {
    context: Arc<Context>,
    /// Goes before the slots: it waits for the copies to them.
    copies: Box<dyn Copies>,
    slots: Vec<Arc<Memory>>,
    /// By group its slot, and its first byte in pinned memory.
    places: Vec<(usize, usize)>,
    load: Load,
    /// Pinned memory holds no more than a group for each slot.
    staged: bool,
    state: Mutex<State>,
}

struct State {
    stages: Vec<Stage>,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Outside,
    UnderWay,
    There,
}

impl CudaFeed {
    pub(crate) fn new(context: &Arc<Context>, load: Load) -> Result<CudaFeed> {
        if let Some(fault) = load.fault() {
            return Err(context.refuse(fault));
        }
        let mut slots: Vec<Arc<Memory>> = Vec::new();
        let (mut places, mut total) = (Vec::new(), 0);
        for group in &load.groups {
            let slot = group.slot.as_ref().filter(|slot| slot.first() == 0);
            let memory = context.memory_of(slot.ok_or_else(|| context.refuse("streamed weights need a slot"))?)?;
            let known = slots.iter().position(|slot| Arc::ptr_eq(slot, &memory));
            let slot = known.unwrap_or_else(|| {
                slots.push(memory);
                slots.len() - 1
            });
            places.push((slot, total));
            total += group.bytes.len().next_multiple_of(64);
        }
        let largest = load.groups.iter().map(|group| group.bytes.len()).max().unwrap_or(0).next_multiple_of(64);
        let left = tritter_runtime::cpu::open().caps().memory.unwrap_or(0);
        let open = |bytes: usize| context.driver.copies(bytes.max(64), slots.len());
        let (copies, staged) = match if total as u64 <= left / 2 { open(total) } else { Err(Fault::OutOfMemory) } {
            Ok(copies) => (copies, false),
            Err(Fault::Lost(why)) => return Err(context.error(&Fault::Lost(why))),
            Err(why) => {
                tracing::debug!("{total} bytes of streamed weights are not pinned as a whole: {why}");
                places.iter_mut().for_each(|(slot, at)| *at = *slot * largest);
                (open(largest * slots.len()).map_err(|fault| context.error(&fault))?, true)
            }
        };
        let state = Mutex::new(State { stages: vec![Stage::Outside; load.groups.len()], bytes: 0 });
        let feed = CudaFeed { context: context.clone(), copies, slots, places, load, staged, state };
        if !staged {
            (0..feed.places.len()).try_for_each(|group| feed.fill(group))?;
        }
        Ok(feed)
    }

    /// Writes a group to its pinned memory.
    fn fill(&self, group: usize) -> Result<()> {
        let (range, (slot, at)) = (self.load.groups[group].bytes.clone(), self.places[group]);
        let bytes = self.load.memory.bytes().get(range.clone()).unwrap_or_default();
        self.copies.fill(slot, at, bytes).map_err(|fault| self.context.error(&fault))?;
        self.load.memory.release(range);
        Ok(())
    }

    fn known(&self, group: usize) -> Result<()> {
        let groups = self.places.len();
        if group < groups { Ok(()) } else { Err(self.context.refuse(format!("group {group} of {groups}"))) }
    }

    fn begin(&self, state: &mut State, group: usize) -> Result<()> {
        let (slot, at) = self.places[group];
        let other = (0..self.places.len())
            .find(|&i| i != group && self.places[i].0 == slot && state.stages[i] != Stage::Outside);
        match other {
            _ if state.stages[group] != Stage::Outside => return Ok(()),
            // It is still read; this one begins when it is to arrive.
            Some(other) if state.stages[other] == Stage::There => return Ok(()),
            // Of a run that ended early: the next copy comes after its own.
            Some(other) => state.stages[other] = Stage::Outside,
            None => {}
        }
        if self.staged {
            self.fill(group)?;
        }
        let length = self.load.groups[group].bytes.len();
        let started = self.copies.start(slot, at..at + length, self.slots[slot].address());
        started.map_err(|fault| self.context.error(&fault))?;
        state.stages[group] = Stage::UnderWay;
        state.bytes += length as u64;
        Ok(())
    }
}

impl Feed for CudaFeed {
    fn ahead(&self, group: usize) -> Result<()> {
        self.known(group)?;
        self.begin(&mut self.state.lock(), group)
    }

    fn arrive(&self, group: usize) -> Result<()> {
        self.known(group)?;
        let state = &mut *self.state.lock();
        let slot = self.places[group].0;
        for (stage, (other, _)) in state.stages.iter_mut().zip(&self.places) {
            // A group that did not leave belongs to a run that ended early.
            if *other == slot && *stage == Stage::There {
                *stage = Stage::Outside;
                self.copies.leave(slot).map_err(|fault| self.context.error(&fault))?;
            }
        }
        self.begin(state, group)?;
        self.copies.arrive(slot).map_err(|fault| self.context.error(&fault))?;
        state.stages[group] = Stage::There;
        Ok(())
    }

    fn leave(&self, group: usize) -> Result<()> {
        self.known(group)?;
        let state = &mut *self.state.lock();
        if state.stages[group] == Stage::There {
            self.copies.leave(self.places[group].0).map_err(|fault| self.context.error(&fault))?;
            state.stages[group] = Stage::Outside;
        }
        Ok(())
    }

    fn figures(&self) -> Figures {
        let bytes = self.state.lock().bytes;
        // After a fault the run has ended with it; figures are no second place to say so.
        let times = self.copies.times().unwrap_or_default();
        Figures { bytes, copying: times.copying, waiting: times.waiting }
    }
}
