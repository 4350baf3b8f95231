//! CUDA launches of ternary products with few rows of activations (`cuda/kernels/include/ternary_few.cuh`).

use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::{CudaKernel, CudaLaunch};

/// Bytes of a row of `w` that four threads take at a time, and how many times that are under way.
const UNIT_WORDS: usize = 16;
const AHEAD: usize = 2;
/// Most warps of a block, and of a processor with the registers that they take.
const WARPS: usize = 12;
const RESIDENT: usize = 2 * WARPS;
/// Most tokens of a block, and most for which reading `w` once for each of these beats tiles for many.
const TOKENS: usize = 8;
pub(super) const FEW: u32 = 16;
/// Shared memory of a block.
const SHARED: usize = 99 << 10;
/// Bytes that a processor must have under way to be served at its share of the memory's rate (H200: 33 KB at a
/// latency of 1 µs; others need less).
const UNDER_WAY: f64 = 40_000.0;
/// How many times its share of the memory's rate a processor can take.
const FASTER: f64 = 3.0;
/// Threads of the kernels for any size.
const PLAIN_THREADS: u32 = 256;

/// How `k` codes are shared among the warps of a block; as `FewPlan` of the kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Few {
    /// Codes of 16 bytes.
    chunk: usize,
    /// Ways in which rows of `w` can begin within 16 bytes.
    phases: usize,
    /// Warps that share `k`, and the units of each.
    splits: usize,
    units: usize,
}

impl Few {
    /// A plan for `w` of this dtype; `None` if kernels have another or `k` is not whole vectors of f32.
    pub(super) fn new(dtype: DType, k: u32) -> Option<Few> {
        let word = match dtype {
            DType::T2 => 16,
            DType::T1 => 20,
            _ => return None,
        };
        let words = (k as usize).div_ceil(word);
        let phases = if words.is_multiple_of(4) { 1 } else { 4 };
        let all = (words + phases - 1).div_ceil(UNIT_WORDS);
        let units = all.div_ceil(AHEAD * WARPS) * AHEAD;
        let splits = all.div_ceil(units).max(2);
        let few = Few { chunk: 4 * word, phases, splits, units };
        (k.is_multiple_of(4) && few.bytes(1, 1) <= SHARED).then_some(few)
    }

    /// Do pairs of rows of `w`, `apart` rows one from the other, begin alike within 16 bytes, and do rows of
    /// whole 16 bytes end with the matrix?
    pub(super) fn pairs_alike(&self, apart: u32) -> bool {
        self.phases == 1 || apart.is_multiple_of(4)
    }

    /// Bytes of shared memory for a block with `slots` groups side by side.
    fn bytes(&self, tokens: usize, slots: usize) -> usize {
        let staged = self.splits * self.units * 4 * self.chunk;
        let warps = self.splits * slots;
        let token = staged.next_multiple_of(128) + 64 + warps * (8 + 4) + 2 * slots * self.splits * 64 + 4;
        tokens * token
    }

    /// The launch for `m` tokens and pairs of rows of `w`: groups that blocks have side by side, and blocks, so
    /// that work is even and as much is under way as hides the latency of memory.
    ///
    /// `entries` are those for one token and for several.
    pub(super) fn launch(&self, m: u32, pairs: u32, entries: [&'static str; 2], caps: &Caps) -> CudaKernel {
        let processors = if caps.processors == 0 { 8 } else { caps.processors as usize };
        let (m, groups) = (m as usize, (pairs as usize).div_ceil(8 * self.phases));
        let most = (1..=TOKENS).rev().find(|&tokens| self.bytes(tokens, 1) <= SHARED).unwrap_or(1);
        let shares = m.div_ceil(most);
        let tokens = m.div_ceil(shares);
        let mut best = (f64::INFINITY, 1, self.phases);
        for slots in 1..=(WARPS / self.splits).max(1) {
            let sets = groups.div_ceil(slots);
            let resident = (RESIDENT / (self.splits * slots)).min(SHARED / self.bytes(tokens, slots).max(1));
            for each in 1..=resident {
                let blocks = sets.min((each * processors / self.phases).max(1)) * self.phases;
                let rounds = sets.div_ceil(blocks / self.phases);
                let average = (groups * self.phases) as f64 / processors as f64;
                let cost = self.cost(rounds, slots, blocks.div_ceil(processors), average);
                if cost < best.0 {
                    best = (cost, slots, blocks);
                }
            }
        }
        let (_, slots, blocks) = best;
        CudaKernel::new(entries[usize::from(tokens > 1)], blocks, (32 * self.splits * slots) as u32)
            .grid(shares, 1)
            .shared(self.bytes(tokens, slots))
    }

    /// Time of the busiest processor, in bytes of its share of the memory's rate: it goes through `rounds` of
    /// `slots` groups of 16 rows in each of `blocks` blocks, where `average` groups are the mean. Blocks also
    /// make `x`, which costs as much as about 1.4 groups (8 bytes an element from L2 against 4 from memory).
    fn cost(&self, rounds: usize, slots: usize, blocks: usize, average: f64) -> f64 {
        let group = (self.splits * self.units * 16 * UNIT_WORDS * 4) as f64;
        let under_way = (blocks * slots * self.splits * AHEAD * 16 * UNIT_WORDS * 4) as f64;
        let work = (blocks * rounds * slots) as f64 * group;
        let waits = UNDER_WAY * (work / under_way).max(1.0);
        (average * group).max(work / FASTER).max(waits) + 1.4 * blocks as f64 * group + 0.1 * work
    }
}

/// The launches for any size: codes of `m` tokens of `k` elements, then a warp for each pair of rows.
pub(super) fn plain(m: u32, k: u32, pairs: u32, codes: &'static str, rows: &'static str) -> CudaLaunch {
    let kernels = vec![
        CudaKernel::new(codes, m as usize, PLAIN_THREADS),
        CudaKernel::new(rows, pairs.div_ceil(PLAIN_THREADS / 32) as usize, PLAIN_THREADS),
    ];
    CudaLaunch { kernels, scratch: u64::from(m) * (u64::from(k).next_multiple_of(80) + 4) }
}

/// The entries for weights in 2 bits or in 1.6 bits.
pub(super) fn of_codes<T>(w: &Spec, [t2, t1]: [T; 2]) -> T {
    if w.dtype == DType::T1 { t1 } else { t2 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_models_fill_a_card() {
        for (processors, k, pairs) in [(132, 2560, 1920), (132, 2560, 6912), (132, 6912, 1280), (84, 8192, 28_672)] {
            for dtype in [DType::T2, DType::T1] {
                let caps = Caps { processors, ..Caps::default() };
                let few = Few::new(dtype, k).unwrap();
                let kernel = few.launch(1, pairs, ["one", "several"], &caps);
                assert!(kernel.impossible().is_none(), "{kernel:?}");
                assert_eq!(kernel.entry, "one");
                let blocks = kernel.grid[0];
                assert!(2 * blocks >= processors && kernel.block * blocks.div_ceil(processors) <= 768, "{kernel:?}");
            }
        }
    }

    #[test]
    fn long_rows_of_many_tokens_are_shared_by_blocks() {
        let few = Few::new(DType::T2, 28_672).unwrap();
        let kernel = few.launch(16, 4096, ["one", "several"], &Caps::default());
        assert!(kernel.impossible().is_none() && kernel.grid[1] > 2, "{kernel:?}");
        assert!(Few::new(DType::T2, 1 << 20).is_none(), "shared memory does not hold it");
        assert!(Few::new(DType::T2, 66).is_none() && Few::new(DType::T2x16, 64).is_none());
    }
}
