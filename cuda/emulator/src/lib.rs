//! Runs tritter's CUDA kernels on the CPU, for tests on machines without a card.
//!
//! The very same `.cu` files that NVRTC compiles for a card are compiled here by the system's C++
//! compiler behind one header (`cpp/emulated.cuh`) and executed: each thread of a block is a fiber,
//! blocks run one after another, barriers and warp operations are meeting points. [`Emulator`]
//! implements [`tritter_cuda::driver::Driver`], so that everything above the driver (choice of
//! variants, launch geometry, memory, programs) is under test as well.
//!
//! # What a checked emulator reports, with kernel, block, thread and source line
//!
//! - loads and stores outside the launch's operands, by as little as a byte; writes to an operand
//!   that the launch may only read; reads of an output or of scratch memory that no launch of the
//!   op has written;
//! - races in global and shared memory: two threads touch a byte, one of them writes, and neither a
//!   barrier nor, within a warp, a `__syncwarp` orders them. Shuffles, votes and matrix operations
//!   order nothing, as in CUDA's memory model. Atomics race with plain accesses only;
//! - reads of shared memory that nobody has written; dynamic shared memory past the launch's size;
//! - misaligned loads and stores, `ldmatrix` and `cp.async` included; an index outside an array of
//!   known length; a shift by the type's width or more;
//! - divergent barriers, lanes that are missing in a warp operation or at another place, masks that
//!   leave out the caller or the lane that a shuffle reads, a return before a barrier;
//! - `cp.async` whose destination is touched before the wait, or whose source changes meanwhile;
//! - launches with more threads than `__launch_bounds__`, with another number of pointers or another
//!   size of the parameter struct than the kernel has;
//! - threads that run for ever while they access memory (tens of millions of times).
//!
//! Meeting points and alignment of matrix operations are also verified when not `checked`; the rest
//! needs instrumented kernels, which are some ten times slower.
//!
//! # What it cannot see
//!
//! Uninitialised registers and local arrays; an index that runs from one shared array into the next
//! by a pointer; bank conflicts, timing, occupancy, registers; the order
//! of sums inside tensor cores and the last bits of approximate functions, for which tests allow
//! tolerances. Fragment layouts are those of the PTX ISA as read by us: they want one run on a card.
//!
//! # Needs
//!
//! Linux, and `$CXX` or `g++` with binutils (GCC 10 or later: clang overlooks misaligned vector
//! copies). Without them [`Emulator::open`] gives a sentence and tests are skipped. Compiled
//! kernels are kept in this crate's build folder under a hash of all that went into them, so that
//! a kernel is compiled when it or a header has changed and never otherwise.

mod compiler;
mod driver;
mod library;
mod machine;
mod memory;
mod places;
mod source;

pub use compiler::Compiler;
pub use driver::Emulator;

use std::path::PathBuf;
use std::sync::Arc;
use tritter_runtime::{Device, Opened};

/// How kernels are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Verify every load and store.
    pub checked: bool,
    /// Orders of threads and blocks follow from it.
    pub seed: u64,
    /// Folder of the `.cu` files, if not that of the CUDA backend.
    pub kernels: Option<PathBuf>,
    /// Compute capability that the device says it has: launches may depend on it.
    pub compute: (u32, u32),
    /// As in [`tritter_cuda::Options`].
    pub variant: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { checked: true, seed: 1, kernels: None, compute: (12, 0), variant: None }
    }
}

/// The emulator as a device named `cuda-emulator`.
pub fn device(options: Options) -> Opened {
    let variant = options.variant.clone();
    let open = || -> Result<Device, String> {
        let driver = Arc::new(Emulator::open(options)?);
        let options = tritter_cuda::Options { variant, ..Default::default() };
        tritter_cuda::open_with_driver(driver, "cuda-emulator", options).map_err(|e| e.to_string())
    };
    match open() {
        Ok(device) => Opened::Ready(device),
        Err(why) => Opened::Absent { why },
    }
}
