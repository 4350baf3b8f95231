//! Copies a tensor: `y = x`.

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
pub struct Copy {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

/// Records `y = x` for any equal shapes.
pub fn copy_into(g: &mut Graph, x: Value, y: Value) -> Result<()> {
    let (m, k) = (g.spec(x).rows(), g.spec(x).cols());
    let (x, y) = (g.view(x, [m, k])?, g.view(y, [m, k])?);
    g.record(Copy { m: m as u32, k: k as u32 }, &[x, y])
}

impl Kernel for Copy {
    const NAME: &'static str = "copy";
    const SIGNATURE: &'static str = "x[m,k]:f32|bf16 -> y[m,k]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "copy",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["copy_f32", "copy_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda_for(&t[1], ["copy_f32", "copy_bf16"]),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, y] = t else { return };
        y.data.copy_from_slice(&x.data);
    }

    fn cpu(&self, mut args: Args<'_>) {
        let x = args.read::<f32>(0);
        parallel::rows(args.write::<f32>(1), elementwise::BLOCK, elementwise::BLOCK, |block, y| {
            y.copy_from_slice(&x[block * elementwise::BLOCK..][..y.len()]);
        });
    }

    fn operations(&self) -> u64 {
        0
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, k)| Case::new(format!("{m}x{k}"), Copy { m, k });
        elementwise::shapes(size).into_iter().map(case).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        if let (Some(dy), true) = (cx.upstream(1), cx.wanted(0)) {
            cx.give(0, dy);
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[], limit, |_, rows| Copy { m: rows as u32, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;

    #[test]
    fn pieces_equal_the_whole() {
        let case = Case::new("", Copy { m: 10, k: 7 });
        assert_eq!(pieces::compare(&case, 4 * 7 * 4, &[]), 3);
    }
}
