//! Host memory of the CPU backend: zeroed, in lines of 64 bytes so that vector loads are aligned.

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u32; 16]);

/// A buffer.
pub(super) struct Memory {
    lines: RwLock<Vec<Line>>,
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Memory {
    /// Zeroed memory, or `None` if the system has none left.
    pub(super) fn new(bytes: u64, used: Arc<AtomicU64>) -> Option<Self> {
        let count = usize::try_from(bytes.div_ceil(64)).ok()?;
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).ok()?;
        lines.resize(count, bytemuck::Zeroable::zeroed());
        used.fetch_add(bytes, Ordering::Relaxed);
        Some(Memory { lines: RwLock::new(lines), bytes, used })
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Vec<Line>> {
        self.lines.read()
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Vec<Line>> {
        self.lines.write()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
