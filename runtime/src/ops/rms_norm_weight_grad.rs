//! Gradient of RMSNorm with respect to its weight, added to an accumulator.
//!
//! `dw_j += Σ_i dy_ij · x_ij · r_i`, rows in order.

use crate::cpu::parallel;
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::cuda_rows;
use crate::ops::rms_norm::shapes;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RmsNormWeightGrad {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

impl Kernel for RmsNormWeightGrad {
    const NAME: &'static str = "rms_norm_weight_grad";
    const SIGNATURE: &'static str = "x[m,k]:f32|bf16 r[m]:f32 dy[m,k]:f32|bf16 -> &dw[k]:f32";
    const GRADIENT: Gradient = Gradient::None("it is a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "rms_norm_weight_grad",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.k as usize).div_ceil(16)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &[
                "rms_norm_weight_grad_vector_f32",
                "rms_norm_weight_grad_vector_bf16",
                "rms_norm_weight_grad_add",
            ],
            hot: true,
            align: 16,
            when: |op, t| cuda_rows::whole_packs(t[0].dtype, op.k),
            launch: |op, t, _| {
                let entry = cuda_rows::entry(
                    t[0].dtype,
                    ["rms_norm_weight_grad_vector_f32", "rms_norm_weight_grad_vector_bf16"],
                );
                cuda_rows::columns(entry, "rms_norm_weight_grad_add", op.m, op.k, t[0].dtype)
            },
        },
        Cuda {
            name: "plain",
            entries: &["rms_norm_weight_grad_f32", "rms_norm_weight_grad_bf16", "rms_norm_weight_grad_add"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["rms_norm_weight_grad_f32", "rms_norm_weight_grad_bf16"]);
                cuda_rows::columns(entry, "rms_norm_weight_grad_add", op.m, op.k, t[0].dtype)
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, r, dy, dw] = t else { return };
        let k = self.k as usize;
        for j in 0..k {
            let column = (0..self.m as usize).map(|i| dy.data[i * k + j] * x.data[i * k + j] * r.data[i]);
            dw.data[j] += column.sum::<f64>();
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        const BLOCK: usize = 64;
        let (m, k) = (self.m as usize, self.k as usize);
        let (x, r, dy) = (args.read::<f32>(0), args.read::<f32>(1), args.read::<f32>(2));
        parallel::rows(args.write::<f32>(3), BLOCK, BLOCK * m, |block, dw| {
            let mut sums = [0f32; BLOCK];
            for (i, r) in r.iter().enumerate() {
                let first = i * k + block * BLOCK;
                let (x, dy) = (&x[first..first + dw.len()], &dy[first..first + dw.len()]);
                for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
                    *sum += dy * x * r;
                }
            }
            dw.iter_mut().zip(sums).for_each(|(dw, sum)| *dw += sum);
        });
    }

    fn operations(&self) -> u64 {
        3 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Sum { max: 1e-5, why: "a sum of m products in f32, in order" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case =
            |(m, k)| Case::new(format!("{m}x{k}"), RmsNormWeightGrad { m, k }).fill("r", Fill::Uniform(0.5, 2.0));
        let mut shapes = shapes(size);
        if size == Size::Ragged {
            // More rows than fit into runs of 16, and columns that end inside a block.
            shapes.extend([(2100, 8), (300, 296)]);
        }
        shapes.into_iter().map(case).collect()
    }
}
