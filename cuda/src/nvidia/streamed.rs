//! Copies on a stream of their own, which events order against the kernels' stream.
//!
//! A copy into a slot waits for the kernels that read it before (`free`), kernels wait for the copy (`arrived`);
//! neither makes the host wait. Four more events, of two points in each stream, say how long a copy took and how
//! long kernels stood still for it.
#![allow(unsafe_code)]

use super::api::call;
use super::context::{Context, Direction, Event, Pinned};
use crate::driver::{Address, Copies, CopyTimes, Fault, Outcome};
use cudarc::driver::sys;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

/// Copies whose times were not read yet; beyond, the oldest is waited for, which is long done.
const MOST: usize = 256;

pub(super) struct Streamed {
    context: Arc<Context>,
    stream: sys::CUstream,
    state: Mutex<State>,
}

// SAFETY: a stream is a handle that any thread may use; all else is behind the lock.
unsafe impl Send for Streamed {}
// SAFETY: as above.
unsafe impl Sync for Streamed {}

struct State {
    memory: Pinned,
    slots: Vec<Slot>,
    timed: VecDeque<[Event; 4]>,
    spare: Vec<Event>,
    times: CopyTimes,
}

struct Slot {
    /// Behind the kernels that read it last.
    free: Event,
    /// Behind the last copy into it.
    arrived: Event,
    /// Begin and end of a copy that no kernel waits for yet.
    under_way: Option<[Event; 2]>,
}

impl Streamed {
    /// With so many bytes of pinned memory, above 0. The context is current.
    pub(super) fn new(context: &Arc<Context>, bytes: usize, slots: usize) -> Outcome<Streamed> {
        let memory = Pinned::new(context, bytes, Direction::Up)?;
        let slot = |_| {
            let slot =
                Slot { free: Event::new(context, false)?, arrived: Event::new(context, false)?, under_way: None };
            // Memory of the slot is there for who waits for this: it is given in the order of the kernels' stream.
            slot.free.record()?;
            Ok(slot)
        };
        let slots = (0..slots).map(slot).collect::<Outcome<Vec<Slot>>>()?;
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; the handle is written through the pointer.
        unsafe { call!(context.api, cuStreamCreate(&raw mut stream, flags)) }?;
        let state = State { memory, slots, timed: VecDeque::new(), spare: Vec::new(), times: CopyTimes::default() };
        Ok(Streamed { context: context.clone(), stream, state: Mutex::new(state) })
    }
}

impl State {
    fn slot(&mut self, slot: usize) -> Outcome<&mut Slot> {
        let slots = self.slots.len();
        self.slots.get_mut(slot).ok_or_else(|| Fault::Failed(format!("slot {slot} of {slots}")))
    }

    fn event(&mut self, context: &Arc<Context>) -> Outcome<Event> {
        self.spare.pop().map_or_else(|| Event::new(context, true), Ok)
    }

    /// Waits for the oldest copy and takes its times in.
    fn read(&mut self) -> Outcome<()> {
        let Some(events) = self.timed.pop_front() else { return Ok(()) };
        let [begin, end, before, after] = &events;
        after.wait()?;
        let milliseconds = |time: f32| Duration::try_from_secs_f64(f64::from(time) / 1e3).unwrap_or_default();
        self.times.copying += milliseconds(begin.until(end)?);
        self.times.waiting += milliseconds(before.until(after)?);
        self.spare.extend(events);
        Ok(())
    }
}

impl Copies for Streamed {
    fn fill(&self, slot: usize, at: usize, bytes: &[u8]) -> Outcome<()> {
        self.context.enter()?;
        let state = &mut *self.state.lock();
        state.slot(slot)?.arrived.wait()?;
        // SAFETY: by the contract of `Copies` only the last copy into this slot may have read the place, and it is done.
        unsafe { state.memory.write(at, bytes) }
    }

    fn start(&self, slot: usize, from: Range<usize>, to: Address) -> Outcome<()> {
        self.context.enter()?;
        let state = &mut *self.state.lock();
        let (begin, end) = (state.event(&self.context)?, state.event(&self.context)?);
        state.slot(slot)?.free.hold(self.stream)?;
        begin.record_in(self.stream)?;
        if !from.is_empty() {
            // SAFETY: the stream is alive; `to` is the backend's, with room, and its memory as that of the host
            // outlives the copy, for which `drop` waits.
            unsafe { state.memory.copy(from, to, self.stream) }?;
        }
        end.record_in(self.stream)?;
        let slot = state.slot(slot)?;
        slot.arrived.record_in(self.stream)?;
        // Of a copy that nobody waited for no time is counted.
        if let Some(events) = slot.under_way.replace([begin, end]) {
            state.spare.extend(events);
        }
        Ok(())
    }

    fn arrive(&self, slot: usize) -> Outcome<()> {
        self.context.enter()?;
        let state = &mut *self.state.lock();
        let (before, after) = (state.event(&self.context)?, state.event(&self.context)?);
        before.record()?;
        let slot = state.slot(slot)?;
        slot.arrived.hold(self.context.stream())?;
        after.record()?;
        if let Some([begin, end]) = slot.under_way.take() {
            state.timed.push_back([begin, end, before, after]);
        }
        if state.timed.len() > MOST { state.read() } else { Ok(()) }
    }

    fn leave(&self, slot: usize) -> Outcome<()> {
        self.context.enter()?;
        self.state.lock().slot(slot)?.free.record()
    }

    fn times(&self) -> Outcome<CopyTimes> {
        self.context.enter()?;
        let state = &mut *self.state.lock();
        while !state.timed.is_empty() {
            state.read()?;
        }
        Ok(state.times)
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: the stream is alive; after this no copy reads the pinned memory, and the stream is used no more.
            let _ = unsafe { call!(self.context.api, cuStreamSynchronize(self.stream)) };
            // SAFETY: as above.
            let _ = unsafe { call!(self.context.api, cuStreamDestroy_v2(self.stream)) };
        }
    }
}
