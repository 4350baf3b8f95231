//! Sum of two tensors of one shape: `y = a + b`.

use crate::cpu::parallel;
use crate::dtype::Spec;
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{elementwise, split};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Add {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

/// Records `a + b` for any equal shapes; gives the shape of `a`.
pub fn add(g: &mut Graph, a: Value, b: Value) -> Result<Value> {
    let shape = g.spec(a).shape.clone();
    let (m, k) = (g.spec(a).rows(), g.spec(a).cols());
    let (a, b) = (g.view(a, [m, k])?, g.view(b, [m, k])?);
    let y = g.activation([m, k], g.spec(a).dtype);
    g.record(Add { m: m as u32, k: k as u32 }, &[a, b, y])?;
    if shape.len() == 2 { Ok(y) } else { g.view(y, shape) }
}

impl Kernel for Add {
    const NAME: &'static str = "add";
    const SIGNATURE: &'static str = "a[m,k]:f32|bf16 b[m,k]:f32|bf16 -> y[m,k]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "add",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["add_f32", "add_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda_for(&t[2], ["add_f32", "add_bf16"]),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [a, b, y] = t else { return };
        for ((y, a), b) in y.data.iter_mut().zip(&a.data).zip(&b.data) {
            *y = a + b;
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (a, b) = (args.read::<f32>(0), args.read::<f32>(1));
        parallel::rows(args.write::<f32>(2), elementwise::BLOCK, elementwise::BLOCK, |block, y| {
            let first = block * elementwise::BLOCK;
            for ((y, a), b) in y.iter_mut().zip(&a[first..]).zip(&b[first..]) {
                *y = a + b;
            }
        });
    }

    fn operations(&self) -> u64 {
        u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 1e-7, why: "one f32 sum" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, k)| Case::new(format!("{m}x{k}"), Add { m, k });
        elementwise::shapes(size).into_iter().map(case).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dy) = cx.upstream(2) else { return Ok(()) };
        for i in [0, 1] {
            if cx.wanted(i) {
                cx.give(i, dy);
            }
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[], limit, |_, rows| Add { m: rows as u32, ..*self })
    }
}
