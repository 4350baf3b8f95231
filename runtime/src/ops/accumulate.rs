//! Adds a scaled tensor to another: `y += scale · x`.

use crate::cpu::parallel;
use crate::dtype::Spec;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{elementwise, split};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Accumulate {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
    /// Factor of `x`.
    pub scale: f32,
}

/// Records `y += scale · x` for any equal shapes.
pub fn accumulate(g: &mut Graph, x: Value, y: Value, scale: f32) -> Result<()> {
    let (m, k) = (g.spec(x).rows(), g.spec(x).cols());
    let (x, y) = (g.view(x, [m, k])?, g.view(y, [m, k])?);
    g.record(Accumulate { m: m as u32, k: k as u32, scale }, &[x, y])
}

impl Kernel for Accumulate {
    const NAME: &'static str = "accumulate";
    const SIGNATURE: &'static str = "x[m,k]:f32 -> &y[m,k]:f32";
    const GRADIENT: Gradient = Gradient::None("it accumulates gradients");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "accumulate",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["accumulate_f32"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda("accumulate_f32", t[1].bytes()),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, y] = t else { return };
        for (y, x) in y.data.iter_mut().zip(&x.data) {
            *y += f64::from(self.scale) * x;
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let x = args.read::<f32>(0);
        parallel::rows(args.write::<f32>(1), elementwise::BLOCK, elementwise::BLOCK, |block, y| {
            for (y, x) in y.iter_mut().zip(&x[block * elementwise::BLOCK..]) {
                *y += self.scale * x;
            }
        });
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 2e-7, why: "one f32 product and one sum" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, k)| Case::new(format!("{m}x{k}"), Accumulate { m, k, scale: -0.75 });
        elementwise::shapes(size).into_iter().map(case).collect()
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[], limit, |_, rows| Accumulate { m: rows as u32, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;

    #[test]
    fn pieces_equal_the_whole() {
        let case = Case::new("", Accumulate { m: 10, k: 7, scale: 0.5 });
        assert_eq!(pieces::compare(&case, 3 * 7 * 4, &[]), 4);
    }
}
