//! Joins the parts of attention whose keys were split: `y = Σ_j exp(lse_j − L) · o_j`, `L = ln Σ_j exp(lse_j)`.
//!
//! A part that saw nothing has `lse = −1e30`; where all are empty, `y = 0` (Flash-Decoding, Dao et al. 2023).

use crate::cpu::math::exp;
use crate::cpu::parallel;
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::attention::NOTHING;
use crate::random::Random;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AttentionJoin {
    /// Parts.
    pub n: u32,
    /// Query rows.
    pub m: u32,
    /// Query heads.
    pub h: u32,
    /// Elements of a head.
    pub d: u32,
}

/// Records the join of `o[n, m, h, d]` with `lse[n, m, h]`; gives `[m, h, d]`. One part is the result already.
pub fn attention_join(g: &mut Graph, (o, lse): (Value, Value)) -> Result<Value> {
    let &[n, m, h, d] = &g.spec(o).shape[..] else {
        let message = format!("attention_join: o ({}) must be [parts, rows, heads, head size]", g.spec(o));
        return Err(crate::error::Error::Record { graph: g.name().into(), message });
    };
    if n == 1 {
        return g.view(o, [m, h, d]);
    }
    let y = g.activation([m, h, d], DType::F32);
    let [n, m, h, d] = [n, m, h, d].map(|x| x as u32);
    g.record(AttentionJoin { n, m, h, d }, &[o, lse, y])?;
    Ok(y)
}

impl Kernel for AttentionJoin {
    const NAME: &'static str = "attention_join";
    const SIGNATURE: &'static str = "o[n,m,h,d]:f32 lse[n,m,h]:f32 -> y[m,h,d]:f32";
    const GRADIENT: Gradient = Gradient::None("a part of decoding, which is for inference only");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "attention_join",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.h as usize * op.d as usize).div_ceil(256)),
    }];
    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["attention_join"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, _, _| {
            let rows = op.m as usize * op.h as usize;
            CudaKernel::new("attention_join", rows, 128).grid(op.d.div_ceil(128) as usize, 1).into()
        },
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        [("n", self.n), ("m", self.m), ("h", self.h), ("d", self.d)].map(|(name, n)| (name, n as usize)).to_vec()
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [o, lse, y] = t else { return };
        let (n, d, rows) = (self.n as usize, self.d as usize, self.m as usize * self.h as usize);
        for row in 0..rows {
            let of = |j: usize| lse.data[j * rows + row];
            let most = (0..n).map(of).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = (0..n).map(|j| (of(j) - most).exp()).sum();
            for l in 0..d {
                let sum: f64 = (0..n).map(|j| (of(j) - most).exp() * o.data[(j * rows + row) * d + l]).sum();
                y.data[row * d + l] = if most <= f64::from(NOTHING) { 0.0 } else { sum / total };
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (o, lse) = (args.read::<f32>(0), args.read::<f32>(1));
        let (n, d, rows) = (self.n as usize, self.d as usize, self.m as usize * self.h as usize);
        parallel::rows(args.write::<f32>(2), d, 2 * n * d, |row, y| {
            let of = |j: usize| lse[j * rows + row];
            let most = (0..n).map(of).fold(f32::NEG_INFINITY, f32::max);
            y.fill(0.0);
            if most <= NOTHING {
                return;
            }
            let total: f32 = (0..n).map(|j| exp(of(j) - most)).sum();
            for j in 0..n {
                let share = exp(of(j) - most) / total;
                if share > 0.0 {
                    let part = &o[(j * rows + row) * d..][..d];
                    y.iter_mut().zip(part).for_each(|(y, o)| *y += share * o);
                }
            }
        });
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.n) * u64::from(self.m) * u64::from(self.h) * u64::from(self.d)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 4e-6, why: "weights by exp and a sum of n products in f32" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[[u32; 4]] = match size {
            Size::Small => &[[2, 1, 2, 4]],
            Size::Ragged => &[[2, 1, 1, 2], [5, 3, 7, 34], [64, 1, 9, 128], [3, 17, 2, 256]],
            Size::Bench => &[[32, 1, 32, 128]],
        };
        let case = |&[n, m, h, d]: &[u32; 4]| {
            let mut random = Random::new(u64::from(n));
            // Parts of different weight; some saw nothing, and of the last row none saw anything.
            let rows = m * h;
            let lse = (0..n * rows).map(|i| match (i % rows + 1 == rows && rows > 1, random.below(4)) {
                (true, _) | (_, 0) => f64::from(NOTHING),
                _ => 6.0 * random.normal(),
            });
            let lse = Fill::Values(lse.collect());
            Case::new(format!("{n} parts of {m} rows, {h} heads of {d}"), AttentionJoin { n, m, h, d }).fill("lse", lse)
        };
        sizes.iter().map(case).collect()
    }
}
