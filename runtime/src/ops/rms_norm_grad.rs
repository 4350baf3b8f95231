//! Gradient of RMSNorm with respect to its input.
//!
//! With `g = w ⊙ dy`: `dx_ij = r_i · (g_ij − x_ij · r_i² · mean_l(g_il · x_il))`.

use crate::cpu::parallel;
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::cuda_rows;
use crate::ops::rms_norm::{shapes, workgroup};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RmsNormGrad {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

impl Kernel for RmsNormGrad {
    const NAME: &'static str = "rms_norm_grad";
    const SIGNATURE: &'static str = "x[m,k]:f32|bf16 w[k]:f32 r[m]:f32 dy[m,k]:f32|bf16 -> dx[m,k]:f32|bf16";
    const GRADIENT: Gradient = Gradient::None("it is a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "rms_norm_grad",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.m as usize).with("WORKGROUP", workgroup(op.k)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &["rms_norm_grad_vector_f32", "rms_norm_grad_vector_bf16"],
            hot: true,
            align: 16,
            when: |op, t| cuda_rows::whole_packs(t[0].dtype, op.k),
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["rms_norm_grad_vector_f32", "rms_norm_grad_vector_bf16"]);
                cuda_rows::rows(entry, op.m as usize, op.k, t[0].dtype)
            },
        },
        Cuda {
            name: "plain",
            entries: &["rms_norm_grad_f32", "rms_norm_grad_bf16"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["rms_norm_grad_f32", "rms_norm_grad_bf16"]);
                cuda_rows::rows(entry, op.m as usize, op.k, t[0].dtype)
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, w, r, dy, dx] = t else { return };
        let k = self.k as usize;
        for i in 0..self.m as usize {
            let at = |j: usize| i * k + j;
            let dot: f64 = (0..k).map(|j| w.data[j] * dy.data[at(j)] * x.data[at(j)]).sum();
            let ri = r.data[i];
            for j in 0..k {
                dx.data[at(j)] = ri * (w.data[j] * dy.data[at(j)] - x.data[at(j)] * ri * ri * dot / k as f64);
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let (x, w, r, dy) = (args.read::<f32>(0), args.read::<f32>(1), args.read::<f32>(2), args.read::<f32>(3));
        parallel::rows(args.write::<f32>(4), k, 2 * k, |i, dx| {
            let (x, dy, r) = (&x[i * k..(i + 1) * k], &dy[i * k..(i + 1) * k], r[i]);
            let mean = parallel::sum(k, |j| w[j] * dy[j] * x[j]) / k as f32;
            let shrink = r * r * mean;
            for j in 0..k {
                dx[j] = r * (w[j] * dy[j] - x[j] * shrink);
            }
        });
    }

    fn operations(&self) -> u64 {
        8 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 4e-6, why: "a sum of k products in f32 in a tree, then a difference of two products" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, k)| {
            let case = Case::new(format!("{m}x{k}"), RmsNormGrad { m, k }).fill("r", Fill::Uniform(0.5, 2.0));
            // In a single column the two products cancel where x·r is near 1.
            if k == 1 { case.fill("x", Fill::Uniform(3.0, 4.0)) } else { case }
        };
        shapes(size).into_iter().map(case).collect()
    }
}
