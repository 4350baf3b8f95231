//! Embedding lookup: row `i` of `y[m,d]` is row `ids[i]` of `table[v,d]`; an id past the table
//! gives zeros. A table kept in f16 or bf16 is widened to f32; no gradient flows to it.
//!
//! A piece of a cut op binds rows `row0..row0+v` of a table of `total` rows and writes the tokens
//! whose id lies there; the first piece also writes the zeros. Recorded ops have `row0 = 0` and
//! `total = v`.

use crate::cpu::parallel;
use crate::cpu::weights::Stored;
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{elementwise, gather_grad};
use crate::ops::wgsl_teams::table_variants;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Gather {
    /// Tokens.
    pub m: u32,
    /// Columns.
    pub d: u32,
    /// Rows of the table that are bound.
    pub v: u32,
    /// The first of them.
    pub row0: u32,
    /// Rows of the whole table.
    pub total: u32,
}

/// Records the lookup of `ids` (any shape, `m` elements) in `table[v,d]`; gives `[m,d]` in f32 or bf16.
pub fn gather(g: &mut Graph, table: Value, ids: Value, dtype: DType) -> Result<Value> {
    let (v, d, m) = (g.spec(table).rows() as u32, g.spec(table).cols() as u32, g.spec(ids).elements());
    let ids = g.view(ids, [m])?;
    g.apply_to(Gather { m: m as u32, d, v, row0: 0, total: v }, &[table, ids], dtype)
}

impl Kernel for Gather {
    const NAME: &'static str = "gather";
    const SIGNATURE: &'static str = "table[v,d]:f32|f16|bf16 ids[m]:u32 -> y[m,d]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = table_variants!(
        0,
        d,
        [Wgsl {
            name: "plain",
            file: "gather",
            needs: Needs::NONE,
            defines: &[],
            when: |_, operands| operands[0].dtype == DType::F32,
            launch: |op, _| Launch::groups((op.m as usize * op.d as usize).div_ceil(256)),
        }],
        ("f16", 1, DType::F16)
    );
    const WGSL_BF16: &'static [Wgsl<Self>] = table_variants!(0, d, [], ("bf16", 2, DType::Bf16));

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["gather_f32", "gather_bf16", "gather_f16_f32", "gather_bf16_f32"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| match t[0].dtype {
            DType::F16 => elementwise::cuda("gather_f16_f32", t[2].bytes()),
            DType::Bf16 => elementwise::cuda("gather_bf16_f32", t[2].bytes()),
            _ => elementwise::cuda_for(&t[2], ["gather_f32", "gather_bf16"]),
        },
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("d", self.d as usize), ("v", self.v as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        let whole = self.row0 == 0 && self.total == self.v;
        whole.then_some(()).ok_or_else(|| "a recorded lookup binds the whole table: row0 = 0 and total = v".into())
    }

    fn check_dtypes(operands: &[Spec]) -> std::result::Result<(), String> {
        match operands {
            [table, _, y] if table.dtype != DType::F32 && y.dtype != DType::F32 => {
                Err(format!("a table in {} gives rows in f32, not {}", table.dtype, y.dtype))
            }
            _ => Ok(()),
        }
    }

    fn differentiable(operands: &[Spec]) -> bool {
        operands[0].dtype == DType::F32
    }

    fn cpu_takes(operands: &[Spec]) -> bool {
        operands[2].dtype != DType::Bf16
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [table, ids, y] = t else { return };
        let (d, row0, v) = (self.d as usize, self.row0 as usize, self.v as usize);
        for (y, &id) in y.data.chunks_exact_mut(d).zip(&ids.data) {
            let id = id as usize;
            if (row0..row0 + v).contains(&id) {
                y.copy_from_slice(table.row(id - row0));
            } else if row0 == 0 && id >= self.total as usize {
                y.fill(0.0);
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let d = self.d as usize;
        let ids = args.read::<u32>(1);
        let (wide, narrow) = match args.spec(0).dtype {
            DType::F32 => (args.read::<f32>(0), None),
            _ => (&[][..], Some(Stored::floats(args.spec(0), args.read(0)))),
        };
        parallel::rows(args.write::<f32>(2), d, d, |i, y| {
            // Ids before the window wrap to large numbers.
            let row = ids[i].wrapping_sub(self.row0);
            if row < self.v {
                match &narrow {
                    Some(table) => table.widen(row as usize, y),
                    None => y.copy_from_slice(&wide[row as usize * d..][..d]),
                }
            } else if self.row0 == 0 && ids[i] >= self.total {
                y.fill(0.0);
            }
        });
    }

    fn operations(&self) -> u64 {
        0
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let rows = u64::from(self.m) * operands.first().map_or(0, Spec::row_bytes);
        (rows + 4 * u64::from(self.m), operands.last().map_or(rows, Spec::bytes))
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, d, v): (u32, u32, u32)| {
            // Every id of the smaller tables comes up, and two past their end.
            let ids = Fill::Integers(0, i64::from(v) + 2);
            Case::new(format!("{m}x{d} of {v}"), Gather { m, d, v, row0: 0, total: v }).fill("ids", ids)
        };
        let f32: Vec<Case> = shapes(size).into_iter().map(case).collect();
        let of = |operand: &'static str, dtype: DType| {
            let label = move |case: &Case| format!("{} {operand} {dtype}", case.label);
            f32.iter().map(move |case| Case { label: label(case), ..case.clone().dtype(operand, dtype) })
        };
        let others = of("y", DType::Bf16).chain(of("table", DType::F16)).chain(of("table", DType::Bf16));
        let others: Vec<Case> = others.collect();
        f32.into_iter().chain(others).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        if let (Some(dy), true) = (cx.upstream(2), cx.wanted(0)) {
            let (ids, dw) = (cx.operand(1), cx.accumulator(0)?);
            gather_grad::gather_grad_add(cx.graph, ids, dy, dw)?;
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let windows = windows(operands, 0, limit)?;
        let piece = |(row0, v): (usize, usize)| Piece {
            op: Gather { row0: row0 as u32, v: v as u32, ..*self },
            rows: vec![(row0, v), (0, 1), (0, self.m as usize)],
        };
        Some(windows.into_iter().map(piece).collect())
    }
}

/// `(m, d, v)` of test cases.
pub(super) fn shapes(size: Size) -> Vec<(u32, u32, u32)> {
    match size {
        Size::Small => vec![(7, 3, 4)],
        Size::Ragged => vec![(1, 1, 1), (65, 67, 9), (300, 5, 1031), (600, 301, 2), (1100, 24, 3)],
        Size::Bench => vec![(1, 768, 65_536), (512, 768, 65_536), (512, 2560, 16_384)],
    }
}

/// Windows of the table, operand `table`, when all others are bound whole.
pub(super) fn windows(operands: &[Spec], table: usize, limit: u64) -> Option<Vec<(usize, usize)>> {
    let spec = &operands[table];
    let most = (limit / spec.row_bytes().max(1)).min(spec.rows() as u64) as usize;
    let others_fit = operands.iter().enumerate().all(|(i, s)| i == table || s.bytes() <= limit);
    let window = |row0| (row0, most.min(spec.rows() - row0));
    (most > 0 && others_fit).then(|| (0..spec.rows()).step_by(most).map(window).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;

    #[test]
    fn pieces_equal_the_whole() {
        let op = Gather { m: 20, d: 3, v: 50, row0: 0, total: 50 };
        let case = Case::new("", op).fill("ids", Fill::Integers(0, 60));
        assert_eq!(pieces::compare(&case, 20 * 3 * 4, &[]), 3);
    }
}
