//! CUDA variants of a row: which kernels, for whom, and how they are launched.
//!
//! The kernels of a row stand in `cuda/kernels/<row>.cu`. A kernel's arguments are the parameter
//! struct by value, then the operands' addresses in the order of the signature, then, if the
//! launch asks for scratch memory, its address.

use crate::device::Caps;
use crate::dtype::Spec;

/// One kernel launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaKernel {
    /// Entry point, `extern "C"`.
    pub entry: &'static str,
    /// Blocks in x (below 2^31), y and z (at most 65,535).
    pub grid: [u32; 3],
    /// Threads of a block, all in x.
    pub block: u32,
    /// Bytes of dynamic shared memory, at most 99 KiB (what sm_86, 89 and 120 give a block).
    pub shared: u32,
}

impl CudaKernel {
    /// `blocks` blocks in x, without dynamic shared memory.
    pub fn new(entry: &'static str, blocks: usize, block: u32) -> CudaKernel {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).max(1);
        CudaKernel { entry, grid: [blocks, 1, 1], block, shared: 0 }
    }

    /// With blocks in y and z as well.
    pub fn grid(mut self, y: usize, z: usize) -> CudaKernel {
        let fit = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).max(1);
        (self.grid[1], self.grid[2]) = (fit(y), fit(z));
        self
    }

    /// With dynamic shared memory.
    pub fn shared(mut self, bytes: usize) -> CudaKernel {
        self.shared = u32::try_from(bytes).unwrap_or(u32::MAX);
        self
    }

    /// Why no card launches this, if so.
    pub fn impossible(&self) -> Option<String> {
        let [x, y, z] = self.grid;
        if x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            Some(format!("`{}` would need {:?} blocks", self.entry, self.grid))
        } else if self.block == 0 || self.block > 1024 || self.shared > 99 << 10 {
            Some(format!(
                "`{}` would need {} threads and {} bytes of shared memory",
                self.entry, self.block, self.shared
            ))
        } else {
            None
        }
    }
}

/// The kernels of one op, launched in order on one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaLaunch {
    /// Launches.
    pub kernels: Vec<CudaKernel>,
    /// Bytes of scratch memory that they share; its content is undefined before the first.
    pub scratch: u64,
}

impl From<CudaKernel> for CudaLaunch {
    fn from(kernel: CudaKernel) -> CudaLaunch {
        CudaLaunch { kernels: vec![kernel], scratch: 0 }
    }
}

/// One CUDA variant.
#[derive(Debug)]
pub struct Cuda<K> {
    /// Variant name for reports: `plain`, `mma`, `dp4a`.
    pub name: &'static str,
    /// Entry points that it may launch.
    pub entries: &'static [&'static str],
    /// A spill or an access to local memory in these kernels is a defect.
    pub hot: bool,
    /// Every operand must start at a multiple of this many bytes: 4, or 16 for vector loads.
    pub align: u64,
    /// Operands it takes (dtypes, sizes).
    pub when: fn(&K, &[Spec]) -> bool,
    /// How it is launched on a device.
    pub launch: fn(&K, &[Spec], &Caps) -> CudaLaunch,
}

/// A CUDA variant's facts that need no instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaRow {
    /// Variant name.
    pub name: &'static str,
    /// Entry points that it may launch.
    pub entries: &'static [&'static str],
    /// See [`Cuda::hot`].
    pub hot: bool,
}

/// A variant chosen for given operands.
#[derive(Clone, Debug)]
pub struct CudaChoice {
    /// Variant name.
    pub variant: &'static str,
    /// See [`Cuda::align`].
    pub align: u64,
    /// Its launches.
    pub launch: CudaLaunch,
}

impl<K> Cuda<K> {
    /// This variant for given operands, if it takes them.
    pub fn choose(&self, op: &K, operands: &[Spec], caps: &Caps) -> Option<CudaChoice> {
        (self.when)(op, operands).then(|| CudaChoice {
            variant: self.name,
            align: self.align,
            launch: (self.launch)(op, operands, caps),
        })
    }

    /// Its facts.
    pub(crate) fn row(&self) -> CudaRow {
        CudaRow { name: self.name, entries: self.entries, hot: self.hot }
    }
}
