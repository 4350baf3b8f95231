//! Gradient of the embedding lookup, added to an accumulator: `dw[ids[i]] += dy[i]`.
//!
//! Contributions to a row are added in the order of the tokens, so results repeat. Ids outside
//! rows `row0..row0+v`, which are the rows that `dw` holds, are skipped.

use crate::cpu::parallel;
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, Fill, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::gather::{shapes, windows};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct GatherGrad {
    /// Tokens.
    pub m: u32,
    /// Columns.
    pub d: u32,
    /// Rows of the table that are bound.
    pub v: u32,
    /// The first of them.
    pub row0: u32,
}

/// Records `dw[ids[i]] += dy[i]` for `ids` (any shape, `m` elements), `dy[m,d]` and `dw[v,d]`.
pub fn gather_grad_add(g: &mut Graph, ids: Value, dy: Value, dw: Value) -> Result<()> {
    let (m, d, v) = (g.spec(ids).elements(), g.spec(dy).cols() as u32, g.spec(dw).rows() as u32);
    let ids = g.view(ids, [m])?;
    g.record(GatherGrad { m: m as u32, d, v, row0: 0 }, &[ids, dy, dw])
}

impl Kernel for GatherGrad {
    const NAME: &'static str = "gather_grad";
    const SIGNATURE: &'static str = "ids[m]:u32 dy[m,d]:f32|bf16 -> &dw[v,d]:f32";
    const GRADIENT: Gradient = Gradient::None("it is a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "gather_grad",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.m as usize),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["gather_grad_f32", "gather_grad_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, t, _| {
            let entry = if t[1].dtype == DType::Bf16 { "gather_grad_bf16" } else { "gather_grad_f32" };
            CudaKernel::new(entry, op.m as usize, 256).into()
        },
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("d", self.d as usize), ("v", self.v as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        (self.row0 == 0).then_some(()).ok_or_else(|| "a recorded gradient binds the whole table: row0 = 0".into())
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [ids, dy, dw] = t else { return };
        let (d, row0) = (self.d as usize, self.row0 as usize);
        for (i, &id) in ids.data.iter().enumerate() {
            let id = id as usize;
            if (row0..row0 + self.v as usize).contains(&id) {
                for j in 0..d {
                    dw.data[(id - row0) * d + j] += dy.data[i * d + j];
                }
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let d = self.d as usize;
        let (ids, dy, mut rest) = (args.read::<u32>(0), args.read::<f32>(1), args.write::<f32>(2));
        let rows = ids.iter().map(|id| id.wrapping_sub(self.row0));
        let mut tokens: Vec<(u32, u32)> = rows.zip(0..).filter(|(row, _)| *row < self.v).collect();
        tokens.sort_unstable();
        // One job for each row that some token names: its part of `dw` and its tokens in order.
        let (mut jobs, mut first) = (Vec::new(), 0);
        for tokens in tokens.chunk_by(|a, b| a.0 == b.0) {
            let row = tokens[0].0 as usize;
            let (_, from_row) = rest.split_at_mut((row - first) * d);
            let (dw, after) = from_row.split_at_mut(d);
            (rest, first) = (after, row + 1);
            jobs.push((dw, tokens));
        }
        let work = d * ids.len().div_ceil(jobs.len().max(1));
        parallel::rows(&mut jobs, 1, work, |_, job| {
            for (dw, tokens) in job {
                for &(_, i) in *tokens {
                    let dy = &dy[i as usize * d..][..d];
                    dw.iter_mut().zip(dy).for_each(|(dw, dy)| *dw += dy);
                }
            }
        });
    }

    fn operations(&self) -> u64 {
        u64::from(self.m) * u64::from(self.d)
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let rows = 4 * u64::from(self.m) * u64::from(self.d);
        (rows + operands.get(1).map_or(rows, Spec::bytes) + 4 * u64::from(self.m), rows)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Sum { max: 1e-5, why: "a sum in f32 of as many values as a row has tokens, in order" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, d, v): (u32, u32, u32)| {
            let ids = Fill::Integers(0, i64::from(v) + 2);
            Case::new(format!("{m}x{d} of {v}"), GatherGrad { m, d, v, row0: 0 }).fill("ids", ids)
        };
        shapes(size).into_iter().map(case).collect()
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let windows = windows(operands, 2, limit)?;
        let piece = |(row0, v): (usize, usize)| Piece {
            op: GatherGrad { row0: row0 as u32, v: v as u32, ..*self },
            rows: vec![(0, 1), (0, self.m as usize), (row0, v)],
        };
        Some(windows.into_iter().map(piece).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;

    #[test]
    fn pieces_equal_the_whole() {
        let case = Case::new("", GatherGrad { m: 20, d: 3, v: 50, row0: 0 }).fill("ids", Fill::Integers(0, 60));
        assert_eq!(pieces::compare(&case, 20 * 3 * 4, &[]), 3);
    }
}
