//! The device's primary context with its one stream, and what is counted with them: events and pinned
//! memory. Everything that lives in the context holds it, so it goes last.
#![allow(unsafe_code)]

use super::api::{Api, call};
use crate::driver::{Address, Fault, Outcome};
use cudarc::driver::sys;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// A retained primary context and a stream in it.
pub(super) struct Context {
    pub(super) api: &'static Api,
    pub(super) device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the driver's functions may be called by any thread and at once; a context and a stream are
// handles without a thread of their own. `enter` makes the context current before each use.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Of a device that the driver has given.
    pub(super) fn new(api: &'static Api, device: sys::CUdevice) -> Outcome<Arc<Context>> {
        let mut context = null_mut();
        // SAFETY: the handle is written through the pointer; the device is the driver's.
        unsafe { call!(api, cuDevicePrimaryCtxRetain(&raw mut context, device)) }?;
        // From here on the context is released by `drop`, with or without a stream.
        let mut this = Context { api, device, context, stream: null_mut() };
        this.enter()?;
        // Work of other libraries in the default stream must not wait for ours, nor ours for it.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; the handle is written through the pointer.
        unsafe { call!(api, cuStreamCreate(&raw mut this.stream, flags)) }?;
        Ok(Arc::new(this))
    }

    /// Makes the context current in this thread, as nearly all functions want it.
    pub(super) fn enter(&self) -> Outcome<()> {
        // SAFETY: the context is retained.
        unsafe { call!(self.api, cuCtxSetCurrent(self.context)) }
    }

    /// The stream, for calls that happen while `self` lives.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Waits for all that was submitted.
    pub(super) fn wait(&self) -> Outcome<()> {
        self.enter()?;
        // SAFETY: the stream is alive.
        unsafe { call!(self.api, cuStreamSynchronize(self.stream)) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.enter().is_ok() && !self.stream.is_null() {
            // SAFETY: the stream is alive and used no more; work in it still runs to its end.
            let _ = unsafe { call!(self.api, cuStreamDestroy_v2(self.stream)) };
        }
        // SAFETY: retained once by `new`. A thread in which it is still current sees an error if it
        // uses it, and `enter` replaces it.
        let _ = unsafe { call!(self.api, cuDevicePrimaryCtxRelease_v2(self.device)) };
    }
}

/// A point in the stream.
pub(super) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: an event is a handle that any thread may use; recording one that another thread waits for is
// defined (it waits for what was recorded when it began).
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that is only waited for, or, with `timing`, one that knows when it happened. The
    /// context is current.
    pub(super) fn new(context: &Arc<Context>, timing: bool) -> Outcome<Event> {
        let flags = match timing {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        let mut event = null_mut();
        // SAFETY: the context is current; the handle is written through the pointer.
        unsafe { call!(context.api, cuEventCreate(&raw mut event, flags as u32)) }?;
        Ok(Event { context: context.clone(), event })
    }

    /// Puts it behind all that was submitted. The context is current.
    pub(super) fn record(&self) -> Outcome<()> {
        self.record_in(self.context.stream())
    }

    /// Puts it behind all that was submitted to a stream of this context, which is current.
    pub(super) fn record_in(&self, stream: sys::CUstream) -> Outcome<()> {
        // SAFETY: event and stream are alive and of one context.
        unsafe { call!(self.context.api, cuEventRecord(self.event, stream)) }
    }

    /// Lets what is submitted to a stream of this context from now on wait until it has happened; nothing waits
    /// for an event that was never recorded. The context is current.
    pub(super) fn hold(&self, stream: sys::CUstream) -> Outcome<()> {
        // SAFETY: event and stream are alive and of one context.
        unsafe { call!(self.context.api, cuStreamWaitEvent(stream, self.event, 0)) }
    }

    /// Waits until all that was submitted before it has happened. The context is current.
    pub(super) fn wait(&self) -> Outcome<()> {
        // SAFETY: the event is alive.
        unsafe { call!(self.context.api, cuEventSynchronize(self.event)) }
    }

    /// Milliseconds from this event to a later one; both have happened and know when.
    pub(super) fn until(&self, later: &Event) -> Outcome<f32> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive; the number is written through the pointer.
        unsafe { call!(self.context.api, cuEventElapsedTime(&raw mut milliseconds, self.event, later.event)) }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: the event is alive and used no more; the driver keeps what is pending.
            let _ = unsafe { call!(self.context.api, cuEventDestroy_v2(self.event)) };
        }
    }
}

/// Host memory that the device copies from and to by itself.
pub(super) struct Pinned {
    context: Arc<Context>,
    bytes: NonNull<u8>,
    length: usize,
}

// SAFETY: it owns its memory, which belongs to no thread.
unsafe impl Send for Pinned {}
// SAFETY: as above; all access is by the methods' borrows or by raw pointer.
unsafe impl Sync for Pinned {}

