//! Cross entropy of one target a row, with z-loss (Chowdhery et al. 2022, PaLM, section 5).
//!
//! `lse_i = log Σ_j exp(x_ij)` (shifted by the row's maximum) and
//! `loss_i = lse_i - x_i,t + z · lse_i²` with `t = target_i`, in nats. A target of `v` or more,
//! such as [`IGNORED`], gives a loss of 0. `lse` is an output of its own because the gradient
//! needs it.

use crate::cpu::{math, parallel};
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{
    Args, Case, Cuda, CudaKernel, CudaLaunch, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl,
};
use crate::ops::cross_entropy_grad::CrossEntropyGrad;
use crate::ops::cuda_rows;
use crate::ops::rms_norm::workgroup;
use crate::reference::RefTensor;

/// The target of a row that does not count.
pub const IGNORED: u32 = u32::MAX;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CrossEntropy {
    /// Rows.
    pub m: u32,
    /// Vocabulary.
    pub v: u32,
    /// Weight of the z-loss.
    pub z: f32,
}

/// Records the loss `[m]` of `logits[m,v]` (or any shape with last extent `v`) against `target[m]`.
pub fn cross_entropy(g: &mut Graph, logits: Value, target: Value, z: f32) -> Result<Value> {
    let (m, v) = (g.spec(logits).rows(), g.spec(logits).cols());
    let logits = g.view(logits, [m, v])?;
    let target = g.view(target, [m])?;
    let loss = g.activation([m], DType::F32);
    let lse = g.activation([m], DType::F32);
    g.record(CrossEntropy { m: m as u32, v: v as u32, z }, &[logits, target, loss, lse])?;
    Ok(loss)
}

impl CrossEntropy {
    /// A block a row.
    fn cuda(&self, operands: &[Spec], entries: [&'static str; 2]) -> CudaLaunch {
        let entry = cuda_rows::entry(operands[0].dtype, entries);
        CudaKernel::new(entry, self.m as usize, cuda_rows::long_row_block(self.v, 512)).into()
    }
}

impl Kernel for CrossEntropy {
    const NAME: &'static str = "cross_entropy";
    const SIGNATURE: &'static str = "logits[m,v]:f32|bf16 target[m]:u32 -> loss[m]:f32 lse[m]:f32";
    const GRADIENT: Gradient = Gradient::Rule;
    const SAVED: &'static [&'static str] = &["lse"];
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "cross_entropy",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.m as usize).with("WORKGROUP", workgroup(op.v)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &["cross_entropy_vector_f32", "cross_entropy_vector_bf16"],
            hot: true,
            align: 16,
            when: |op, t| cuda_rows::whole_packs(t[0].dtype, op.v),
            launch: |op, t, _| op.cuda(t, ["cross_entropy_vector_f32", "cross_entropy_vector_bf16"]),
        },
        Cuda {
            name: "plain",
            entries: &["cross_entropy_f32", "cross_entropy_bf16"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| op.cuda(t, ["cross_entropy_f32", "cross_entropy_bf16"]),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("v", self.v as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [logits, target, loss, lse] = t else { return };
        for i in 0..self.m as usize {
            let row = logits.row(i);
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            lse.data[i] = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            let picked = row.get(target.data[i] as usize);
            loss.data[i] = picked.map_or(0.0, |x| lse.data[i] - x + f64::from(self.z) * lse.data[i] * lse.data[i]);
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let v = self.v as usize;
        let (logits, target) = (args.read::<f32>(0), args.read::<u32>(1));
        let (loss, lse) = (args.write::<f32>(2), args.write::<f32>(3));
        parallel::rows2(loss, 1, lse, 1, 4 * v, |i, loss, lse| {
            let row = &logits[i * v..(i + 1) * v];
            let max = math::max(row);
            lse[0] = max + math::exp_sum(row, max).ln();
            let picked = row.get(target[i] as usize);
            loss[0] = picked.map_or(0.0, |x| lse[0] - x + self.z * lse[0] * lse[0]);
        });
    }

    fn operations(&self) -> u64 {
        4 * u64::from(self.m) * u64::from(self.v)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 6e-6,
            why: "a sum of v exponentials in f32, in a tree on GPUs (WGSL's exp is within 3 + 2|x| ULP, those with \
                  large |x| weigh little; the CPU's own polynomial within 2 ULP), a logarithm (2^-21) and a difference",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        let mut cases: Vec<Case> = shapes(size)
            .into_iter()
            .map(|(m, v)| {
                let op = CrossEntropy { m, v, z: 1e-2 };
                let case = Case::new(format!("{m}x{v}"), op).fill("target", Fill::Values(targets(m, v)));
                // Of one logit only the z-loss is left, which must not drown in the error of log(1).
                if v == 1 { case.fill("logits", Fill::Uniform(20.0, 30.0)) } else { case }
            })
            .collect();
        if size != Size::Bench {
            let (m, v) = (4, 300);
            let spread = Case::new("logits far apart and far from zero", CrossEntropy { m, v, z: 1e-5 });
            let spread = spread.fill("logits", Fill::Uniform(-200.0, -20.0));
            cases.push(spread.fill("target", Fill::Values(targets(m, v))));
        }
        cases
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let (Some(dl), true) = (cx.upstream(2), cx.wanted(0)) else { return Ok(()) };
        let CrossEntropy { m, v, z } = *self;
        let operands = [cx.operand(0), cx.operand(1), cx.operand(3), dl];
        let dlogits = cx.graph.apply(CrossEntropyGrad { m, v, z }, &operands)?;
        cx.give(0, dlogits);
        Ok(())
    }
}

/// Sizes for the rows of this loss.
pub(crate) fn shapes(size: Size) -> Vec<(u32, u32)> {
    match size {
        Size::Small => vec![(5, 7)],
        Size::Ragged => vec![(1, 1), (7, 33), (3, 1031), (2, 8296), (2, 9001)],
        Size::Bench => vec![(1, 65_536), (512, 65_536), (64, 131_072)],
    }
}

/// Targets over the whole vocabulary; in cases of several rows the second row is ignored and the
/// third has a target just past the end.
pub(crate) fn targets(m: u32, v: u32) -> Vec<f64> {
    let target = |i: u32| match i {
        1 => IGNORED,
        2 => v,
        _ => (u64::from(i) * 7919 % u64::from(v)) as u32,
    };
    (0..m).map(|i| f64::from(target(i))).collect()
}
