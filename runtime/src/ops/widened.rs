//! CUDA launches of dense products with weights that are widened to f32 (`cuda/kernels/include/widened*.cuh`).

use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::CudaKernel;

/// Most rows of `x` that are multiplied as `w` streams by.
const FEW: u32 = 8;
/// Threads of a block, how many share a row of `w`, and blocks of a processor.
const THREADS: u32 = 256;
const LANES: usize = 8;
const RESIDENT: usize = 3;
/// Shared memory of a block, and of a processor with compute capability 8.6, 8.9 or 12.
const SHARED: usize = 99 << 10;
/// Rows and columns of a tile.
const TILE: usize = 128;

/// Entries for one, up to four and up to eight rows of `x`.
pub(super) type Few = [&'static str; 3];

/// Bytes of shared memory for a row of `x` of `k` elements: whole steps of eight threads' chunks.
fn row_bytes(dtype: DType, k: usize) -> usize {
    let step = LANES
        * match dtype {
            DType::I8 => 4 * 16,
            DType::I4 => 2 * 32,
            DType::I6 => 64,
            _ => 2 * 16,
        };
    4 * k.next_multiple_of(step)
}

/// Are rows of `x` few, and are rows of `w` whole chunks, of which a thread reads 16, 32 or 48 bytes at a time?
pub(super) fn takes_few(m: u32, k: u32, w: &Spec) -> bool {
    let chunk = match w.dtype {
        DType::I8 | DType::I4 => 16,
        DType::I6 => 48,
        _ => 32,
    };
    m <= FEW && w.row_bytes().is_multiple_of(chunk) && row_bytes(w.dtype, k as usize) <= SHARED
}

/// The product of few rows of `x` with `n` rows of `w`.
pub(super) fn few(m: u32, n: u32, k: u32, w: &Spec, entries: Few, caps: &Caps) -> CudaKernel {
    let processors = if caps.processors == 0 { 8 } else { caps.processors as usize };
    let row = row_bytes(w.dtype, k as usize);
    let shares = m.div_ceil((SHARED / row).clamp(1, FEW as usize) as u32);
    let tokens = m.div_ceil(shares);
    let entry = entries[usize::from(tokens > 1) + usize::from(tokens > 4)];
    let shared = tokens as usize * row;
    let resident = (SHARED / shared).clamp(1, RESIDENT);
    let sets = (n as usize).div_ceil(THREADS as usize / LANES);
    CudaKernel::new(entry, sets.min(resident * processors), THREADS).grid(shares as usize, 1).shared(shared)
}

/// The product by tiles.
pub(super) fn tiles(m: u32, n: u32, entry: &'static str) -> CudaKernel {
    CudaKernel::new(entry, (m as usize).div_ceil(TILE) * (n as usize).div_ceil(TILE), THREADS)
}
