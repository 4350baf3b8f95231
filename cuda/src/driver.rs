//! What the backend asks of a CUDA driver.
//!
//! Two types implement it: the real driver ([`crate::nvidia`]) and, in tests, the emulator that runs
//! the very same kernel sources on the CPU. Everything above this trait (variants, launch geometry,
//! memory, programs) is therefore tested on machines without a card. All calls go to one stream:
//! they take effect in order, and only those that say so wait.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// An address on the device.
pub type Address = u64;

/// What a driver reports of its device.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Number among the cards that the driver shows.
    pub ordinal: usize,
    /// Name of the card.
    pub name: String,
    /// Driver version and how kernels are had, for people.
    pub driver: String,
    /// Compute capability, e.g. `(12, 0)`.
    pub compute: (u32, u32),
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Not a card: the test emulator.
    pub emulated: bool,
}

/// Why a driver call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not enough memory for an allocation.
    OutOfMemory,
    /// The device or its context is unusable from now on.
    Lost(String),
    /// Anything else, in the driver's words.
    Failed(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::OutOfMemory => f.write_str("out of memory"),
            Fault::Lost(message) | Fault::Failed(message) => f.write_str(message),
        }
    }
}

/// Result of a driver call.
pub type Outcome<T> = std::result::Result<T, Fault>;

/// A loaded kernel: an index that only its driver understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel(pub usize);

/// Memory that a kernel gets the address of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// First byte.
    pub address: Address,
    /// Bytes that the kernel may touch.
    pub bytes: u64,
    /// The kernel may read what was there before.
    pub reads: bool,
    /// The kernel may write.
    pub writes: bool,
}

/// One launch, complete: the parameter struct by value, then one address for each operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block, in x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Bytes of the parameter struct.
    pub params: Vec<u8>,
    /// Operands, and scratch memory last if there is any.
    pub operands: Vec<Operand>,
}

/// A download under way.
pub trait Download: Send {
    /// Waits for it and gives the bytes.
    fn wait(self: Box<Self>) -> Outcome<Vec<u8>>;
}

/// Launches that were recorded once and are submitted as one.
pub trait Replay: Send + Sync {
    /// Puts them into the stream. Never waits.
    fn submit(&self) -> Outcome<()>;
}

/// How long copies took, and for how long of it kernels stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CopyTimes {
    /// One copy after the other.
    pub copying: Duration,
    /// What kernels waited for.
    pub waiting: Duration,
}

/// Copies from pinned host memory to *slots* of device memory, in a stream of their own beside the kernels' stream.
pub trait Copies: Send + Sync {
    /// Writes bytes to a place of the host memory that no copy reads but the last one into this slot, which is
    /// waited for.
    fn fill(&self, slot: usize, at: usize, bytes: &[u8]) -> Outcome<()>;
    /// Starts copying a part of the host memory to the device, after what the slot was [left](Copies::leave)
    /// behind. Never waits.
    fn start(&self, slot: usize, from: Range<usize>, to: Address) -> Outcome<()>;
    /// Lets kernels that are submitted from now on wait for the last copy into a slot.
    fn arrive(&self, slot: usize) -> Outcome<()>;
    /// Lets the next copy into a slot wait for the kernels that were submitted so far.
    fn leave(&self, slot: usize) -> Outcome<()>;
    /// Waits for the copies that arrived, and says what they took.
    fn times(&self) -> Outcome<CopyTimes>;
}

/// A CUDA driver with one device and one stream for all but [`Copies`].
pub trait Driver: Send + Sync {
    /// The device.
    fn describe(&self) -> &Description;
    /// Free and total bytes of the device's memory, if the driver says.
    fn memory(&self) -> Outcome<Option<(u64, u64)>>;
    /// Bytes of the device's memory that no program holds, if the driver says. Unlike in [`Driver::memory`],
    /// what a pool holds unused is held.
    fn untaken(&self) -> Outcome<Option<u64>> {
        Ok(None)
    }
    /// Gives what a pool holds unused back to the system.
    fn trim(&self) -> Outcome<()> {
        Ok(())
    }
    /// Memory at a multiple of 256 bytes; content undefined.
    fn alloc(&self, bytes: u64) -> Outcome<Address>;
    /// Gives memory back after what was submitted before.
    fn free(&self, address: Address);
    /// Writes zeros.
    fn clear(&self, to: Address, bytes: u64) -> Outcome<()>;
    /// Copies bytes to the device; they may change as soon as this returns.
    fn upload(&self, to: Address, bytes: &[u8]) -> Outcome<()>;
    /// Starts copying bytes from the device.
    fn download(&self, from: Address, bytes: u64) -> Outcome<Box<dyn Download>>;
    /// Loads an entry point of `cuda/kernels/<file>.cu`.
    fn kernel(&self, file: &str, entry: &str) -> Outcome<Kernel>;
    /// Launches. Never waits.
    fn launch(&self, launch: &Launch) -> Outcome<()>;
    /// Records launches for replay.
    fn record(&self, launches: &[Launch]) -> Outcome<Box<dyn Replay>>;
    /// Runs launches one by one and waits; the time of each on the device.
    fn time(&self, launches: &[Launch]) -> Outcome<Vec<Duration>>;
    /// Pins so many bytes of host memory, above 0, for copies to so many slots.
    fn copies(&self, bytes: usize, slots: usize) -> Outcome<Box<dyn Copies>>;
    /// Waits for all that was submitted, [`Copies`] apart.
    fn wait(&self) -> Outcome<()>;
}
