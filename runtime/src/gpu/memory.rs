//! Buffers of the device, each counted in its ledger for as long as it lives.

use super::context::Context;
use crate::error::{Error, Result};
use crate::ledger::{Held, Kind};
use std::ops::Deref;
use wgpu::{BufferDescriptor, BufferUsages};

/// A buffer that is counted. All buffers of this backend are.
pub(super) struct Counted {
    buffer: wgpu::Buffer,
    held: Held,
}

impl Deref for Counted {
    type Target = wgpu::Buffer;

    fn deref(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}

impl Counted {
    /// Creates a buffer, if the budget and the device have room for it.
    pub(super) fn new(context: &Context, kind: Kind, descriptor: &BufferDescriptor<'_>) -> Result<Counted> {
        let name = descriptor.label.unwrap_or("a buffer");
        let held = context.hold(kind, descriptor.size, name)?;
        let (buffer, error) = context.scoped(|| context.device.create_buffer(descriptor));
        match error {
            None => Ok(Counted { buffer, held }),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(context.error(format!(
                "out of memory: {} for `{name}` beside {} in use; use a smaller batch, context or model",
                crate::error::bytes(descriptor.size),
                crate::error::bytes(context.ledger.used().saturating_sub(held.bytes()))
            ))),
            Some(error) => Err(context.error(super::context::message(&error))),
        }
    }
}

/// A storage buffer; wgpu zeroes it before its first use.
pub(super) struct Memory {
    buffer: Counted,
    bytes: u64,
}

impl Memory {
    pub(super) fn new(context: &Context, bytes: u64, name: &str) -> Result<Memory> {
        let limit = context.limits.max_buffer_size;
        if bytes > limit {
            return Err(Error::DoesNotFit {
                what: format!("`{name}`"),
                device: context.caps.id.clone(),
                needed: bytes,
                available: limit,
                advice: "that is the largest buffer of this device; use a smaller shape or another device".into(),
            });
        }
        let descriptor = BufferDescriptor {
            label: Some(name),
            size: bytes.max(4).next_multiple_of(4),
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        Ok(Memory { buffer: Counted::new(context, Kind::Planned, &descriptor)?, bytes })
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn belongs_to(&self, context: &Context) -> bool {
        self.buffer.held.is_of(&context.ledger)
    }

    pub(super) fn check_range(&self, context: &Context, offset: u64, bytes: u64) -> Result<()> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if inside && offset.is_multiple_of(4) && bytes.is_multiple_of(4) {
            return Ok(());
        }
        Err(context.error(format!("{bytes} bytes at {offset} are not words inside a buffer of {} bytes", self.bytes)))
    }
}
