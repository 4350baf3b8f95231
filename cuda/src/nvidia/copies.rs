//! Copies to and from the device, through pinned memory.
#![allow(unsafe_code)]

use super::context::{Context, Direction, Event, Pinned};
use super::ring::Ring;
use crate::driver::{Address, Download, Fault, Outcome};
use parking_lot::Mutex;
use std::sync::Arc;

/// Staging memory for uploads.
const RING: usize = 16 << 20;

/// Bytes copied to the device at once: small enough that the next are written meanwhile.
const CHUNK: usize = 4 << 20;

/// Downloads above this many bytes go in parts and are waited for at once.
const LARGE: usize = 16 << 20;

/// The smallest buffer of a download.
const SMALLEST: usize = 4 << 10;

/// Bytes of buffers that are kept for the next downloads.
const KEPT: usize = 64 << 20;

/// Uploads through a ring of write-combined memory. A part is written again only after the copy from
/// it is done, so the caller's bytes are free at once and the host rarely waits.
pub(super) struct Uploads {
    context: Arc<Context>,
    staging: Mutex<Option<Staging>>,
}

struct Staging {
    memory: Pinned,
    ring: Ring<Event>,
    /// Events that were waited for, to be used again.
    spare: Vec<Event>,
}

impl Uploads {
    pub(super) fn new(context: &Arc<Context>) -> Uploads {
        Uploads { context: context.clone(), staging: Mutex::new(None) }
    }

    /// Copies bytes to the device. The context is current.
    ///
    /// # Safety
    /// `to` is memory of this context with room for the bytes.
    pub(super) unsafe fn send(&self, to: Address, bytes: &[u8]) -> Outcome<()> {
        let mut staging = self.staging.lock();
        let staging = match &mut *staging {
            Some(staging) => staging,
            empty => empty.insert(Staging {
                memory: Pinned::new(&self.context, RING, Direction::Up)?,
                ring: Ring::new(RING),
                spare: Vec::new(),
            }),
        };
        let mut to = to;
        for chunk in bytes.chunks(CHUNK) {
            // SAFETY: the caller answers for `to`.
            unsafe { staging.send(&self.context, to, chunk) }?;
            to += chunk.len() as u64;
        }
        Ok(())
    }
}

impl Staging {
    /// # Safety
    /// As for [`Uploads::send`].
    unsafe fn send(&mut self, context: &Arc<Context>, to: Address, chunk: &[u8]) -> Outcome<()> {
        let Staging { memory, ring, spare } = self;
        let at = ring.reserve(chunk.len(), |event: Event| {
            event.wait()?;
            spare.push(event);
            Ok::<(), Fault>(())
        })?;
        let event = spare.pop().map_or_else(|| Event::new(context, false), Ok)?;
        // SAFETY: the ring has waited for all copies from this part; the caller answers for `to`.
        let sent = unsafe { memory.send(at, chunk, to) }.and_then(|()| event.record());
        if let Err(fault) = sent {
            // Whether the copy has begun is unknown; after this nothing reads the part.
            let _ = context.wait();
            return Err(fault);
        }
        ring.keep(at, chunk.len(), event);
        Ok(())
    }
}

/// Downloads into cached pinned memory, whose buffers are used again.
pub(super) struct Downloads {
    context: Arc<Context>,
    spare: Mutex<Vec<(Pinned, Event)>>,
}

impl Downloads {
    pub(super) fn new(context: &Arc<Context>) -> Arc<Downloads> {
        Arc::new(Downloads { context: context.clone(), spare: Mutex::default() })
    }

    /// Starts copying bytes from the device. The context is current.
    ///
    /// # Safety
    /// `from` is memory of this context with as many bytes.
    pub(super) unsafe fn receive(self: &Arc<Self>, from: Address, bytes: usize) -> Outcome<Box<dyn Download>> {
        if bytes > LARGE {
            // SAFETY: the caller answers for `from`.
            return Ok(Box::new(Received(unsafe { self.receive_in_parts(from, bytes) }?)));
        }
        // SAFETY: the caller answers for `from`.
        Ok(Box::new(unsafe { self.start(from, bytes) }?))
    }

