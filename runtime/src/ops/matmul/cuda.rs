//! The dense products on CUDA: which tile, and how many blocks share the depth of a tile.
//!
//! `C[rows, cols] (+)= A[rows, depth] · B[depth, cols]` is cut into tiles (`dense_mma.cuh`,
//! `dense_simt.cuh`). Large tiles do the most arithmetic for the bytes they read; small ones leave
//! fewer processors idle; cutting the depth keeps processors busy where tiles are few, at the price
//! of partial sums that go through memory. [`launch`] takes the cheapest of all by a rough model.

use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::{CudaKernel, CudaLaunch};

/// Rows of `x` up to which 16-bit weights are read straight into registers (`dense_few.cuh`).
pub(in crate::ops) const FEW_16BIT: u32 = 16;

/// Columns of a block of `dense_few.cuh`, which has 256 threads.
const FEW_COLS: usize = 8;

/// Blocks that share the depth of a tile, at most, and the bytes of their sums.
const SPLITS: u64 = 64;
const SCRATCH: u64 = 128 << 20;

/// One entry point that computes tiles.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Tile {
    entry: &'static str,
    rows: u64,
    cols: u64,
    threads: u32,
    shared: usize,
    /// Relative time of a multiply-add on data-centre cards, bound by shared memory and L2, and on others.
    time: [f64; 2],
    simt: bool,
}

impl Tile {
    /// `Mma256` of `dense_mma.cuh`.
    pub(in crate::ops) const fn mma256(entry: &'static str) -> Tile {
        Tile { entry, rows: 128, cols: 256, threads: 256, shared: 96 << 10, time: [1.0, 1.03], simt: false }
    }

    /// `Mma128` and `MmaRagged`.
    pub(in crate::ops) const fn mma128(entry: &'static str) -> Tile {
        Tile { entry, rows: 128, cols: 128, threads: 128, shared: 48 << 10, time: [1.15, 1.0], simt: false }
    }

    /// `Mma64`.
    pub(in crate::ops) const fn mma64(entry: &'static str) -> Tile {
        Tile { entry, rows: 64, cols: 128, threads: 128, shared: 48 << 10, time: [1.5, 1.1], simt: false }
    }

    /// `Simt128` of `dense_simt.cuh`; `deep` of its factors are contiguous along the depth.
    pub(in crate::ops) const fn simt128(entry: &'static str, deep: usize) -> Tile {
        let shared = 2 * (2 * 128 * 64 + deep * 128 * 16);
        Tile { entry, rows: 128, cols: 128, threads: 256, shared, time: [1.0, 1.0], simt: true }
    }

    /// `Simt64` and `SimtRagged`.
    pub(in crate::ops) const fn simt64(entry: &'static str, deep: usize) -> Tile {
        let shared = 2 * (2 * 64 * 64 + deep * 64 * 16);
        Tile { entry, rows: 64, cols: 64, threads: 64, shared, time: [1.25, 1.25], simt: true }
    }
}

/// Extents of a product.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Extents {
    /// Rows of the product.
    pub(in crate::ops) rows: u32,
    /// Columns of the product.
    pub(in crate::ops) cols: u32,
    /// What is summed over.
    pub(in crate::ops) depth: u32,
}

impl Extents {
    /// Bytes of one share's sums.
    fn sums(self) -> u64 {
        u64::from(self.rows) * u64::from(self.cols).next_multiple_of(4) * 4
    }

    fn tiles(self, tile: &Tile) -> u64 {
        u64::from(self.rows).div_ceil(tile.rows) * u64::from(self.cols).div_ceil(tile.cols)
    }

    /// Time in multiply-adds of one processor. Blocks run in rounds of one a processor (two that share one take
    /// as long as one after the other), each with some start and end. A byte of the sums costs as much as 32
    /// multiply-adds on tensor cores (between memory and L2 of an A100, H200 and RTX 5080) or 10 in f32;
    /// the second kernel some 2 µs.
    fn time(self, tile: &Tile, splits: u64, caps: &Caps) -> f64 {
        let processors = processors(caps);
        let geforce = !matches!(caps.compute, (8..=10, 0));
        let rounds = (self.tiles(tile) * splits).div_ceil(processors);
        let depth = u64::from(self.depth).div_ceil(splits) + 32;
        let arithmetic = (rounds * depth * tile.rows * tile.cols) as f64 * tile.time[usize::from(geforce)];
        let (byte, launch) = if tile.simt { (10.0, 3e5) } else { (32.0, 2e6) };
        let moved = if splits > 1 { (2 * splits * self.sums()) as f64 } else { 0.0 };
        arithmetic + moved * byte / processors as f64 + if splits > 1 { launch } else { 0.0 }
    }
}

