//! Gradient of the cross entropy with z-loss with respect to the logits.
//!
//! `dlogits_ij = dl_i · (exp(x_ij - lse_i) · (1 + 2 z lse_i) - [j = target_i])`, and 0 in the
//! rows whose target is ignored.

use crate::cpu::{math, parallel};
use crate::dtype::Spec;
use crate::op::{
    Args, Case, Cuda, CudaKernel, CudaLaunch, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl,
};
use crate::ops::cross_entropy::{shapes, targets};
use crate::ops::cuda_rows;
use crate::reference::RefTensor;

/// Elements of one row that a workgroup of the shader covers.
const SPAN: usize = 1024;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CrossEntropyGrad {
    /// Rows.
    pub m: u32,
    /// Vocabulary.
    pub v: u32,
    /// Weight of the z-loss.
    pub z: f32,
}

impl CrossEntropyGrad {
    /// Blocks that each cover [`cuda_rows::HELD`] elements a thread of one row.
    fn cuda(&self, operands: &[Spec], entries: [&'static str; 2]) -> CudaLaunch {
        let entry = cuda_rows::entry(operands[0].dtype, entries);
        let block = cuda_rows::long_row_block(self.v, 256);
        let spans = self.v.div_ceil(block * cuda_rows::HELD);
        CudaKernel::new(entry, self.m as usize * spans as usize, block).into()
    }
}

impl Kernel for CrossEntropyGrad {
    const NAME: &'static str = "cross_entropy_grad";
    const SIGNATURE: &'static str = "logits[m,v]:f32|bf16 target[m]:u32 lse[m]:f32 dl[m]:f32 -> dlogits[m,v]:f32|bf16";
    const GRADIENT: Gradient = Gradient::None("it is a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "cross_entropy_grad",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.m as usize * (op.v as usize).div_ceil(SPAN)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &["cross_entropy_grad_vector_f32", "cross_entropy_grad_vector_bf16"],
            hot: true,
            align: 16,
            when: |op, t| cuda_rows::whole_packs(t[0].dtype, op.v),
            launch: |op, t, _| op.cuda(t, ["cross_entropy_grad_vector_f32", "cross_entropy_grad_vector_bf16"]),
        },
        Cuda {
            name: "plain",
            entries: &["cross_entropy_grad_f32", "cross_entropy_grad_bf16"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| op.cuda(t, ["cross_entropy_grad_f32", "cross_entropy_grad_bf16"]),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("v", self.v as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [logits, target, lse, dl, dlogits] = t else { return };
        let v = self.v as usize;
        for i in 0..self.m as usize {
            let picked = target.data[i] as usize;
            let shrink = 1.0 + 2.0 * f64::from(self.z) * lse.data[i];
            for j in 0..v {
                let p = (logits.data[i * v + j] - lse.data[i]).exp();
                let hit = if j == picked { 1.0 } else { 0.0 };
                dlogits.data[i * v + j] = if picked < v { dl.data[i] * (p * shrink - hit) } else { 0.0 };
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let v = self.v as usize;
        let (logits, target) = (args.read::<f32>(0), args.read::<u32>(1));
        let (lse, dl) = (args.read::<f32>(2), args.read::<f32>(3));
        parallel::rows(args.write::<f32>(4), v, 4 * v, |i, dx| {
            let (lse, dl, picked) = (lse[i], dl[i], target[i] as usize);
            if picked >= v {
                dx.fill(0.0);
                return;
            }
            let row = &logits[i * v..(i + 1) * v];
            math::exp_scaled(dx, row, lse, dl * (1.0 + 2.0 * self.z * lse));
            dx[picked] = dl * (math::exp(row[picked] - lse) * (1.0 + 2.0 * self.z * lse) - 1.0);
        });
    }

    fn operations(&self) -> u64 {
        4 * u64::from(self.m) * u64::from(self.v)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 4e-6,
            why: "the difference x - lse and an exponential (WGSL: 3 + 2|x| ULP, so |x| near 0 where it is largest; \
                  CPU: a polynomial within 2 ULP), two products and a difference",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, v): (u32, u32)| {
            let lse = f64::from(v).ln();
            let case = Case::new(format!("{m}x{v}"), CrossEntropyGrad { m, v, z: 1e-2 })
                .fill("target", Fill::Values(targets(m, v)))
                .fill("lse", Fill::Uniform(lse + 1.0, lse + 2.0));
            // The error of one element is relative to itself: p must stay away from 1.
            if v == 1 { case.fill("logits", Fill::Uniform(-1.0, 0.0)) } else { case }
        };
        shapes(size).into_iter().map(case).collect()
    }
}
