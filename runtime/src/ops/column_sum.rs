//! Adds the sum over rows to a vector: `y_j += Σ_i x_ij`, rows in order.

use crate::cpu::parallel;
use crate::dtype::Spec;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{cuda_rows, elementwise, split};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ColumnSum {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub n: u32,
}

/// Records `y[n] += Σ` over the rows of `x[..,n]`.
pub fn column_sum_add(g: &mut Graph, x: Value, y: Value) -> Result<()> {
    let (m, n) = (g.spec(x).rows(), g.spec(x).cols());
    let x = g.view(x, [m, n])?;
    g.record(ColumnSum { m: m as u32, n: n as u32 }, &[x, y])
}

impl Kernel for ColumnSum {
    const NAME: &'static str = "column_sum";
    const SIGNATURE: &'static str = "x[m,n]:f32|bf16 -> &y[n]:f32";
    const GRADIENT: Gradient = Gradient::None("it accumulates gradients");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "column_sum",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.n as usize).div_ceil(16)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &["column_sum_vector_f32", "column_sum_vector_bf16", "column_sum_add"],
            hot: true,
            align: 16,
            when: |op, t| cuda_rows::whole_packs(t[0].dtype, op.n),
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["column_sum_vector_f32", "column_sum_vector_bf16"]);
                cuda_rows::columns(entry, "column_sum_add", op.m, op.n, t[0].dtype)
            },
        },
        Cuda {
            name: "plain",
            entries: &["column_sum_f32", "column_sum_bf16", "column_sum_add"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["column_sum_f32", "column_sum_bf16"]);
                cuda_rows::columns(entry, "column_sum_add", op.m, op.n, t[0].dtype)
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("n", self.n as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, y] = t else { return };
        for (j, y) in y.data.iter_mut().enumerate() {
            *y += (0..self.m as usize).map(|i| x.row(i)[j]).sum::<f64>();
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        const BLOCK: usize = 64;
        let (m, n) = (self.m as usize, self.n as usize);
        let x = args.read::<f32>(0);
        parallel::rows(args.write::<f32>(1), BLOCK, BLOCK * m, |block, y| {
            let mut sums = [0f32; BLOCK];
            for i in 0..m {
                let x = &x[i * n + block * BLOCK..][..y.len()];
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
            }
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
        });
    }

    fn operations(&self) -> u64 {
        u64::from(self.m) * u64::from(self.n)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Sum { max: 1e-5, why: "a sum of m values in f32, in order" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let mut shapes = elementwise::shapes(size);
        if size == Size::Ragged {
            // The last two are cut into runs of rows on some devices.
            shapes.extend([(300, 17), (2100, 8), (300, 296)]);
        }
        shapes.into_iter().map(|(m, n)| Case::new(format!("{m}x{n}"), ColumnSum { m, n })).collect()
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[1], limit, |_, rows| ColumnSum { m: rows as u32, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;

    #[test]
    fn pieces_equal_the_whole() {
        let case = Case::new("", ColumnSum { m: 10, n: 7 });
        assert_eq!(pieces::compare(&case, 4 * 7 * 4, &[]), 3);
    }
}
