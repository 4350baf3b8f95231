//! How CUDA kernels over rows of f32 or bf16 are launched.
//!
//! The kernels divide their work in the same way: `cuda/kernels/include/{rows,columns}.cuh`.

use crate::dtype::DType;
use crate::op::{CudaKernel, CudaLaunch};

/// Rows of at most this many elements are shared by a warp or a part of one, longer ones by a block.
const SHORT_ROW: u32 = 512;

/// Elements of a long row that a thread keeps in registers.
pub(super) const HELD: u32 = 16;

/// Threads of a block that takes short rows.
const SHORT_ROW_BLOCK: u32 = 256;

/// Lanes of a warp.
const WARP: u32 = 32;

/// Elements in 16 bytes.
fn pack(dtype: DType) -> u32 {
    match dtype {
        DType::Bf16 => 8,
        _ => 4,
    }
}

/// Whether rows of `k` elements are whole packs of 16 bytes.
pub(super) fn whole_packs(dtype: DType, k: u32) -> bool {
    k.is_multiple_of(pack(dtype))
}

/// The entry for a dtype out of those for f32 and bf16.
pub(super) fn entry(dtype: DType, [f32, bf16]: [&'static str; 2]) -> &'static str {
    match dtype {
        DType::Bf16 => bf16,
        _ => f32,
    }
}

/// Threads of a block that has a row of `k` elements to itself: [`HELD`] elements each, at most `most` threads.
pub(super) fn long_row_block(k: u32, most: u32) -> u32 {
    k.div_ceil(HELD).next_multiple_of(WARP).min(most)
}

/// A kernel over `m` rows of `k` elements that are reduced row by row (`share_rows`).
pub(super) fn rows(entry: &'static str, m: usize, k: u32, dtype: DType) -> CudaLaunch {
    if k > SHORT_ROW {
        return CudaKernel::new(entry, m, long_row_block(k, 512)).into();
    }
    let lanes = k.div_ceil(pack(dtype)).next_power_of_two().min(WARP);
    CudaKernel::new(entry, m.div_ceil((SHORT_ROW_BLOCK / lanes) as usize), SHORT_ROW_BLOCK).into()
}

/// Sums over the rows of `[m,n]` (`sum_columns`), then the kernel that adds the partial sums up.
pub(super) fn columns(sum: &'static str, add: &'static str, m: u32, n: u32, dtype: DType) -> CudaLaunch {
    const BLOCK: u32 = 256;
    let splits = m.div_ceil(16).min(128) as usize;
    let tiles = n.div_ceil(WARP * pack(dtype)) as usize;
    let kernels = vec![
        CudaKernel::new(sum, tiles, BLOCK).grid(splits, 1),
        CudaKernel::new(add, n.div_ceil(WARP) as usize, BLOCK),
    ];
    CudaLaunch { kernels, scratch: 4 * splits as u64 * u64::from(n) }
}
