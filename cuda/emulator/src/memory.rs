//! Device memory: allocations of the host, each with shadow cells once a checked kernel sees it.
#![allow(unsafe_code)]

use crate::machine::Cell;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use tritter_cuda::driver::{Address, Fault, Outcome};

/// What fresh memory holds: NaN as f32, NaN pairs as f16.
const POISON: u32 = 0x7FFF_FFFE;
/// As `cuMemAlloc` aligns.
const ALIGN: usize = 256;

/// A block of host memory.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block owns its bytes; it is only a pointer with its layout.
unsafe impl Send for Block {}

impl Block {
    fn new(bytes: usize, align: usize, zeroed: bool) -> Option<Block> {
        let layout = Layout::from_size_align(bytes.max(1), align).ok()?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { if zeroed { alloc_zeroed(layout) } else { alloc(layout) } };
        Some(Block { start: NonNull::new(start)?, layout })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `start` came from the allocator with this layout and is given back once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

struct Allocation {
    memory: Block,
    bytes: u64,
    shadow: Option<Block>,
}

/// All allocations of a device.
#[derive(Default)]
pub(crate) struct Memory {
    allocations: BTreeMap<Address, Allocation>,
}

impl Memory {
    pub(crate) fn alloc(&mut self, bytes: u64) -> Outcome<Address> {
        let size = usize::try_from(bytes).map_err(|_| Fault::OutOfMemory)?;
        let memory = Block::new(size.next_multiple_of(4), ALIGN, false).ok_or(Fault::OutOfMemory)?;
        for word in 0..memory.layout.size() / 4 {
            // SAFETY: the block has this many whole words and is aligned to 256.
            unsafe { memory.start.cast::<u32>().add(word).write(POISON) };
        }
        let address = memory.start.as_ptr() as Address;
        self.allocations.insert(address, Allocation { memory, bytes, shadow: None });
        Ok(address)
    }

    pub(crate) fn free(&mut self, address: Address) {
        self.allocations.remove(&address);
    }

    /// Runs `f` on bytes of one allocation.
    pub(crate) fn bytes<R>(&mut self, address: Address, bytes: u64, f: impl FnOnce(&mut [u8]) -> R) -> Outcome<R> {
        let (start, allocation) = self.find(address, bytes)?;
        // SAFETY: `find` has made sure that these bytes lie in the allocation, which was written
        // when it was made; `self` is borrowed until `f` returns, and kernels run only under the
        // same lock.
        let slice = unsafe {
            let first = allocation.memory.start.as_ptr().add((address - start) as usize);
            std::slice::from_raw_parts_mut(first, bytes as usize)
        };
        Ok(f(slice))
    }

    /// The cells of the words from `address` on, and of their bytes (four for each word).
    pub(crate) fn shadow(&mut self, address: Address, bytes: u64) -> Outcome<(*mut Cell, *mut Cell)> {
        let (start, allocation) = self.find(address, bytes)?;
        let words = allocation.bytes.div_ceil(4) as usize;
        if allocation.shadow.is_none() {
            let size = 5 * words * size_of::<Cell>();
            // Zero pages cost nothing until a kernel touches their words.
            allocation.shadow = Some(Block::new(size, align_of::<Cell>(), true).ok_or(Fault::OutOfMemory)?);
        }
        let Some(shadow) = &allocation.shadow else { return Err(Fault::OutOfMemory) };
        let first = ((address - start) / 4) as usize;
        let cells = shadow.start.cast::<Cell>();
        // SAFETY: the block has `words` cells for words and four times as many for bytes, and `first`
        // is at most `words`.
        Ok(unsafe { (cells.add(first).as_ptr(), cells.add(words + 4 * first).as_ptr()) })
    }

    fn find(&mut self, address: Address, bytes: u64) -> Outcome<(Address, &mut Allocation)> {
        let refuse = || Fault::Failed(format!("{bytes} bytes at 0x{address:x} are in no allocation"));
        let (&start, allocation) = self.allocations.range_mut(..=address).next_back().ok_or_else(refuse)?;
        let end = (address - start).checked_add(bytes).ok_or_else(refuse)?;
        if end <= allocation.bytes { Ok((start, allocation)) } else { Err(refuse()) }
    }
}
