//! Device memory, counted, and reads of it.

use crate::backend::Context;
use crate::driver::{Address, Download, Driver, Fault};
use std::sync::Arc;
use tritter_runtime::device::Pending;
use tritter_runtime::ledger::Held;
use tritter_runtime::{Error, Result};

/// Memory of one device; given back when dropped, after what was submitted before.
pub(crate) struct Memory {
    driver: Arc<dyn Driver>,
    address: Address,
    bytes: u64,
    held: Held,
}

impl Memory {
    /// Memory with undefined content.
    pub(crate) fn new(context: &Context, bytes: u64, name: &str) -> Result<Memory> {
        let held = context.hold(size(bytes), name)?;
        let driver = context.driver.clone();
        let address = driver.alloc(size(bytes)).map_err(|fault| refused(context, bytes, name, &fault))?;
        Ok(Memory { driver, address, bytes, held })
    }

    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// Bytes asked for.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes there are.
    pub(crate) fn size(&self) -> u64 {
        size(self.bytes)
    }

    pub(crate) fn belongs_to(&self, context: &Context) -> bool {
        self.held.is_of(&context.ledger)
    }

    pub(crate) fn check_range(&self, context: &Context, offset: u64, bytes: u64) -> Result<()> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if inside && offset.is_multiple_of(4) && bytes.is_multiple_of(4) {
            return Ok(());
        }
        Err(context.refuse(format!("{bytes} bytes at {offset} are not words inside a buffer of {} bytes", self.bytes)))
    }
}

/// No driver gives an empty allocation.
fn size(bytes: u64) -> u64 {
    bytes.max(16)
}

fn refused(context: &Context, bytes: u64, name: &str, fault: &Fault) -> Error {
    let Fault::OutOfMemory = fault else { return context.error(fault) };
    match context.driver.memory() {
        Ok(Some((free, _))) if free < bytes => Error::DoesNotFit {
            what: format!("`{name}`"),
            device: format!("{} ({})", context.caps.id, context.caps.name),
            needed: bytes,
            available: free,
            advice: "use a smaller batch, context or model, or close what else uses the card".into(),
        },
        _ => context.refuse(format!("out of memory: {bytes} bytes for `{name}`")),
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}

/// A read under way; holds its source.
pub(crate) struct Fetch {
    pub(crate) context: Arc<Context>,
    pub(crate) download: Box<dyn Download>,
    pub(crate) _memory: Arc<Memory>,
}

impl Pending for Fetch {
    fn wait(self: Box<Self>) -> Result<Vec<u8>> {
        let Fetch { context, download, .. } = *self;
        download.wait().map_err(|fault| context.error(&fault))
    }
}
