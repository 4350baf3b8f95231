//! Attention of few queries or of a prompt over a paged cache in f32 or f16; see [`super::paged`].
//!
//! A row of the cache is a token: `g` key heads of `d` elements, then `g` value heads. Key `k` of query row `i`
//! lies in row `table[rows[i][0]][k / page] · page + k % page`. The last column of `rows` is not read here.

use crate::cpu::attention::{Floats, Inputs, Store, attend};
use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Size, Tolerance, Wgsl};
use crate::ops::attention::Mask;
use crate::ops::paged::{Paged, Shape, Situation, cuda, situations, wgsl};
use crate::random::Random;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PagedAttention {
    /// Query rows.
    pub m: u32,
    /// Query heads.
    pub h: u32,
    /// Elements of a head.
    pub d: u32,
    /// Key-value heads.
    pub g: u32,
    /// Factor of the scores.
    pub scale: f32,
    /// See [`Mask`].
    pub window: u32,
    /// See [`Mask`].
    pub sinks: u32,
    /// Tokens of a page.
    pub page: u32,
    /// Pages of the pool.
    pub p: u32,
    /// Rows of the block table.
    pub s: u32,
    /// Pages that a row of the table lists.
    pub e: u32,
    /// Parts that each row's keys are split into.
    pub parts: u32,
    /// 1: all rows are of one sequence, their columns non-decreasing. 0: rows are independent.
    pub prompt: u32,
}

/// Records attention over `cache[pages · page, 2·g·d]`; gives `o[parts, m, h, d]` and `lse[parts, m, h]`, which
/// [`super::attention_join`] joins.
pub fn paged_attention(graph: &mut Graph, paged: Paged, cache: Value) -> Result<(Value, Value)> {
    let ([m, h, d], [s, e]) = paged.extents(graph, "paged_attention")?;
    let &[t, c] = &graph.spec(cache).shape[..] else {
        let message = format!("paged_attention: the cache ({}) must be [tokens, 2 · heads · head size]", graph.spec(cache));
        return Err(Error::Record { graph: graph.name().into(), message });
    };
    let (g, p) = (c as u32 / (2 * d).max(1), t as u32 / (paged.page as u32).max(1));
    let Mask { window, sinks } = paged.mask;
    let (page, parts, prompt) = (paged.page as u32, paged.parts as u32, u32::from(paged.prompt));
    let op = PagedAttention { m, h, d, g, scale: paged.scale, window, sinks, page, p, s, e, parts, prompt };
    let o = graph.activation([paged.parts, m as usize, h as usize, d as usize], DType::F32);
    let lse = graph.activation([paged.parts, m as usize, h as usize], DType::F32);
    graph.record(op, &[paged.q, paged.sink_q, cache, paged.rows, paged.table, o, lse])?;
    Ok((o, lse))
}

impl PagedAttention {
    pub(crate) fn shape(&self) -> Shape {
        let PagedAttention { m, h, d, g, scale, window, sinks, page, e, parts, prompt, .. } = *self;
        let [m, h, d, g, page, e, parts] = [m, h, d, g, page, e, parts].map(|n| n as usize);
        Shape { m, h, d, g, scale, mask: Mask { window, sinks }, page, e, parts, prompt: prompt != 0 }
    }

    /// First element of a key in the cache; its value lies `g · d` further on.
    fn place(&self, table: impl Fn(usize) -> usize, [sequence, ..]: [usize; 4], key: usize, kv: usize) -> usize {
        let (page, d, g) = (self.page as usize, self.d as usize, self.g as usize);
        let row = table(sequence * self.e as usize + key / page) * page + key % page;
        row * 2 * g * d + kv * d
    }

    fn of(s: &Situation) -> PagedAttention {
        let Shape { m, h, d, g, scale, mask, page, e, parts, prompt } = s.shape;
        let [m, h, d, g, page, p, sequences, e, parts] =
            [m, h, d, g, page, s.pool(), s.sequences, e, parts].map(|n| n as u32);
        let Mask { window, sinks } = mask;
        PagedAttention { m, h, d, g, scale, window, sinks, page, p, s: sequences, e, parts, prompt: u32::from(prompt) }
    }

