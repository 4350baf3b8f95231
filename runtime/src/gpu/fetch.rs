//! Reading back through a ring of staging buffers.
//!
//! A read copies in queue order into a buffer that is mapped when the copy is done,
//! so programs submitted after it neither wait for it nor change what it returns.

use super::context::Context;
use super::memory::Counted;
use crate::device::Pending;
use crate::error::Result;
use crate::ledger::Kind;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use wgpu::{BufferAsyncError, BufferUsages, MapMode};

/// Staging buffers kept for reuse, and the largest of them.
const MOST_KEPT: usize = 8;
const LARGEST_KEPT: u64 = 16 << 20;

#[derive(Default)]
pub(super) struct Staging {
    free: Mutex<Vec<Counted>>,
}

impl Staging {
    fn take(&self, context: &Context, bytes: u64) -> Result<Counted> {
        let size = if bytes <= LARGEST_KEPT { bytes.next_power_of_two().max(256) } else { bytes };
        let kept = |free: &mut Vec<Counted>| {
            let i = free.iter().position(|b| b.size() == size)?;
            Some(free.swap_remove(i))
        };
        if let Some(buffer) = kept(&mut self.free.lock()) {
            return Ok(buffer);
        }
        let descriptor = wgpu::BufferDescriptor {
            label: Some("staging of a read"),
            size,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        Counted::new(context, Kind::Beside, &descriptor)
    }

    /// Drops the buffers that are kept; gives their number.
    pub(super) fn clear(&self) -> usize {
        std::mem::take(&mut *self.free.lock()).len()
    }

    fn give(&self, buffer: Counted) {
        let mut free = self.free.lock();
        if buffer.size() <= LARGEST_KEPT && free.len() < MOST_KEPT {
            free.push(buffer);
        }
    }
}

/// A read under way.
pub(super) struct Read {
    context: Arc<Context>,
    staging: Box<Counted>,
    bytes: u64,
    mapped: Receiver<std::result::Result<(), BufferAsyncError>>,
    index: wgpu::SubmissionIndex,
}

/// Starts reading a range of a buffer.
pub(super) fn start(context: &Arc<Context>, from: &wgpu::Buffer, offset: u64, bytes: u64) -> Result<Read> {
    let encoder = context.device.create_command_encoder(&Default::default());
    start_after(context, encoder, from, offset, bytes)
}

/// Starts reading a range of a buffer after an encoder's commands.
pub(super) fn start_after(
    context: &Arc<Context>,
    mut encoder: wgpu::CommandEncoder,
    from: &wgpu::Buffer,
    offset: u64,
    bytes: u64,
) -> Result<Read> {
    let staging = Box::new(context.staging.take(context, bytes)?);
    let ((mapped, index), error) = context.scoped(|| {
        encoder.copy_buffer_to_buffer(from, offset, &staging, 0, bytes);
        let (done, mapped) = channel();
        encoder.map_buffer_on_submit(&staging, MapMode::Read, 0..bytes, move |result| {
            // The reader may have been dropped, which is its right.
            let _ = done.send(result);
        });
        let index = context.submit(encoder);
        (mapped, index)
    });
    match error {
        Some(error) => Err(context.error(super::context::message(&error))),
        None => Ok(Read { context: context.clone(), staging, bytes, mapped, index }),
    }
}

impl Read {
    /// The bytes, if they are there already; gives the read back if they are not.
    pub(super) fn try_finish(self) -> std::result::Result<Result<Vec<u8>>, Read> {
        match self.mapped.try_recv() {
            Ok(result) => Ok(self.copy_out(result)),
            Err(std::sync::mpsc::TryRecvError::Empty) => Err(self),
            Err(_) => Ok(Err(self.context.error("the device dropped a read"))),
        }
    }

    fn copy_out(self, result: std::result::Result<(), BufferAsyncError>) -> Result<Vec<u8>> {
        result.map_err(|e| self.context.error(e.to_string()))?;
        let view = self.staging.get_mapped_range(0..self.bytes).map_err(|e| self.context.error(e.to_string()))?;
        let bytes = view.to_vec();
        drop(view);
        self.staging.unmap();
        self.context.staging.give(*self.staging);
        Ok(bytes)
    }
}

impl Pending for Read {
    fn wait(self: Box<Self>) -> Result<Vec<u8>> {
        self.context.wait(Some(self.index.clone()))?;
        // The callback may be running on another thread that polls.
        let result = self.mapped.recv_timeout(Duration::from_secs(10));
        let result = result.map_err(|_| self.context.error("the device did not finish a read"))?;
        self.copy_out(result)
    }
}
