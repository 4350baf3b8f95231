//! Turns whole pages of tokens in a ring into codes of a paged cache: the newest tokens of a sequence stay in
//! f32 until their page is complete and old enough (KIVI, Liu et al. 2024). See [`super::paged::codes`] for the
//! block that is written.
//!
//! `groups[i]` is the ring's row of a page's first token, and the page of the pool; one past the pool is none, and
//! its run writes nothing.

use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, Fill, Gradient, Kernel, Launch, Needs, Packed, Size, Tolerance, Wgsl};
use crate::ops::paged::codes::{Block, Parameters};
use crate::ops::paged::wgsl::with_block;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CacheQuantize {
    /// Pages to fill, at most.
    pub n: u32,
    /// Key-value heads.
    pub g: u32,
    /// Elements of a head.
    pub d: u32,
    /// Tokens of a page.
    pub page: u32,
    /// Rows of the ring.
    pub t: u32,
    /// Pages of the pool.
    pub p: u32,
    /// Bits of a code: 2, 4 or 8.
    pub bits: u32,
    /// 1: scales and zeros in f32. 0: in f16.
    pub precise: u32,
}

/// Records `codes[groups[i][1]] = quantised(ring[groups[i][0] ..])` for blocks of this shape.
pub fn cache_quantize(graph: &mut Graph, ring: Value, groups: Value, block: Block, codes: Value) -> Result<()> {
    let (&[t, c], &[b, words], n) = (&graph.spec(ring).shape[..], &graph.spec(codes).shape[..], graph.spec(groups).rows())
    else {
        let message = format!("cache_quantize: ring ({}) and codes ({}) must be matrices", graph.spec(ring), graph.spec(codes));
        return Err(Error::Record { graph: graph.name().into(), message });
    };
    if words != block.words() {
        let message = format!("cache_quantize: codes of {words} words, a block ({block:?}) has {}", block.words());
        return Err(Error::Record { graph: graph.name().into(), message });
    }
    let g = c / (2 * block.d).max(1);
    let p = b / g.max(1);
    let [n, g, d, page, t, p, bits] = [n, g, block.d, block.page, t, p, block.bits].map(|v| v as u32);
    let op = CacheQuantize { n, g, d, page, t, p, bits, precise: u32::from(block.precise) };
    graph.record(op, &[ring, groups, codes])
}

impl CacheQuantize {
    fn block(&self) -> Block {
        let [page, d, bits] = [self.page, self.d, self.bits].map(|n| n as usize);
        Block { page, d, bits, precise: self.precise != 0 }
    }

    /// First ring row and page of the pool of the groups that are to be filled.
    fn wanted(&self, groups: impl IntoIterator<Item = [u32; 2]>) -> Vec<[usize; 2]> {
        let fits = |[row, page]: &[u32; 2]| *page < self.p && row.checked_add(self.page).is_some_and(|end| end <= self.t);
        groups.into_iter().filter(fits).map(|group| group.map(|v| v as usize)).collect()
    }

    /// Elements of head `kv` of the token in a ring row: keys, or values.
    fn element(&self, row: usize, kv: usize, values: bool) -> usize {
        let (g, d) = (self.g as usize, self.d as usize);
        ((2 * row + usize::from(values)) * g + kv) * d
    }
}