    /// # Safety
    /// As for [`Downloads::receive`].
    unsafe fn start(self: &Arc<Self>, from: Address, bytes: usize) -> Outcome<Receiving> {
        let (mut buffer, event) = self.buffer(bytes)?;
        if bytes > 0 {
            // SAFETY: the caller answers for `from`; the buffer and its event go into `Receiving`, which
            // lets nobody read before the event. An earlier copy that nobody waited for precedes this
            // one in the stream. `Nvidia` waits for the stream before buffers are freed.
            let sent = unsafe { buffer.receive(from, bytes) }.and_then(|()| event.record());
            if let Err(fault) = sent {
                // Whether the copy has begun is unknown; after this nothing writes to the buffer.
                let _ = self.context.wait();
                return Err(fault);
            }
        }
        Ok(Receiving { home: self.clone(), parts: Some((buffer, event)), bytes })
    }

    /// Two parts under way at a time, so that one is copied out while the next arrives.
    ///
    /// # Safety
    /// As for [`Downloads::receive`].
    unsafe fn receive_in_parts(self: &Arc<Self>, from: Address, bytes: usize) -> Outcome<Vec<u8>> {
        let mut result = Vec::with_capacity(bytes);
        let mut under_way: Option<Receiving> = None;
        for begin in (0..bytes).step_by(CHUNK) {
            let length = CHUNK.min(bytes - begin);
            // SAFETY: a part of what the caller answers for.
            let next = unsafe { self.start(from + begin as u64, length) }?;
            if let Some(previous) = under_way.replace(next) {
                previous.finish(|bytes| result.extend_from_slice(bytes))?;
            }
        }
        if let Some(last) = under_way {
            last.finish(|bytes| result.extend_from_slice(bytes))?;
        }
        Ok(result)
    }

    /// The smallest spare buffer that is large enough, or a new one.
    fn buffer(&self, bytes: usize) -> Outcome<(Pinned, Event)> {
        let mut spare = self.spare.lock();
        let fitting = (0..spare.len()).filter(|&i| spare[i].0.length() >= bytes);
        if let Some(best) = fitting.min_by_key(|&i| spare[i].0.length()) {
            return Ok(spare.swap_remove(best));
        }
        drop(spare);
        let size = bytes.next_power_of_two().max(SMALLEST);
        let event = Event::new(&self.context, false)?;
        Ok((Pinned::new(&self.context, size, Direction::Down)?, event))
    }

    /// Takes a buffer back. Where there are enough it is freed, which a copy to it must not outlive.
    fn put(&self, buffer: Pinned, event: Event) {
        let mut spare = self.spare.lock();
        let kept: usize = spare.iter().map(|(buffer, _)| buffer.length()).sum();
        if kept + buffer.length() <= KEPT {
            spare.push((buffer, event));
            return;
        }
        drop(spare);
        let _ = self.context.enter().and_then(|()| event.wait());
    }
}

/// A download under way.
struct Receiving {
    home: Arc<Downloads>,
    /// The buffer, and the event behind the copy to it; there until dropped.
    parts: Option<(Pinned, Event)>,
    bytes: usize,
}

impl Receiving {
    /// Waits and shows the bytes.
    fn finish<T>(self, show: impl FnOnce(&[u8]) -> T) -> Outcome<T> {
        let Some((buffer, event)) = &self.parts else { return Err(Fault::Failed("a download twice".into())) };
        if self.bytes > 0 {
            self.home.context.enter()?;
            event.wait()?;
        }
        // SAFETY: the copy to the buffer is done, and no other begins before the buffer is given back.
        Ok(show(unsafe { buffer.front(self.bytes) }))
    }
}

impl Download for Receiving {
    fn wait(self: Box<Self>) -> Outcome<Vec<u8>> {
        self.finish(<[u8]>::to_vec)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Some((buffer, event)) = self.parts.take() {
            self.home.put(buffer, event);
        }
    }
}

/// A download that is done.
struct Received(Vec<u8>);

impl Download for Received {
    fn wait(self: Box<Self>) -> Outcome<Vec<u8>> {
        Ok(self.0)
    }
}
