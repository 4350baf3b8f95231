//! Host memory of the CPU backend: zeroed, in lines of 64 bytes so that vector loads are aligned; or memory that
//! is somebody else's, such as a mapped file, which kernels only read.

use crate::ledger::Held;
use crate::stream::HostMemory;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::Arc;

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u32; 16]);

/// A buffer.
pub(super) struct Memory {
    /// Its own lines; none where the memory is another's.
    lines: RwLock<Vec<Line>>,
    host: Option<Arc<dyn HostMemory>>,
    /// Counts its own lines.
    _held: Option<Held>,
}

/// A buffer that nobody writes for as long as this lives.
pub(super) struct Reading<'a> {
    lines: RwLockReadGuard<'a, Vec<Line>>,
    host: Option<&'a dyn HostMemory>,
}

impl Reading<'_> {
    /// All words.
    pub(super) fn words(&self) -> &[u32] {
        match self.host {
            // `Memory::adopt` has made sure that these are words.
            Some(host) => bytemuck::try_cast_slice(host.bytes()).unwrap_or_default(),
            None => bytemuck::cast_slice(&self.lines),
        }
    }
}

impl Memory {
    /// Zeroed memory of the bytes that are held for it, or `None` if the system has none left.
    pub(super) fn new(held: Held) -> Option<Self> {
        let count = usize::try_from(held.bytes().div_ceil(64)).ok()?;
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).ok()?;
        lines.resize(count, bytemuck::Zeroable::zeroed());
        Some(Memory { lines: RwLock::new(lines), host: None, _held: Some(held) })
    }

    /// Another's memory, read only, or `None` if it does not lie in whole lines. It does not count as used.
    pub(super) fn adopt(host: Arc<dyn HostMemory>) -> Option<Self> {
        let bytes = host.bytes();
        let whole = bytes.len().is_multiple_of(64) && bytes.as_ptr().addr().is_multiple_of(64);
        whole.then(|| Memory { lines: RwLock::default(), host: Some(host), _held: None })
    }

    /// Whether it is another's memory.
    pub(super) fn is_read_only(&self) -> bool {
        self.host.is_some()
    }

    pub(super) fn read(&self) -> Reading<'_> {
        Reading { lines: self.lines.read(), host: self.host.as_deref() }
    }

    /// Its own lines: none where the memory is another's.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Vec<Line>> {
        self.lines.write()
    }
}
