//! What elementwise rows share.

use crate::dtype::{DType, Spec};
use crate::op::{CudaKernel, CudaLaunch, Size};

/// Elements that one CPU task takes: 16 KiB of each operand.
pub(super) const BLOCK: usize = 4096;

/// `(m, k)` of test cases.
pub(super) fn shapes(size: Size) -> Vec<(u32, u32)> {
    match size {
        Size::Small => vec![(3, 4)],
        Size::Ragged => vec![(1, 1), (5, 67), (3, 5003)],
        Size::Bench => vec![(1, 768), (512, 768), (512, 6912)],
    }
}

/// Threads of an elementwise CUDA block and bytes of the output that it makes (`elementwise.cuh`).
const CUDA_THREADS: u32 = 256;
const CUDA_TILE: u64 = 4096;

/// Launch of an elementwise CUDA kernel that makes `bytes` of its largest output.
pub(super) fn cuda(entry: &'static str, bytes: u64) -> CudaLaunch {
    CudaKernel::new(entry, bytes.div_ceil(CUDA_TILE) as usize, CUDA_THREADS).into()
}

/// As [`cuda`] for an output of either dtype, with the entry for f32 and that for bf16.
pub(super) fn cuda_for(output: &Spec, [f32, bf16]: [&'static str; 2]) -> CudaLaunch {
    cuda(if output.dtype == DType::Bf16 { bf16 } else { f32 }, output.bytes())
}
