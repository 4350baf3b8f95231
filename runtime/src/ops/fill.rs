//! Sets every element: `y[m,k] = value`.

use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{elementwise, split};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Fill {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
    /// The value.
    pub value: f32,
}

/// Records `y = value` for a tensor of any shape.
pub fn fill(g: &mut Graph, y: Value, value: f32) -> Result<()> {
    let (m, k) = (g.spec(y).rows() as u32, g.spec(y).cols() as u32);
    let y = g.view(y, [m as usize, k as usize])?;
    g.record(Fill { m, k, value }, &[y])
}

impl Kernel for Fill {
    const NAME: &'static str = "fill";
    const SIGNATURE: &'static str = "-> y[m,k]:f32";
    const GRADIENT: Gradient = Gradient::None("the output is a constant");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "fill",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["fill_f32"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda("fill_f32", t[0].bytes()),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        t[0].data.fill(f64::from(self.value));
    }

    fn cpu(&self, mut args: Args<'_>) {
        args.write::<f32>(0).fill(self.value);
    }

    fn operations(&self) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[(u32, u32)] = match size {
            Size::Small => &[(2, 8)],
            Size::Ragged => &[(1, 1), (7, 33)],
            Size::Bench => &[(4096, 1024)],
        };
        sizes.iter().map(|&(m, k)| Case::new(format!("{m}x{k}"), Fill { m, k, value: 1.5 })).collect()
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[], limit, |_, rows| Fill { m: rows as u32, ..*self })
    }
}

/// A new activation of zeros.
pub fn zeros(g: &mut Graph, shape: impl Into<Vec<usize>>) -> Result<Value> {
    let y = g.activation(shape, DType::F32);
    fill(g, y, 0.0)?;
    Ok(y)
}
