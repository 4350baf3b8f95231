//! Global norm from sums of squares: `y = scale · sqrt(Σ_i x_i)`, in a fixed order.
//!
//! Each slot of `x[n]` is the sum of squares of one tensor's gradient; `scale` is what the
//! gradients are still to be multiplied by. A sum that overflows gives ∞, which the optimiser's
//! row takes as a step to be skipped.

use crate::cpu::parallel;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::rms_norm::workgroup;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Norm {
    /// Elements.
    pub n: u32,
    /// Factor of the result.
    pub scale: f32,
}

/// Records `scale · sqrt(Σ x)` of a value of any shape, as `[1]`.
pub fn norm(g: &mut Graph, x: Value, scale: f32) -> Result<Value> {
    let n = g.spec(x).elements();
    let x = g.view(x, [n])?;
    g.apply(Norm { n: n as u32, scale }, &[x])
}

impl Kernel for Norm {
    const NAME: &'static str = "norm";
    const SIGNATURE: &'static str = "x[n]:f32 -> y[1]:f32";
    const GRADIENT: Gradient = Gradient::None("it is taken of gradients");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "norm",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(1).with("WORKGROUP", workgroup(op.n)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["norm_f32"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, _, _| CudaKernel::new("norm_f32", 1, op.n.next_multiple_of(32).min(1024)).into(),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("n", self.n as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        t[1].data[0] = f64::from(self.scale) * t[0].data.iter().sum::<f64>().sqrt();
    }

    fn cpu(&self, mut args: Args<'_>) {
        let x = args.read::<f32>(0);
        args.write::<f32>(1)[0] = self.scale * parallel::sum(x.len(), |i| x[i]).sqrt();
    }

    fn operations(&self) -> u64 {
        u64::from(self.n) + 2
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 2e-6,
            why: "a sum of n positive numbers in f32 in a tree and a square root (WGSL: 5 ULP)",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[u32] = match size {
            Size::Small => &[5],
            Size::Ragged => &[1, 33, 1031],
            Size::Bench => &[256],
        };
        let case = |&n| Case::new(format!("{n}"), Norm { n, scale: 0.25 }).fill("x", Fill::Uniform(0.0, 4.0));
        sizes.iter().map(case).collect()
    }
}
