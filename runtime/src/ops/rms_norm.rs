//! RMSNorm over the last axis (Zhang and Sennrich 2019, equation 4).
//!
//! `r_i = 1 / sqrt(mean_j x_ij² + eps)`, `y_ij = w_j · x_ij · r_i`. The factor `r` is an output
//! of its own because the gradient of the weight needs it.

use crate::cpu::parallel;
use crate::dtype::DType;
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::{cuda_rows, rms_norm_grad, rms_norm_weight_grad};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RmsNorm {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
    /// Added to the mean square.
    pub eps: f32,
}

/// Records the norm of `x[m,k]` (or any shape with last extent `k`) with weight `w[k]`.
pub fn rms_norm(g: &mut Graph, x: Value, w: Value, eps: f32) -> Result<Value> {
    let shape = g.spec(x).shape.clone();
    let (m, k) = (g.spec(x).rows(), g.spec(x).cols());
    let x = g.view(x, [m, k])?;
    let y = g.activation([m, k], g.spec(x).dtype);
    let r = g.activation([m], DType::F32);
    g.record(RmsNorm { m: m as u32, k: k as u32, eps }, &[x, w, y, r])?;
    if shape.len() == 2 { Ok(y) } else { g.view(y, shape) }
}

impl Kernel for RmsNorm {
    const NAME: &'static str = "rms_norm";
    const SIGNATURE: &'static str = "x[m,k]:f32|bf16 w[k]:f32 -> y[m,k]:f32|bf16 r[m]:f32";
    const GRADIENT: Gradient = Gradient::Rule;
    const SAVED: &'static [&'static str] = &["r"];
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "rms_norm",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.m as usize).with("WORKGROUP", workgroup(op.k)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &["rms_norm_vector_f32", "rms_norm_vector_bf16"],
            hot: true,
            align: 16,
            when: |op, t| cuda_rows::whole_packs(t[0].dtype, op.k),
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["rms_norm_vector_f32", "rms_norm_vector_bf16"]);
                cuda_rows::rows(entry, op.m as usize, op.k, t[0].dtype)
            },
        },
        Cuda {
            name: "plain",
            entries: &["rms_norm_f32", "rms_norm_bf16"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["rms_norm_f32", "rms_norm_bf16"]);
                cuda_rows::rows(entry, op.m as usize, op.k, t[0].dtype)
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, w, y, r] = t else { return };
        let k = self.k as usize;
        for i in 0..self.m as usize {
            let mean = x.row(i).iter().map(|v| v * v).sum::<f64>() / k as f64;
            r.data[i] = 1.0 / (mean + f64::from(self.eps)).sqrt();
            for j in 0..k {
                y.data[i * k + j] = w.data[j] * x.data[i * k + j] * r.data[i];
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let (x, w) = (args.read::<f32>(0), args.read::<f32>(1));
        let (y, r) = (args.write::<f32>(2), args.write::<f32>(3));
        parallel::rows2(y, k, r, 1, k, |i, y, r| {
            r[0] = norm_row(&x[i * k..(i + 1) * k], w, self.eps, y);
        });
    }

    fn operations(&self) -> u64 {
        4 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 4e-6, why: "a sum of k squares in f32 in a tree, one inverse square root (2 ULP), two products" }
    }

    fn cases(size: Size) -> Vec<Case> {
        shapes(size).into_iter().map(|(m, k)| Case::new(format!("{m}x{k}"), RmsNorm { m, k, eps: 1e-5 })).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dy) = cx.upstream(2) else { return Ok(()) };
        let (x, w, r) = (cx.operand(0), cx.operand(1), cx.operand(3));
        let RmsNorm { m, k, .. } = *self;
        if cx.wanted(0) {
            let dx = cx.graph.apply(rms_norm_grad::RmsNormGrad { m, k }, &[x, w, r, dy])?;
            cx.give(0, dx);
        }
        if cx.wanted(1) {
            let dw = cx.accumulator(1)?;
            cx.graph.record(rms_norm_weight_grad::RmsNormWeightGrad { m, k }, &[x, r, dy, dw])?;
        }
        Ok(())
    }
}

/// One row; gives its factor.
pub(super) fn norm_row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    let mean = parallel::sum(x.len(), |j| x[j] * x[j]) / x.len() as f32;
    let r = 1.0 / (mean + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = w * (x * r);
    }
    r
}

/// Sizes for the norm's rows.
pub(crate) fn shapes(size: Size) -> Vec<(u32, u32)> {
    match size {
        Size::Small => vec![(3, 8)],
        Size::Ragged => vec![(1, 1), (5, 67), (2, 1031), (11, 64), (3, 2568), (2, 8264)],
        Size::Bench => vec![(1, 768), (512, 768), (512, 2560)],
    }
}

/// Threads that share a row of `k` elements: a power of two, at most 256.
pub(crate) fn workgroup(k: u32) -> usize {
    (k as usize).div_ceil(4).next_power_of_two().clamp(32, 256)
}
