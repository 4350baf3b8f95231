//! Storage buffers, counted.

use super::context::Context;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wgpu::BufferUsages;

/// A storage buffer; wgpu zeroes it before its first use.
pub(super) struct Memory {
    buffer: wgpu::Buffer,
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Memory {
    pub(super) fn new(context: &Context, bytes: u64, name: &str) -> Result<Memory> {
        let limit = context.limits.max_buffer_size;
        let too_large = |available, advice: &str| Error::DoesNotFit {
            what: format!("`{name}`"),
            device: context.caps.id.clone(),
            needed: bytes,
            available,
            advice: advice.into(),
        };
        if bytes > limit {
            return Err(too_large(
                limit,
                "that is the largest buffer of this device; use a smaller shape or another device",
            ));
        }
        let descriptor = wgpu::BufferDescriptor {
            label: Some(name),
            size: bytes.max(4).next_multiple_of(4),
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let (buffer, error) = context.scoped(|| context.device.create_buffer(&descriptor));
        match error {
            None => {}
            Some(wgpu::Error::OutOfMemory { .. }) => {
                let used = context.used.load(Ordering::Relaxed);
                return Err(context.error(format!(
                    "out of memory: {} for `{name}` beside {} in use; use a smaller batch, context or model",
                    crate::error::bytes(bytes),
                    crate::error::bytes(used)
                )));
            }
            Some(error) => return Err(context.error(super::context::message(&error))),
        }
        context.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(Memory { buffer, bytes, used: context.used.clone() })
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn belongs_to(&self, context: &Context) -> bool {
        Arc::ptr_eq(&self.used, &context.used)
    }

    pub(super) fn check_range(&self, context: &Context, offset: u64, bytes: u64) -> Result<()> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if inside && offset.is_multiple_of(4) && bytes.is_multiple_of(4) {
            return Ok(());
        }
        Err(context.error(format!("{bytes} bytes at {offset} are not words inside a buffer of {} bytes", self.bytes)))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
