//! Embedding lookup in a table quantised in groups: row `i` of `y[m,k]` is row `ids[i]` of the
//! codes `w[v,k]`, each times the scale of its group; an id past the table gives zeros.
//!
//! Codes and scales as in [`super::quantized_matmul`], windows as in [`super::gather`].

use crate::cpu::parallel;
use crate::cpu::weights::Stored;
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, Fill, Gradient, Kernel, Piece, Size, Tolerance, Wgsl};
use crate::ops::gather;
use crate::ops::quantized_matmul::{check_group, with_dtypes};
use crate::ops::wgsl_teams::table_variants;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct QuantizedGather {
    /// Tokens.
    pub m: u32,
    /// Rows of the table that are bound.
    pub v: u32,
    /// Columns.
    pub k: u32,
    /// Columns that share a scale: a multiple of 16.
    pub group: u32,
    /// The first row that is bound.
    pub row0: u32,
    /// Rows of the whole table.
    pub total: u32,
}

/// Records the lookup of `ids` (any shape, `m` elements) in `w[v,k]` with scales `s[v,⌈k/group⌉]`; gives `[m,k]` in
/// f32.
pub fn quantized_gather(g: &mut Graph, w: Value, s: Value, group: usize, ids: Value) -> Result<Value> {
    let (v, k, m) = (g.spec(w).rows() as u32, g.spec(w).cols() as u32, g.spec(ids).elements());
    let ids = g.view(ids, [m])?;
    let op = QuantizedGather { m: m as u32, v, k, group: group as u32, row0: 0, total: v };
    g.apply(op, &[w, s, ids])
}

impl Kernel for QuantizedGather {
    const NAME: &'static str = "quantized_gather";
    const SIGNATURE: &'static str = "w[v,k]:i8|i6|i4 s[v,g]:f16 ids[m]:u32 -> y[m,k]:f32";
    const GRADIENT: Gradient = Gradient::None("quantised weights are for inference only");
    const WGSL: &'static [Wgsl<Self>] =
        table_variants!(1, k, [], ("i8", 3, DType::I8), ("i6", 4, DType::I6), ("i4", 5, DType::I4));
    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["quantized_gather_i8", "quantized_gather_i6", "quantized_gather_i4"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, t, _| {
            let entry = match t[0].dtype {
                DType::I8 => "quantized_gather_i8",
                DType::I6 => "quantized_gather_i6",
                _ => "quantized_gather_i4",
            };
            // A thread makes eight elements.
            CudaKernel::new(entry, (op.m as usize * (op.k as usize).div_ceil(8)).div_ceil(256), 256).into()
        },
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        let groups = self.k.div_ceil(self.group.max(1));
        [("m", self.m), ("v", self.v), ("k", self.k), ("g", groups)].map(|(name, d)| (name, d as usize)).to_vec()
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.row0 != 0 || self.total != self.v {
            return Err("a recorded lookup binds the whole table: row0 = 0 and total = v".into());
        }
        check_group(Self::NAME, self.group)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [w, s, ids, y] = t else { return };
        let (k, row0, v, group) = (self.k as usize, self.row0 as usize, self.v as usize, self.group as usize);
        for (y, &id) in y.data.chunks_exact_mut(k).zip(&ids.data) {
            let id = id as usize;
            if (row0..row0 + v).contains(&id) {
                let row = id - row0;
                y.iter_mut().enumerate().for_each(|(l, y)| *y = w.row(row)[l] * s.row(row)[l / group]);
            } else if row0 == 0 && id >= self.total as usize {
                y.fill(0.0);
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let table = Stored::groups(args.spec(0), args.read(0), self.group as usize, args.read(1));
        let ids = args.read::<u32>(2);
        parallel::rows(args.write::<f32>(3), k, k, |i, y| {
            // Ids before the window wrap to large numbers.
            let row = ids[i].wrapping_sub(self.row0);
            if row < self.v {
                table.widen(row as usize, y);
            } else if self.row0 == 0 && ids[i] >= self.total {
                y.fill(0.0);
            }
        });
    }

    fn operations(&self) -> u64 {
        u64::from(self.m) * u64::from(self.k)
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let row = operands.iter().take(2).map(Spec::row_bytes).sum::<u64>();
        (u64::from(self.m) * (row + 4), operands.last().map_or(0, Spec::bytes))
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 1e-7, why: "a product of a small integer and an f16, which f32 holds exactly" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[(u32, u32, u32, u32)] = match size {
            Size::Small => &[(7, 4, 20, 16)],
            Size::Ragged => &[(1, 1, 1, 16), (65, 9, 67, 32), (300, 1031, 5, 64), (60, 2, 301, 48)],
            Size::Bench => &[(1, 65_536, 768, 64), (512, 16_384, 2560, 64)],
        };
        let case = |&(m, v, k, group): &(u32, u32, u32, u32)| {
            // Every id of the smaller tables comes up, and two past their end.
            let ids = Fill::Integers(0, i64::from(v) + 2);
            let op = QuantizedGather { m, v, k, group, row0: 0, total: v };
            Case::new(format!("{m}x{k} of {v} by {group}"), op).fill("ids", ids)
        };
        with_dtypes(shapes.iter().map(case).collect())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let others: u64 = [2, 3].map(|i| operands[i].bytes()).into_iter().max()?;
        let windows = gather::windows(&operands[..1], 0, limit)?;
        let piece = |(row0, v): (usize, usize)| Piece {
            op: QuantizedGather { row0: row0 as u32, v: v as u32, ..*self },
            rows: vec![(row0, v), (row0, v), (0, 1), (0, self.m as usize)],
        };
        (others <= limit).then(|| windows.into_iter().map(piece).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;

    #[test]
    fn pieces_equal_the_whole() {
        let op = QuantizedGather { m: 4, v: 50, k: 32, group: 16, row0: 0, total: 50 };
        let case = Case::new("", op).fill("ids", Fill::Integers(0, 60));
        assert_eq!(pieces::compare(&case, 20 * 32, &[]), 3);
    }
}
