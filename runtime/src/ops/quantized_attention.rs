//! Attention over a paged cache of codes, whose newest tokens are in f32; see [`super::paged`].
//!
//! Keys below `boundary`, the last column of a query row and a multiple of the page, are codes in the block of
//! `(page of the pool, head)` ([`Block`]); keys from it on are rows of the sequence's ring, `sequence · ring +
//! k % ring`, key heads then value heads. Nothing is expanded in memory. Because the boundary depends on the
//! row, a prompt that is fed in chunks sees what one sees that is fed token by token.

use crate::cpu::attention::{Floats, Inputs, Quantised, Store, attend};
use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Size, Tolerance, Wgsl};
use crate::ops::attention::Mask;
use crate::ops::paged::codes::{Block, Parameters};
use crate::ops::paged::{Paged, Shape, Situation, cuda, situations, wgsl};
use crate::random::Random;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct QuantizedAttention {
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
    /// Rows of a sequence's ring: a power of two and a multiple of the page.
    pub ring: u32,
    /// Pages of the pool.
    pub p: u32,
    /// Rows of the block table.
    pub s: u32,
    /// Pages that a row of the table lists.
    pub e: u32,
    /// Bits of a code: 2, 4 or 8.
    pub bits: u32,
    /// 1: scales and zeros in f32. 0: in f16.
    pub precise: u32,
    /// Parts that each row's keys are split into.
    pub parts: u32,
    /// 1: all rows are of one sequence, their columns non-decreasing. 0: rows are independent.
    pub prompt: u32,
}

/// Records attention over `codes[pages · g, words]` and `ring[s · ring, 2·g·d]` of blocks of this shape; gives
/// `o[parts, m, h, d]` and `lse[parts, m, h]`, which [`super::attention_join`] joins.
pub fn quantized_attention(
    graph: &mut Graph,
    paged: Paged,
    block: Block,
    codes: Value,
    ring: Value,
) -> Result<(Value, Value)> {
    let ([m, h, d], [s, e]) = paged.extents(graph, "quantized_attention")?;
    let (&[b, words], &[r, c]) = (&graph.spec(codes).shape[..], &graph.spec(ring).shape[..]) else {
        let message = format!(
            "quantized_attention: codes ({}) must be [pages · heads, words], the ring ({}) [tokens, 2 · heads · head size]",
            graph.spec(codes),
            graph.spec(ring)
        );
        return Err(Error::Record { graph: graph.name().into(), message });
    };
    if words != block.words() || block.d != d as usize || block.page != paged.page {
        let message = format!("quantized_attention: codes of {words} words, a block ({block:?}) has {}", block.words());
        return Err(Error::Record { graph: graph.name().into(), message });
    }
    let g = c as u32 / (2 * d).max(1);
    let (p, ring_rows) = (b as u32 / g.max(1), r as u32 / s.max(1));
    let Mask { window, sinks } = paged.mask;
    let op = QuantizedAttention {
        m,
        h,
        d,
        g,
        scale: paged.scale,
        window,
        sinks,
        page: paged.page as u32,
        ring: ring_rows,
        p,
        s,
        e,
        bits: block.bits as u32,
        precise: u32::from(block.precise),
        parts: paged.parts as u32,
        prompt: u32::from(paged.prompt),
    };
    let o = graph.activation([paged.parts, m as usize, h as usize, d as usize], DType::F32);
    let lse = graph.activation([paged.parts, m as usize, h as usize], DType::F32);
    graph.record(op, &[paged.q, paged.sink_q, codes, ring, paged.rows, paged.table, o, lse])?;
    Ok((o, lse))
}

impl QuantizedAttention {
    pub(crate) fn shape(&self) -> Shape {
        let QuantizedAttention { m, h, d, g, scale, window, sinks, page, e, parts, prompt, .. } = *self;
        let [m, h, d, g, page, e, parts] = [m, h, d, g, page, e, parts].map(|n| n as usize);
        Shape { m, h, d, g, scale, mask: Mask { window, sinks }, page, e, parts, prompt: prompt != 0 }
    }

    pub(crate) fn block(&self) -> Block {
        let [page, d, bits] = [self.page, self.d, self.bits].map(|n| n as usize);
        Block { page, d, bits, precise: self.precise != 0 }
    }

