//! Mean squared difference: `loss = Σ (x − t)² / (m·k)`.

use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, CudaLaunch, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::mean_square_grad::MeanSquareGrad;
use crate::ops::reduce::sum_of;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MeanSquare {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

/// Records the mean squared difference of `x` and `t` (any equal shapes); gives `[1]`.
pub fn mean_square(g: &mut Graph, x: Value, t: Value) -> Result<Value> {
    let (m, k) = (g.spec(x).rows(), g.spec(x).cols());
    let (x, t) = (g.view(x, [m, k])?, g.view(t, [m, k])?);
    g.apply(MeanSquare { m: m as u32, k: k as u32 }, &[x, t])
}

impl Kernel for MeanSquare {
    const NAME: &'static str = "mean_square";
    const SIGNATURE: &'static str = "x[m,k]:f32 t[m,k]:f32 -> loss[1]:f32";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "mean_square",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |_, _| Launch::groups(1).with("WORKGROUP", 256),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["mean_square_partial", "mean_square_total"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, _, _| {
            // Blocks of the first step, as `partials` in the kernel has it.
            let blocks = (op.m as usize * op.k as usize).div_ceil(4096).min(1024);
            let partial = CudaKernel::new("mean_square_partial", blocks, 256);
            let total = CudaKernel::new("mean_square_total", 1, 256);
            CudaLaunch { kernels: vec![partial, total], scratch: 4 * blocks as u64 }
        },
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, t, loss] = t else { return };
        let sum: f64 = x.data.iter().zip(&t.data).map(|(x, t)| (x - t) * (x - t)).sum();
        loss.data[0] = sum / x.data.len() as f64;
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (x, t) = (args.read::<f32>(0), args.read::<f32>(1));
        let sum = sum_of(x.len().min(t.len()), |i| (x[i] - t[i]) * (x[i] - t[i]));
        args.write::<f32>(2)[0] = (sum / x.len() as f64) as f32;
    }

    fn operations(&self) -> u64 {
        3 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 1e-5, why: "a sum of m·k squares in f32 in a tree" }
    }

    fn cases(size: Size) -> Vec<Case> {
        shapes(size).into_iter().map(|(m, k)| Case::new(format!("{m}x{k}"), MeanSquare { m, k })).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dl) = cx.upstream(2) else { return Ok(()) };
        let (x, t) = (cx.operand(0), cx.operand(1));
        for (i, sign) in [(0, 1.0), (1, -1.0)] {
            if cx.wanted(i) {
                let gradient = cx.graph.apply(MeanSquareGrad { m: self.m, k: self.k, sign }, &[x, t, dl])?;
                cx.give(i, gradient);
            }
        }
        Ok(())
    }
}

/// `(m, k)` of test cases.
pub(super) fn shapes(size: Size) -> Vec<(u32, u32)> {
    match size {
        Size::Small => vec![(3, 4)],
        Size::Ragged => vec![(1, 1), (5, 67), (3, 5003)],
        Size::Bench => vec![(1, 768), (512, 768)],
    }
}