impl Kernel for CacheQuantize {
    const NAME: &'static str = "cache_quantize";
    const SIGNATURE: &'static str = "ring[t,c]:f32 groups[n,2]:u32 -> &codes[b,w]:u32";
    const GRADIENT: Gradient = Gradient::None("caches are for inference only");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "cache_quantize",
        needs: Needs::NONE,
        defines: &[("VEC", 0)],
        when: |_, _| true,
        launch: |op, _| with_block(Launch::groups(2 * op.n as usize * op.g as usize), &op.block()),
    }];
    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["cache_quantize"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, _, _| {
            // Warps take 32 channels of the keys or 8 tokens of the values.
            let units = op.d.div_ceil(32) + op.page / 8;
            let kernel = CudaKernel::new("cache_quantize", units.div_ceil(4) as usize, 128);
            kernel.grid(op.g as usize, op.n as usize).into()
        },
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        let (g, d) = (self.g as usize, self.d as usize);
        vec![
            ("n", self.n as usize),
            ("t", self.t as usize),
            ("c", 2 * g * d),
            ("b", self.p as usize * g),
            ("w", self.block().words()),
        ]
    }

    fn check(&self) -> std::result::Result<(), String> {
        if ![2, 4, 8].contains(&self.bits) || ![32, 64, 128].contains(&self.page) {
            let CacheQuantize { bits, page, .. } = self;
            return Err(format!("cache_quantize: {bits} bits in pages of {page}; there are 2, 4, 8 bits and 32, 64, 128 tokens"));
        }
        if self.g == 0 || self.d == 0 || !self.d.is_multiple_of(2) {
            return Err(format!("cache_quantize: {} heads of {}; the head size must be even", self.g, self.d));
        }
        Ok(())
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [ring, groups, codes] = t else { return };
        let (block, d) = (self.block(), self.d as usize);
        let data: Vec<f32> = ring.data.iter().map(|&v| v as f32).collect();
        for [row, page] in self.wanted(groups.data.chunks_exact(2).map(|g| [g[0] as u32, g[1] as u32])) {
            for kv in 0..self.g as usize {
                let of = |t: usize, values: bool| &data[self.element(row + t, kv, values)..][..d];
                let mut words = vec![0; block.words()];
                block.fill(&mut words, |t| of(t, false), |t| of(t, true));
                let at = (page * self.g as usize + kv) * block.words();
                codes.data[at..at + words.len()].iter_mut().zip(words).for_each(|(to, w)| *to = f64::from(w));
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (ring, groups) = (args.read::<f32>(0), args.read::<u32>(1));
        let (block, d) = (self.block(), self.d as usize);
        let codes = args.write::<u32>(2);
        for [row, page] in self.wanted(groups.as_chunks::<2>().0.iter().copied()) {
            for kv in 0..self.g as usize {
                let of = |t: usize, values: bool| &ring[self.element(row + t, kv, values)..][..d];
                let at = (page * self.g as usize + kv) * block.words();
                block.fill(&mut codes[at..at + block.words()], |t| of(t, false), |t| of(t, true));
            }
        }
    }

    fn operations(&self) -> u64 {
        6 * u64::from(self.n) * u64::from(self.page) * 2 * u64::from(self.g) * u64::from(self.d)
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let (n, g) = (u64::from(self.n), u64::from(self.g));
        let read = n * u64::from(self.page) * operands[0].row_bytes() + operands[1].bytes();
        (read, n * g * operands[2].row_bytes())
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::OneCode { float: if self.precise == 0 { 1e-3 } else { 3e-7 } }
    }

    fn packed(&self, operand: usize, words: &[u32], inputs: &[Vec<f64>]) -> Option<Packed> {
        (operand == 2).then(|| self.unpacked(words, inputs))
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[(u32, u32, u32, u32, u32, bool)] = match size {
            Size::Small => &[(1, 1, 4, 32, 4, true), (2, 2, 6, 32, 2, false)],
            Size::Ragged => &[
                (1, 1, 2, 32, 8, false),
                (3, 2, 34, 32, 4, false),
                (2, 3, 64, 64, 2, true),
                (4, 1, 128, 128, 4, false),
                (2, 2, 256, 64, 8, true),
                (3, 5, 128, 32, 2, false),
                (5, 2, 80, 64, 4, true),
            ],
            Size::Bench => &[(1, 8, 128, 64, 4, false), (4, 8, 128, 64, 4, false)],
        };
        let case = |&(n, g, d, page, bits, precise): &(u32, u32, u32, u32, u32, bool)| {
            let (t, p) = ((n + 2) * page, n + 1);
            let op = CacheQuantize { n, g, d, page, t, p, bits, precise: u32::from(precise) };
            // Pages in falling order; the last of several groups is none.
            let row = |i: u32| f64::from((n - i) * page);
            let groups = (0..n).flat_map(|i| [row(i), f64::from(if n > 1 && i + 1 == n { p } else { n - i })]).collect();
            let label = format!("{n} pages of {page}, {g} heads of {d}, {bits} bits{}", if precise { ", precise" } else { "" });
            let case = Case::new(label, op).fill("groups", Fill::Values(groups));
            // What a page held before: small parameters, so that bounds stay those of what is written.
            let case = case.fill("codes", Fill::Constant(f64::from(0x1111_1111)));
            case.dtype("codes", DType::U32)
        };
        sizes.iter().map(case).collect()
    }
}

impl CacheQuantize {
    /// Codes and parameters of all blocks, and where the inputs say that a code was near a tie.
    fn unpacked(&self, words: &[u32], inputs: &[Vec<f64>]) -> Packed {
        let (block, d, g) = (self.block(), self.d as usize, self.g as usize);
        let groups = self.wanted(inputs[1].chunks_exact(2).map(|g| [g[0] as u32, g[1] as u32]));
        let mut packed = Packed::default();
        for (b, words) in words.chunks_exact(block.words()).enumerate() {
            let from = groups.iter().find(|[_, page]| *page == b / g).map(|[row, _]| *row);
            for (values, t) in [false, true].into_iter().flat_map(|v| (0..block.page).map(move |t| (v, t))) {
                let row = block.row(words, values, t);
                for c in 0..d {
                    let p = match values {
                        false => block.key_parameters(words, c),
                        true => block.value_parameters(words, t, c / block.page),
                    };
                    let x = from.map(|row| inputs[0][self.element(row + t, b % g, values) + c]);
                    let preimage = |x: f64| (x - f64::from(p.zero)) / f64::from(p.scale);
                    packed.codes.push(f64::from(block.code(row, c)));
                    packed.preimages.push(x.map_or(0.0, preimage));
                }
            }
            let floats = |p: Parameters| [f64::from(p.scale), f64::from(p.zero)];
            // Entries that pad the section of keys are among them: their words are zero.
            for c in 0..d.next_multiple_of(4) {
                packed.floats.extend(floats(block.key_parameters(words, c)));
            }
            for (t, group) in (0..block.page).flat_map(|t| (0..block.groups()).map(move |group| (t, group))) {
                packed.floats.extend(floats(block.value_parameters(words, t, group)));
            }
        }
        packed
    }
}