/// What pinned memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Written in order by the host and read by the device: write-combined memory, which does not go
    /// through the host's caches. Reading it on the host is very slow.
    Up,
    /// Written by the device and read by the host: cached memory.
    Down,
}

impl Pinned {
    /// Memory of `length` bytes, above 0. The context is current.
    pub(super) fn new(context: &Arc<Context>, length: usize, direction: Direction) -> Outcome<Pinned> {
        let flags = match direction {
            Direction::Up => sys::CU_MEMHOSTALLOC_WRITECOMBINED,
            Direction::Down => 0,
        };
        let mut bytes = null_mut();
        // SAFETY: the context is current; the address is written through the pointer.
        let outcome = unsafe { call!(context.api, cuMemHostAlloc(&raw mut bytes, length, flags)) };
        let refused = || Fault::Failed(format!("the system does not pin {length} bytes of memory"));
        match outcome {
            Ok(()) => {}
            // It is the host that has too little; the device's memory is another matter.
            Err(Fault::OutOfMemory) => return Err(refused()),
            Err(fault) => return Err(fault),
        }
        let bytes = NonNull::new(bytes.cast::<u8>()).ok_or_else(refused)?;
        if direction == Direction::Down {
            // SAFETY: the memory was just allocated with this length. Written once, so that reading it
            // is defined whatever the device has done.
            unsafe { bytes.write_bytes(0, length) };
        }
        Ok(Pinned { context: context.clone(), bytes, length })
    }

    /// Bytes.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Writes at `at` and starts copying that part to the device. The context is current.
    ///
    /// # Safety
    /// The device does not read that part any more, and `to` is memory of this context with room.
    pub(super) unsafe fn send(&mut self, at: usize, bytes: &[u8], to: Address) -> Outcome<()> {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.length) {
            return Err(Fault::Failed("a copy beyond the staging memory".into()));
        }
        let (api, stream) = (self.context.api, self.context.stream());
        // SAFETY: the part lies inside, nobody reads it, and host memory that was just allocated by the
        // driver is no part of `bytes`. The caller answers for `to`; the memory outlives the copy,
        // because `Nvidia` waits for the stream before it drops its staging memory.
        unsafe {
            let part = self.bytes.add(at);
            part.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
            call!(api, cuMemcpyHtoDAsync_v2(to, part.as_ptr().cast(), bytes.len(), stream))
        }
    }

    /// Writes at `at`.
    ///
    /// # Safety
    /// The device does not read that part.
    pub(super) unsafe fn write(&mut self, at: usize, bytes: &[u8]) -> Outcome<()> {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.length) {
            return Err(Fault::Failed("a write beyond the pinned memory".into()));
        }
        // SAFETY: the part lies inside, nobody reads it, and host memory that the driver allocated is no part of
        // `bytes`.
        unsafe { self.bytes.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Ok(())
    }

    /// Starts copying a part, not empty, to the device in a stream. The context is current.
    ///
    /// # Safety
    /// The stream is alive and of this context, `to` is memory of it with room, and until the copy has happened
    /// the part is not written and both memories stay.
    pub(super) unsafe fn copy(&self, part: std::ops::Range<usize>, to: Address, stream: sys::CUstream) -> Outcome<()> {
        if part.start > part.end || part.end > self.length {
            return Err(Fault::Failed("a copy beyond the pinned memory".into()));
        }
        // SAFETY: the part lies inside, and the caller answers for the rest.
        unsafe {
            let from = self.bytes.add(part.start).as_ptr().cast();
            call!(self.context.api, cuMemcpyHtoDAsync_v2(to, from, part.len(), stream))
        }
    }

    /// Starts copying bytes from the device to the front. The context is current.
    ///
    /// # Safety
    /// `from` is memory of this context with as many bytes; until the copy has happened nobody reads
    /// the bytes, and the memory stays.
    pub(super) unsafe fn receive(&mut self, from: Address, bytes: usize) -> Outcome<()> {
        if bytes > self.length {
            return Err(Fault::Failed("a copy beyond the staging memory".into()));
        }
        let (api, stream) = (self.context.api, self.context.stream());
        // SAFETY: it fits, and the caller answers for the rest.
        unsafe { call!(api, cuMemcpyDtoHAsync_v2(self.bytes.as_ptr().cast(), from, bytes, stream)) }
    }

    /// The first bytes.
    ///
    /// # Safety
    /// Of memory for [`Direction::Down`], and no copy to it is under way.
    pub(super) unsafe fn front(&self, bytes: usize) -> &[u8] {
        // SAFETY: as many bytes are there at most, all were written, and the caller rules out a copy.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), bytes.min(self.length)) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: from `cuMemHostAlloc`; its users see to it that no copy is under way.
            let _ = unsafe { call!(self.context.api, cuMemFreeHost(self.bytes.as_ptr().cast())) };
        }
    }
}