    /// A case of a situation; rows of the cache that nobody sees are NaN, but not in the gigabytes of a bench.
    fn case(s: &Situation, dtype: DType, size: Size) -> Case {
        let op = PagedAttention::of(s);
        let case = s.filled(Case::new(format!("{} {dtype}", s.label), op)).dtype("cache", dtype);
        let (table, width) = (s.table(), 2 * s.shape.g * s.shape.d);
        let rows = s.spans.iter().flat_map(|span| [span[0], span[1], span[2], 0].map(f64::from)).collect();
        let case = case.fill("rows", Fill::Values(rows));
        if size == Size::Bench {
            return case.fill("table", Fill::Values(table));
        }
        let mut values = vec![f64::NAN; s.pool() * s.shape.page * width];
        let seen = case.clone().fill("cache", Fill::Normal(1.0)).values(2, &mut Random::new(3));
        for (entry, &page) in table.iter().enumerate().filter(|(_, page)| **page < s.pool() as f64) {
            for t in 0..s.shape.page {
                let key = entry % s.shape.e * s.shape.page + t;
                if s.sees(entry / s.shape.e, key as u32) {
                    let row = (page as usize * s.shape.page + t) * width;
                    values[row..row + width].copy_from_slice(&seen[row..row + width]);
                }
            }
        }
        case.fill("cache", Fill::Values(values)).fill("table", Fill::Values(table))
    }
}

impl Kernel for PagedAttention {
    const NAME: &'static str = "paged_attention";
    const SIGNATURE: &'static str = "q[m,h,d]:f32 qs[m,h,d]:f32 cache[t,c]:f32|f16 rows[m,4]:u32 table[s,e]:u32 \
         -> o[n,m,h,d]:f32 lse[n,m,h]:f32";
    const GRADIENT: Gradient = Gradient::None("caches are for inference only");
    const WGSL: &'static [Wgsl<Self>] = wgsl::PAGED;
    const CUDA: &'static [Cuda<Self>] = cuda::PAGED;

    fn dims(&self) -> Vec<(&'static str, usize)> {
        let own = [("m", self.m), ("h", self.h), ("d", self.d), ("s", self.s), ("e", self.e), ("n", self.parts)];
        let mut dims = own.map(|(name, n)| (name, n as usize)).to_vec();
        dims.extend([("t", self.p as usize * self.page as usize), ("c", 2 * self.g as usize * self.d as usize)]);
        dims
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.shape().check(Self::NAME)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [q, qs, cache, rows, table, o, lse] = t else { return };
        let (d, to_value) = (self.d as usize, self.g as usize * self.d as usize);
        self.shape().reference([q, qs, rows], [o, lse], |row, key, kv, k, v| {
            let at = self.place(|entry| table.data[entry] as usize, row, key, kv);
            k.copy_from_slice(&cache.data[at..at + d]);
            v.copy_from_slice(&cache.data[at + to_value..][..d]);
        });
    }

    fn cpu(&self, mut args: Args<'_>) {
        let floats = match args.spec(2).dtype {
            DType::F16 => Floats::Half(args.read(2)),
            _ => Floats::Single(args.read(2)),
        };
        let (queries, store) = ([args.read(0), args.read(1)], Store { floats, quantised: None });
        let inputs = Inputs { shape: &self.shape(), queries, rows: args.read(3), table: args.read(4), store };
        attend(&inputs, args.write(5), args.write(6));
    }

    fn operations(&self) -> u64 {
        self.shape().operations()
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let small: u64 = [0, 3, 4].iter().map(|&i| operands[i].bytes()).sum();
        let shape = self.shape();
        let keys = shape.passes() * shape.most_keys() * operands[2].row_bytes();
        (small + keys, operands[5].bytes() + operands[6].bytes())
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 1e-5,
            why: "f32 scores (d products) go through exp: an error of 1e-6 in a score is one of 1e-6 in its weight",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        let both = |s: &Situation| [DType::F32, DType::F16].map(|dtype| PagedAttention::case(s, dtype, size));
        situations(size).iter().flat_map(both).collect()
    }
}