fn processors(caps: &Caps) -> u64 {
    if caps.processors == 0 { 8 } else { u64::from(caps.processors) }
}

/// The product by one of `tiles`; `sum` is the entry that adds the sums of a depth that was cut.
///
/// Scratch memory is asked for in any case, so that one entry serves whole and cut depths.
pub(in crate::ops) fn launch(extents: Extents, tiles: &[Tile], sum: &'static str, caps: &Caps) -> CudaLaunch {
    let limit = (u64::from(extents.depth) / 128).min(SCRATCH / extents.sums()).clamp(1, SPLITS);
    let ways = tiles.iter().flat_map(|tile| (1..=limit).map(move |splits| (tile, splits)));
    let best = ways.min_by(|a, b| extents.time(a.0, a.1, caps).total_cmp(&extents.time(b.0, b.1, caps)));
    best.map_or_else(CudaLaunch::default, |(tile, splits)| cut(extents, tile, splits, sum))
}

/// The product by one tile, `splits` blocks sharing its depth.
fn cut(extents: Extents, tile: &Tile, splits: u64, sum: &'static str) -> CudaLaunch {
    let product = CudaKernel::new(tile.entry, extents.tiles(tile) as usize, tile.threads);
    let product = product.grid(1, splits as usize).shared(tile.shared);
    if splits == 1 {
        return CudaLaunch { kernels: vec![product], scratch: 16 };
    }
    // The second kernel learns from the grid's y how many sums there are; all blocks share the work.
    let blocks = (extents.sums() / 16).div_ceil(256 * splits) as usize;
    let sums = CudaKernel::new(sum, blocks, 256).grid(splits as usize, 1);
    CudaLaunch { kernels: vec![product, sums], scratch: splits * extents.sums() }
}

/// A product with few rows by an entry of `dense_few.cuh`.
pub(in crate::ops) fn few(entry: &'static str, cols: u32) -> CudaLaunch {
    CudaKernel::new(entry, (cols as usize).div_ceil(FEW_COLS), 256).into()
}

/// Can rows of a factor be copied in 16 bytes from column `first` on?
pub(in crate::ops) fn vectors(factor: &Spec, first: u32) -> bool {
    factor.row_bytes().is_multiple_of(16) && first.is_multiple_of(8)
}

/// Dtypes of the first factor and of the product.
pub(in crate::ops) fn dtypes(operands: &[Spec]) -> (DType, DType) {
    (operands[0].dtype, operands[2].dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILES: &[Tile] = &[Tile::mma256("256"), Tile::mma128("128"), Tile::mma64("64")];

    fn chosen(rows: u32, cols: u32, depth: u32, processors: u32, compute: (u32, u32)) -> (&'static str, u32) {
        let caps = Caps { processors, compute, ..Caps::default() };
        let launch = launch(Extents { rows, cols, depth }, TILES, "sum", &caps);
        assert!(launch.kernels.iter().all(|k| k.impossible().is_none()), "{launch:?}");
        assert!(launch.scratch <= SCRATCH && launch.scratch >= 16);
        assert_eq!(launch.kernels.len() > 1, launch.kernels[0].grid[2] > 1);
        (launch.kernels[0].entry, launch.kernels[0].grid[2])
    }

    #[test]
    fn large_products_take_large_tiles_and_long_ones_are_cut() {
        assert_eq!(chosen(4096, 4096, 4096, 132, (9, 0)), ("256", 1));
        assert_eq!(chosen(4096, 32_000, 768, 132, (9, 0)), ("256", 1));
        assert_eq!(chosen(4096, 4096, 4096, 84, (12, 0)).1, 1);
        assert!(chosen(768, 768, 32_768, 132, (9, 0)).1 > 2);
        assert!(chosen(768, 768, 16_384, 84, (12, 0)).1 > 2);
        assert_eq!(chosen(64, 768, 768, 84, (12, 0)).0, "64");
        assert_eq!(chosen(1, 1, 1, 0, (0, 0)).1, 1);
        assert_eq!(chosen(u32::MAX, 1, 1, 84, (12, 0)).1, 1);
    }
}
