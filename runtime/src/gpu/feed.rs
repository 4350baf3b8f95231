//! Weights that come from host memory: a thread fills mapped staging buffers while the GPU computes, and the copies
//! from them to their slots stand between the programs in the one queue, which keeps them in order.

use super::context::{Context, message};
use super::memory::{Counted, Memory};
use crate::error::{Error, Result};
use crate::ledger::Kind;
use crate::stream::{Feed, Figures, Load};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wgpu::{BufferUsages, MapMode};

/// Staging buffers: one is copied from while the other is filled.
pub(super) const STAGING: usize = 2;

/// How often the thread asks whether a buffer is mapped; waiting for it would keep others from submitting.
const PATIENCE: Duration = Duration::from_micros(100);

/// A staging buffer, and the news of when it is mapped.
struct Staging {
    buffer: Counted,
    mapped: Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
}

/// A staging buffer with the bytes of a group, no longer mapped, and the time that filling it took.
type Filled = (usize, Counted, std::result::Result<Duration, String>);

pub(super) struct Staged {
    context: Arc<Context>,
    load: Arc<Load>,
    slots: Vec<Arc<Memory>>,
    state: Mutex<State>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    wanted: Option<Sender<(usize, Staging)>>,
    filled: Receiver<Filled>,
    spare: Vec<Staging>,
    stages: Vec<Stage>,
    figures: Figures,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Outside,
    UnderWay,
    There,
}

impl Staged {
    pub(super) fn new(context: &Arc<Context>, load: Load) -> Result<Staged> {
        if let Some(fault) = load.fault() {
            return Err(context.error(fault));
        }
        let slot = |group: &crate::stream::Group| match &group.slot {
            Some(slot) if slot.first() == 0 => context.memory_of(slot),
            _ => Err(context.error("streamed weights need a slot on this device")),
        };
        let slots = load.groups.iter().map(slot).collect::<Result<_>>()?;
        let largest = load.groups.iter().map(|group| group.bytes.len()).max().unwrap_or(0).max(4) as u64;
        let spare = (0..STAGING).map(|_| staging(context, largest)).collect::<Result<Vec<_>>>()?;
        let stages = vec![Stage::Outside; load.groups.len()];
        let load = Arc::new(load);
        let (wanted, jobs) = channel();
        let (done, filled) = channel();
        let ended = Arc::<AtomicBool>::default();
        let filler = Filler { context: context.clone(), load: load.clone(), ended: ended.clone() };
        let thread = std::thread::Builder::new().name("weights ahead".into()).spawn(move || filler.run(&jobs, &done));
        let thread = thread.map_err(|e| context.error(format!("no thread brings weights in: {e}")))?;
        let state = State { wanted: Some(wanted), filled, spare, stages, figures: Figures::default() };
        let (context, state) = (context.clone(), Mutex::new(state));
        Ok(Staged { context, load, slots, state, ended, thread: Some(thread) })
    }

    fn stage<'a>(&self, state: &'a mut State, group: usize) -> Result<&'a mut Stage> {
        let groups = self.load.groups.len();
        state.stages.get_mut(group).ok_or_else(|| self.context.error(format!("group {group} of {groups}")))
    }

    /// Lets the thread fill a spare buffer; without one the group begins later.
    fn begin(&self, state: &mut State, group: usize) -> Result<()> {
        if *self.stage(state, group)? != Stage::Outside {
            return Ok(());
        }
        let Some(staging) = state.spare.pop() else { return Ok(()) };
        if state.wanted.as_ref().is_none_or(|wanted| wanted.send((group, staging)).is_err()) {
            return Err(self.gone());
        }
        *self.stage(state, group)? = Stage::UnderWay;
        Ok(())
    }

    fn gone(&self) -> Error {
        self.context.error("the thread that brings weights in has ended")
    }

    /// Copies a filled buffer to the slot of its group, and has it mapped again after that.
    fn copy(&self, state: &mut State, group: usize, buffer: Counted) -> Result<()> {
        let bytes = self.load.groups[group].bytes.len() as u64;
        let (done, mapped) = channel();
        let ((), error) = self.context.scoped(|| {
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            if bytes > 0 {
                encoder.copy_buffer_to_buffer(&buffer, 0, self.slots[group].buffer(), 0, bytes);
            }
            encoder.map_buffer_on_submit(&buffer, MapMode::Write, .., move |result| {
                let _ = done.send(result);
            });
            self.context.submit(encoder);
        });
        if let Some(error) = error {
            return Err(self.context.error(message(&error)));
        }
        state.spare.push(Staging { buffer, mapped });
        state.figures.bytes += bytes;
        Ok(())
    }

    /// Has a buffer whose bytes are no longer wanted mapped again.
    fn give_back(&self, state: &mut State, buffer: Counted) {
        let (done, mapped) = channel();
        buffer.map_async(MapMode::Write, .., move |result| {
            let _ = done.send(result);
        });
        state.spare.push(Staging { buffer, mapped });
    }
}

