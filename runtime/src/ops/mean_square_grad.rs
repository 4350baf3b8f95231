//! Gradient of the mean squared difference: `dx = sign · 2 (x − t) · dl / (m·k)`; the sign is −1
//! for the gradient of `t`.

use crate::cpu::parallel;
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::elementwise::{self, BLOCK};
use crate::ops::mean_square::shapes;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MeanSquareGrad {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
    /// 1 for the gradient of `x`, −1 for that of `t`.
    pub sign: f32,
}

impl Kernel for MeanSquareGrad {
    const NAME: &'static str = "mean_square_grad";
    const SIGNATURE: &'static str = "x[m,k]:f32 t[m,k]:f32 dl[1]:f32 -> dx[m,k]:f32";
    const GRADIENT: Gradient = Gradient::None("it is a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "mean_square_grad",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["mean_square_grad_f32"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda("mean_square_grad_f32", t[3].bytes()),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, t, dl, dx] = t else { return };
        let n = x.data.len() as f64;
        for ((dx, x), t) in dx.data.iter_mut().zip(&x.data).zip(&t.data) {
            *dx = f64::from(self.sign) * 2.0 * (x - t) * dl.data[0] / n;
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (x, t, dl) = (args.read::<f32>(0), args.read::<f32>(1), args.read::<f32>(2));
        let factor = 2.0 * self.sign * dl[0] / x.len() as f32;
        parallel::rows(args.write::<f32>(3), BLOCK, BLOCK, |block, dx| {
            let first = block * BLOCK;
            for ((dx, x), t) in dx.iter_mut().zip(&x[first..]).zip(&t[first..]) {
                *dx = factor * (x - t);
            }
        });
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 1e-6, why: "a difference, a product and a division (2.5 ULP in WGSL) in f32" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let signs = [1.0, -1.0];
        let case = |(m, k)| signs.map(|sign| Case::new(format!("{m}x{k} sign {sign}"), MeanSquareGrad { m, k, sign }));
        shapes(size).into_iter().flat_map(case).collect()
    }
}
