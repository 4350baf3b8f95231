//! Norm, int8 quantisation, query, key and value projection, rotation and cache in one op.
//!
//! The first kernel of a layer in a decode step: rows of `w` are `heads` query heads, then `groups` key heads,
//! then `groups` value heads of `d` elements each (scales `ws[0]`, `ws[1]`, `ws[2]`). Queries and keys are
//! rotated as [`super::rope`] does; keys and values go to row `slot` of the cache as
//! [`super::cache_append`] does. See [`super::ternary_row`] for the product.

use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Size, Tolerance, Wgsl};
use crate::ops::cache_append::append_row;
use crate::ops::rope::Rope;
use crate::ops::ternary_few::{self, Few, of_codes};
use crate::ops::ternary_row::{Inner, inputs};
use crate::ops::wgsl_teams::{any, ternary_variants};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TernaryQkv {
    /// Tokens.
    pub m: u32,
    /// Columns of `x` and `w`.
    pub k: u32,
    /// Elements of `norm`: `k`, or 1 where there is no norm.
    pub p: u32,
    /// Query heads.
    pub heads: u32,
    /// Key heads, and value heads.
    pub groups: u32,
    /// Elements of a head, even.
    pub d: u32,
    /// Rows of the cache.
    pub t: u32,
    /// Rows of the coarse table.
    pub c: u32,
    /// Rows of the fine table.
    pub f: u32,
    /// Added to the mean square.
    pub eps: f32,
}

/// What [`ternary_qkv`] turns and where it puts it.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Query heads, and key heads.
    pub heads: [usize; 2],
    /// Positions `[m]`.
    pub pos: Value,
    /// Rows of the cache `[m]`.
    pub slot: Value,
    /// Coarse and fine table.
    pub tables: [Value; 2],
    /// The cache `[t, 2 · groups · d]`: key heads, then value heads.
    pub cache: Value,
}

/// Records the projections of `x[m,k]` with a norm weight and its epsilon (or none) and codes
/// `w[(heads + 2·groups)·d, k]` with scales `ws[3]`; gives the rotated queries `[m, heads · d]` in f32.
pub fn ternary_qkv(
    g: &mut Graph,
    x: Value,
    norm: Option<(Value, f32)>,
    (w, ws): (Value, Value),
    to: Places,
) -> Result<Value> {
    let (m, n, k) = (g.spec(x).rows() as u32, g.spec(w).rows(), g.spec(w).cols() as u32);
    let [heads, groups] = to.heads;
    let [coarse, fine] = to.tables;
    let d = g.spec(coarse).cols();
    let t = g.spec(to.cache).rows();
    if n != (heads + 2 * groups) * d {
        let message = format!("ternary_qkv: {n} rows of weights are not {heads} + 2·{groups} heads of {d}");
        return Err(Error::Record { graph: g.name().into(), message });
    }
    let (norm, p, eps) = match norm {
        Some((norm, eps)) => (norm, k, eps),
        None => (g.elements(ws, 0, 1)?, 1, 0.0),
    };
    let [heads, groups, d, t] = [heads, groups, d, t].map(|v| v as u32);
    let (c, f) = (g.spec(coarse).rows() as u32, g.spec(fine).rows() as u32);
    let op = TernaryQkv { m, k, p, heads, groups, d, t, c, f, eps };
    let q = g.activation([m as usize, (heads * d) as usize], DType::F32);
    g.record(op, &[x, norm, w, ws, to.pos, to.slot, coarse, fine, q, to.cache])?;
    Ok(q)
}

/// Two pairs that turn together; where a head has an odd number of pairs, two elements and their partners.
fn quads(op: &TernaryQkv) -> usize {
    let pairs = op.d as usize / 2;
    let of_head = if pairs.is_multiple_of(2) { pairs / 2 } else { pairs };
    of_head * (op.heads + 2 * op.groups) as usize
}

/// Says whether the cache is f16.
fn caches(launch: Launch, operands: &[Spec]) -> Launch {
    launch.with("HALF", usize::from(operands[9].dtype == DType::F16))
}

impl TernaryQkv {
    fn inner(&self) -> Inner {
        Inner { m: self.m, n: (self.heads + 2 * self.groups) * self.d, k: self.k, p: self.p, eps: self.eps }
    }