/// A new buffer, which is mapped from the beginning.
fn staging(context: &Context, bytes: u64) -> Result<Staging> {
    let descriptor = wgpu::BufferDescriptor {
        label: Some("staging of streamed layers"),
        size: bytes.next_multiple_of(8),
        usage: BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    };
    let buffer = Counted::new(context, Kind::Planned, &descriptor)?;
    let (done, mapped) = channel();
    let _ = done.send(Ok(()));
    Ok(Staging { buffer, mapped })
}

/// What the thread has.
struct Filler {
    context: Arc<Context>,
    load: Arc<Load>,
    ended: Arc<AtomicBool>,
}

impl Filler {
    fn run(&self, jobs: &Receiver<(usize, Staging)>, done: &Sender<Filled>) {
        for (group, staging) in jobs {
            let took = self.fill(group, &staging);
            if done.send((group, staging.buffer, took)).is_err() {
                return;
            }
        }
    }

    fn fill(&self, group: usize, staging: &Staging) -> std::result::Result<Duration, String> {
        let range = self.load.groups[group].bytes.clone();
        // From the disk, if it is there, before the buffer is waited for.
        let begin = Instant::now();
        self.load.memory.fetch(range.clone());
        let mut took = begin.elapsed();
        self.wait(staging)?;
        let begin = Instant::now();
        if !range.is_empty() {
            let bytes = self.load.memory.bytes().get(range.clone()).ok_or("a group outside its memory")?;
            let view = staging.buffer.get_mapped_range_mut(0..bytes.len() as u64);
            view.map_err(|e| e.to_string())?.copy_from_slice(bytes);
        }
        staging.buffer.unmap();
        self.load.memory.release(range);
        took += begin.elapsed();
        Ok(took)
    }

    /// Waits until a buffer is mapped, which is when the copy from it is done.
    fn wait(&self, staging: &Staging) -> std::result::Result<(), String> {
        loop {
            match staging.mapped.try_recv() {
                Ok(result) => return result.map_err(|e| e.to_string()),
                Err(TryRecvError::Disconnected) => return Err("the device dropped a staging buffer".into()),
                Err(TryRecvError::Empty) if self.ended.load(Ordering::Relaxed) => return Err("it is closed".into()),
                Err(TryRecvError::Empty) => {}
            }
            // What went wrong is raised by whoever submits.
            let _ = self.context.device.poll(wgpu::PollType::Poll);
            std::thread::sleep(PATIENCE);
        }
    }
}

impl Feed for Staged {
    fn ahead(&self, group: usize) -> Result<()> {
        self.begin(&mut self.state.lock(), group)
    }

    fn arrive(&self, group: usize) -> Result<()> {
        let state = &mut *self.state.lock();
        let begin = Instant::now();
        while *self.stage(state, group)? != Stage::There {
            self.begin(state, group)?;
            if !state.stages.contains(&Stage::UnderWay) {
                // Nothing would ever come: faults have taken all staging buffers.
                return Err(self.gone());
            }
            let (arrived, buffer, took) = state.filled.recv().map_err(|_| self.gone())?;
            match took {
                Ok(took) => state.figures.copying += took,
                Err(why) => {
                    *self.stage(state, arrived)? = Stage::Outside;
                    return Err(self.context.error(why));
                }
            }
            if arrived == group {
                state.figures.waiting += begin.elapsed();
                self.copy(state, group, buffer)?;
                *self.stage(state, group)? = Stage::There;
            } else {
                // Of a run that ended early.
                self.give_back(state, buffer);
                *self.stage(state, arrived)? = Stage::Outside;
            }
        }
        self.context.raise()
    }

    fn leave(&self, group: usize) -> Result<()> {
        let state = &mut *self.state.lock();
        let stage = self.stage(state, group)?;
        if *stage == Stage::There {
            *stage = Stage::Outside;
        }
        Ok(())
    }

    fn figures(&self) -> Figures {
        self.state.lock().figures
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.state.get_mut().wanted = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