    /// Row of the ring where a key lies.
    pub(crate) fn ring_row(&self, sequence: usize, key: usize) -> usize {
        sequence * self.ring as usize + key % self.ring as usize
    }

    /// The boundary of a row of a test: as the cache of a model sets it, the page before the newest ones.
    fn boundary(s: &Situation, last: u32) -> u32 {
        let page = s.shape.page as u32;
        let last = last.min((s.shape.e * s.shape.page) as u32 - 1);
        (last + 1).saturating_sub(page) / page * page
    }

    fn of(s: &Situation, bits: u32, precise: bool) -> QuantizedAttention {
        let Shape { m, h, d, g, scale, mask, page, e, parts, prompt } = s.shape;
        // The boundaries of a prompt lie as far apart as its rows.
        let ring = (2 * page + if prompt { m } else { 0usize }).next_power_of_two();
        let [m, h, d, g, page, ring, p, sequences, e, parts] =
            [m, h, d, g, page, ring, s.pool(), s.sequences, e, parts].map(|n| n as u32);
        let Mask { window, sinks } = mask;
        let (precise, prompt) = (u32::from(precise), u32::from(prompt));
        QuantizedAttention { m, h, d, g, scale, window, sinks, page, ring, p, s: sequences, e, bits, precise, parts, prompt }
    }

    /// A case of a situation; codes and ring rows that nobody sees are NaN, but not in the gigabytes of a bench.
    fn case(s: &Situation, bits: u32, precise: bool, size: Size) -> Case {
        let op = QuantizedAttention::of(s, bits, precise);
        let (block, shape) = (op.block(), &s.shape);
        let label = format!("{}, {bits} bits{}", s.label, if precise { ", precise" } else { "" });
        if size == Size::Bench {
            let rows = s.spans.iter().flat_map(|&[sequence, first, last]| {
                [sequence, first, last, QuantizedAttention::boundary(s, last)].map(f64::from)
            });
            let case = Case::new(label, op).fill("rows", Fill::Values(rows.collect()));
            // Scales and zeros of 1/16 in f16, and any codes.
            let codes = Fill::Constant(f64::from(0x2C00_2C00));
            return case.fill("table", Fill::Values(s.table())).fill("codes", codes);
        }
        let mut random = Random::new(u64::from(bits));
        let mut normal = |n: usize| (0..n).map(|_| random.normal() as f32).collect::<Vec<f32>>();
        let nan = if precise { 0x7FC0_0000 } else { 0x7E00_7E00 };
        let mut codes = vec![nan; s.pool() * shape.g * block.words()];
        let table = s.table();
        for &page in table.iter().filter(|page| **page < s.pool() as f64) {
            for kv in 0..shape.g {
                let (keys, values) = (normal(block.page * block.d), normal(block.page * block.d));
                let at = (page as usize * shape.g + kv) * block.words();
                let token = |t: usize| t * block.d..(t + 1) * block.d;
                block.fill(&mut codes[at..at + block.words()], |t| &keys[token(t)], |t| &values[token(t)]);
            }
        }
        let width = 2 * shape.g * shape.d;
        let mut ring = vec![f64::NAN; s.sequences * op.ring as usize * width];
        let mut rows = Vec::new();
        for &[sequence, first, last] in &s.spans {
            let boundary = QuantizedAttention::boundary(s, last);
            rows.extend([sequence, first, last, boundary].map(f64::from));
            let keys = shape.mask.keys([first, last], (shape.e * shape.page) as u32);
            for key in keys.iter().filter(|key| *key >= boundary) {
                let at = op.ring_row(sequence as usize, key as usize) * width;
                if ring[at].is_nan() {
                    ring[at..at + width].iter_mut().zip(normal(width)).for_each(|(to, v)| *to = f64::from(v));
                }
            }
        }
        let codes = codes.into_iter().map(f64::from).collect();
        let case = s.filled(Case::new(label, op)).fill("codes", Fill::Values(codes)).fill("ring", Fill::Values(ring));
        case.fill("table", Fill::Values(table)).fill("rows", Fill::Values(rows))
    }
}