    fn rope(&self, h: u32) -> Rope {
        Rope { m: self.m, h, d: self.d, c: self.c, f: self.f, sign: 1.0 }
    }

    /// Elements of the queries and of the keys of a token.
    fn widths(&self) -> (usize, usize) {
        ((self.heads * self.d) as usize, (self.groups * self.d) as usize)
    }

    /// The matrix that a row of `w` belongs to.
    fn part(&self, j: usize) -> usize {
        let (a, b) = self.widths();
        usize::from(j >= a) + usize::from(j >= a + b)
    }

    /// Pairs of rows of `w` on CUDA: those that turn together.
    fn pairs(&self) -> u32 {
        (self.heads + 2 * self.groups) * (self.d / 2)
    }

    /// The CUDA plan for few tokens, if they and `w` can be taken in vectors.
    fn few(&self, w: &Spec) -> Option<Few> {
        Few::new(w.dtype, self.k).filter(|few| few.pairs_alike(self.d / 2))
    }
}

/// A cache in f16?
fn half(operands: &[Spec]) -> bool {
    operands[9].dtype == DType::F16
}

impl Kernel for TernaryQkv {
    const NAME: &'static str = "ternary_qkv";
    const SIGNATURE: &'static str = "x[m,k]:f32 norm[p]:f32 w[n,k]:t2|t1|t2x16|t1x16 ws[3]:f32 pos[m]:u32 slot[m]:u32 \
         coarse[c,d]:f32 fine[f,d]:f32 -> q[m,a]:f32 &cache[t,b]:f32|f16";
    const GRADIENT: Gradient = Gradient::None("fused for inference; its parts have gradients");
    const WGSL: &'static [Wgsl<Self>] = ternary_variants!("ternary_qkv", 2, any, quads, caches);
    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "few",
            entries: &[
                "ternary_qkv_few1_t2_f32",
                "ternary_qkv_few8_t2_f32",
                "ternary_qkv_few1_t1_f32",
                "ternary_qkv_few8_t1_f32",
                "ternary_qkv_few1_t2_f16",
                "ternary_qkv_few8_t2_f16",
                "ternary_qkv_few1_t1_f16",
                "ternary_qkv_few8_t1_f16",
            ],
            hot: true,
            align: 16,
            when: |op, t| op.few(&t[2]).is_some(),
            launch: |op, t, caps| {
                let entries = if half(t) {
                    [["ternary_qkv_few1_t2_f16", "ternary_qkv_few8_t2_f16"], ["ternary_qkv_few1_t1_f16", "ternary_qkv_few8_t1_f16"]]
                } else {
                    [["ternary_qkv_few1_t2_f32", "ternary_qkv_few8_t2_f32"], ["ternary_qkv_few1_t1_f32", "ternary_qkv_few8_t1_f32"]]
                };
                let few = op.few(&t[2]);
                few.map(|few| few.launch(op.m, op.pairs(), of_codes(&t[2], entries), caps).into()).unwrap_or_default()
            },
        },
        Cuda {
            name: "plain",
            entries: &[
                "ternary_qkv_codes",
                "ternary_qkv_plain_t2_f32",
                "ternary_qkv_plain_t1_f32",
                "ternary_qkv_plain_t2_f16",
                "ternary_qkv_plain_t1_f16",
            ],
            hot: false,
            align: 4,
            when: |_, t| !t[2].dtype.only_cpu(),
            launch: |op, t, _| {
                let entries = if half(t) {
                    ["ternary_qkv_plain_t2_f16", "ternary_qkv_plain_t1_f16"]
                } else {
                    ["ternary_qkv_plain_t2_f32", "ternary_qkv_plain_t1_f32"]
                };
                ternary_few::plain(op.m, op.k, op.pairs(), "ternary_qkv_codes", of_codes(&t[2], entries))
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        let (a, b) = self.widths();
        let own = [("m", self.m), ("k", self.k), ("p", self.p), ("d", self.d), ("t", self.t), ("c", self.c), ("f", self.f)];
        let mut dims = own.map(|(name, d)| (name, d as usize)).to_vec();
        dims.extend([("n", a + 2 * b), ("a", a), ("b", 2 * b)]);
        dims
    }

    fn check(&self) -> std::result::Result<(), String> {
        if !self.d.is_multiple_of(2) {
            return Err(format!("ternary_qkv: the head size {} is odd; pairs (i, i + d/2) need an even one", self.d));
        }
        self.inner().check(Self::NAME)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, norm, w, ws, pos, slot, coarse, fine, q, cache] = t else { return };
        let ((a, b), m) = (self.widths(), self.m as usize);
        let product = self.inner().reference(x, norm, w, |j| ws.data[self.part(j)]);
        let part = |first: usize, width: usize| -> Vec<f64> {
            product.chunks_exact(a + 2 * b).flat_map(|row| row[first..first + width].to_vec()).collect()
        };
        let turned = |first: usize, h: u32| {
            let spec = Spec::new([m, h as usize, self.d as usize], DType::F32);
            let x = RefTensor::new(spec.clone(), part(first, (h * self.d) as usize));
            let mut t = [x, pos.clone(), coarse.clone(), fine.clone(), RefTensor::filled(spec, 0.0)];
            self.rope(h).reference(&mut t);
            t[4].data.clone()
        };
        q.data.copy_from_slice(&turned(0, self.heads));
        let rows = turned(a, self.groups);
        let rows = rows.chunks_exact(b).zip(part(a + b, b).chunks_exact(b)).map(|(k, v)| [k, v].concat()).collect::<Vec<_>>();
        for (row, &at) in rows.iter().zip(&slot.data).filter(|(_, at)| **at < f64::from(self.t)) {
            cache.data[2 * at as usize * b..][..2 * b].copy_from_slice(row);
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let ((a, b), ws) = (self.widths(), args.read::<f32>(3));
        let product = self.inner().cpu(&args, |j| ws[self.part(j)]);
        let (pos, slot) = (args.read::<u32>(4), args.read::<u32>(5));
        let (coarse, fine) = (args.read::<f32>(6), args.read::<f32>(7));
        let dtype = args.spec(9).dtype;
        let (q, cache) = (args.write::<f32>(8), args.write::<u32>(9));
        let mut key = vec![0f32; b];
        for (i, (row, q)) in product.chunks_exact(a + 2 * b).zip(q.chunks_exact_mut(a)).enumerate() {
            self.rope(self.heads).rotate(pos[i], coarse, fine, &row[..a], q);
            self.rope(self.groups).rotate(pos[i], coarse, fine, &row[a..a + b], &mut key);
            append_row(dtype, cache, slot[i], &key, &row[a + b..]);
        }
    }

    fn operations(&self) -> u64 {
        self.inner().operations() + 6 * u64::from(self.m) * u64::from((self.heads + self.groups) * self.d)
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let bytes = |range: std::ops::Range<usize>| operands[range].iter().map(|s| s.bytes()).sum::<u64>();
        let tables = operands[6].row_bytes() + operands[7].row_bytes();
        let rows = u64::from(self.m) * operands[9].row_bytes();
        (bytes(0..6) + u64::from(self.m) * tables, operands[8].bytes() + rows)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 8e-6, why: "a norm (4e-6), an exact integer, products of f32 and one rotation" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(i, (m, k, normed)): (usize, (u32, u32, bool))| {
            let [heads, groups, d] = match size {
                Size::Small => [2, 1, 4],
                Size::Ragged => [[1, 1, 2], [3, 1, 10], [4, 2, 16], [2, 1, 34], [4, 2, 64]][i % 5],
                Size::Bench => [20, 5, 128],
            };
            let op = TernaryQkv { m, k, p: if normed { k } else { 1 }, heads, groups, d, t: 9, c: 5, f: 7, eps: 1e-5 };
            // Distinct rows in falling order; of several the first is past the end.
            let slots = if m == 1 { vec![8.0] } else { (0..m).map(|i| f64::from(9 - i)).collect() };
            let dtype = [DType::F32, DType::F16][i % 2];
            let label = format!("{m}x{k}, {heads}+2·{groups} heads of {d}, {dtype} cache{}", if normed { "" } else { ", no norm" });
            let case = op.inner().fill(Case::new(label, op)).fill("pos", Fill::Integers(0, 40));
            case.fill("slot", Fill::Values(slots)).dtype("cache", dtype)
        };
        Inner::with_layouts(inputs(size).into_iter().enumerate().map(case).collect())
    }
}
