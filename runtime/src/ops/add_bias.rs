//! Adds a row to every row: `y[m,n] = x[m,n] + b[n]`.

use crate::cpu::parallel;
use crate::dtype::Spec;
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{column_sum, elementwise, split};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AddBias {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub n: u32,
}

/// Records `x + b` for `x[..,n]` of any shape and `b[n]`; gives the shape of `x`.
pub fn add_bias(g: &mut Graph, x: Value, b: Value) -> Result<Value> {
    let shape = g.spec(x).shape.clone();
    let (m, n) = (g.spec(x).rows(), g.spec(x).cols());
    let x = g.view(x, [m, n])?;
    let y = g.activation([m, n], g.spec(x).dtype);
    g.record(AddBias { m: m as u32, n: n as u32 }, &[x, b, y])?;
    if shape.len() == 2 { Ok(y) } else { g.view(y, shape) }
}

impl Kernel for AddBias {
    const NAME: &'static str = "add_bias";
    const SIGNATURE: &'static str = "x[m,n]:f32|bf16 b[n]:f32 -> y[m,n]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "add_bias",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.n as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["add_bias_f32", "add_bias_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda_for(&t[2], ["add_bias_f32", "add_bias_bf16"]),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("n", self.n as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, b, y] = t else { return };
        let n = self.n as usize;
        for (i, y) in y.data.iter_mut().enumerate() {
            *y = x.data[i] + b.data[i % n];
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let n = self.n as usize;
        let (x, b) = (args.read::<f32>(0), args.read::<f32>(1));
        parallel::rows(args.write::<f32>(2), n, n, |i, y| {
            for ((y, x), b) in y.iter_mut().zip(&x[i * n..]).zip(b) {
                *y = x + b;
            }
        });
    }

    fn operations(&self) -> u64 {
        u64::from(self.m) * u64::from(self.n)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 1e-7, why: "one f32 sum" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, n)| Case::new(format!("{m}x{n}"), AddBias { m, n });
        elementwise::shapes(size).into_iter().map(case).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dy) = cx.upstream(2) else { return Ok(()) };
        if cx.wanted(0) {
            cx.give(0, dy);
        }
        if cx.wanted(1) {
            let db = cx.accumulator(1)?;
            column_sum::column_sum_add(cx.graph, dy, db)?;
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[1], limit, |_, rows| AddBias { m: rows as u32, ..*self })
    }
}