impl Kernel for QuantizedAttention {
    const NAME: &'static str = "quantized_attention";
    const SIGNATURE: &'static str = "q[m,h,d]:f32 qs[m,h,d]:f32 codes[b,w]:u32 ring[r,c]:f32 rows[m,4]:u32 table[s,e]:u32 \
         -> o[n,m,h,d]:f32 lse[n,m,h]:f32";
    const GRADIENT: Gradient = Gradient::None("caches are for inference only");
    const WGSL: &'static [Wgsl<Self>] = wgsl::QUANTIZED;
    const CUDA: &'static [Cuda<Self>] = cuda::QUANTIZED;

    fn dims(&self) -> Vec<(&'static str, usize)> {
        let own = [("m", self.m), ("h", self.h), ("d", self.d), ("s", self.s), ("e", self.e), ("n", self.parts)];
        let mut dims = own.map(|(name, n)| (name, n as usize)).to_vec();
        let (b, r) = (self.p as usize * self.g as usize, self.s as usize * self.ring as usize);
        dims.extend([("b", b), ("w", self.block().words()), ("r", r), ("c", 2 * self.g as usize * self.d as usize)]);
        dims
    }

    fn check(&self) -> std::result::Result<(), String> {
        if ![2, 4, 8].contains(&self.bits) {
            return Err(format!("quantized_attention: codes of {} bits; there are 2, 4 and 8", self.bits));
        }
        if !self.ring.is_power_of_two() || !self.ring.is_multiple_of(self.page.max(1)) {
            return Err(format!(
                "quantized_attention: a ring of {} rows; it must be a power of two and a multiple of the page of {}",
                self.ring, self.page
            ));
        }
        self.shape().check(Self::NAME)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [q, qs, codes, ring, rows, table, o, lse] = t else { return };
        let (block, d, g) = (self.block(), self.d as usize, self.g as usize);
        let page = block.page;
        let words: Vec<u32> = codes.data.iter().map(|&v| v as u32).collect();
        self.shape().reference([q, qs, rows], [o, lse], |row, key, kv, k, v| {
            if key >= row[3] {
                let at = (self.ring_row(row[0], key) * 2 * g + kv) * d;
                k.copy_from_slice(&ring.data[at..at + d]);
                v.copy_from_slice(&ring.data[at + g * d..][..d]);
                return;
            }
            let place = table.data[row[0] * self.e as usize + key / page] as usize * g + kv;
            let (words, t) = (&words[place * block.words()..(place + 1) * block.words()], key % page);
            let value = |code: u32, p: Parameters| {
                f64::from(code) * f64::from(p.scale) + f64::from(p.zero)
            };
            for c in 0..d {
                k[c] = value(block.code(block.row(words, false, t), c), block.key_parameters(words, c));
                v[c] = value(block.code(block.row(words, true, t), c), block.value_parameters(words, t, c / page));
            }
        });
    }

    fn cpu(&self, mut args: Args<'_>) {
        let quantised = Quantised { words: args.read(2), block: self.block(), ring: self.ring as usize };
        let store = Store { floats: Floats::Single(args.read(3)), quantised: Some(quantised) };
        let queries = [args.read(0), args.read(1)];
        let inputs = Inputs { shape: &self.shape(), queries, rows: args.read(4), table: args.read(5), store };
        attend(&inputs, args.write(6), args.write(7));
    }

    fn operations(&self) -> u64 {
        self.shape().operations()
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let small: u64 = [0, 4, 5].iter().map(|&i| operands[i].bytes()).sum();
        let (shape, block) = (self.shape(), self.block());
        let of_key = operands[2].row_bytes() * u64::from(self.g) / block.page as u64;
        (small + shape.passes() * shape.most_keys() * of_key, operands[6].bytes() + operands[7].bytes())
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 1e-5,
            why: "f32 scores (d products) go through exp: an error of 1e-6 in a score is one of 1e-6 in its weight",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        let formats = |i: usize| match (size, i % 3) {
            (Size::Bench, _) => vec![(2, false), (4, false), (8, false)],
            (_, 0) => vec![(4, false), (2, true)],
            (_, 1) => vec![(8, false), (4, true)],
            _ => vec![(2, false), (4, false), (8, true)],
        };
        let situations = situations(size);
        let cases = situations.iter().enumerate().flat_map(|(i, s)| {
            formats(i).into_iter().map(move |(bits, precise)| QuantizedAttention::case(s, bits, precise, size))
        });
        cases.collect()
    }
}
