//! Dense product with weights quantised in groups: `y_ij = Σ_l x_il · q_jl · s_j⌊l/group⌋`.
//!
//! `q` is `i8`, `i6` or `i4` (see [`crate::dtype`]), `s` f16. Activations stay in f32: what is
//! saved is the reading of the weights, which bounds a decode step. A piece of a cut op binds rows
//! `n0..n0+n` of the weight and writes those columns of `y`, whose rows have `l` columns.

use crate::cpu::weights::{Stored, Target, product};
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Piece, Size, Tolerance, Wgsl};
use crate::ops::matmul::windows;
use crate::ops::wgsl_teams::{any, weights_variants};
use crate::ops::widened;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct QuantizedMatmul {
    /// Rows of `x` and `y`.
    pub m: u32,
    /// Rows of `w` that are bound.
    pub n: u32,
    /// Columns of `x` and `w`.
    pub k: u32,
    /// Columns that share a scale: a multiple of 16.
    pub group: u32,
    /// Columns of `y`.
    pub l: u32,
    /// First column of `y` that is written.
    pub n0: u32,
}

/// Records `x · (q · s)ᵀ` for `x[..,k]` (any shape, seen as `[m,k]`), codes `w[n,k]` and scales
/// `s[n,⌈k/group⌉]`; gives `[m,n]` in f32.
pub fn quantized_matmul(g: &mut Graph, x: Value, w: Value, s: Value, group: usize) -> Result<Value> {
    let (m, k, n) = (g.spec(x).rows(), g.spec(x).cols(), g.spec(w).rows());
    let x = g.view(x, [m, k])?;
    let [m, n, k, group] = [m, n, k, group].map(|v| v as u32);
    g.apply(QuantizedMatmul { m, n, k, group, l: n, n0: 0 }, &[x, w, s])
}

/// Refuses groups that no kernel takes.
pub(super) fn check_group(name: &str, group: u32) -> std::result::Result<(), String> {
    match group {
        0 => Err(format!("{name}: a group of 0 columns has no scale")),
        g if g % 16 != 0 => Err(format!("{name}: groups of {g} columns; give a multiple of 16")),
        _ => Ok(()),
    }
}

/// Cases with each dtype of codes.
pub(super) fn with_dtypes(cases: Vec<Case>) -> Vec<Case> {
    let recast = |case: &Case, dtype: DType| Case {
        label: format!("{} {dtype}", case.label),
        ..case.clone().dtype("w", dtype).fill("w", crate::op::case_fill(dtype)).fill("s", Fill::Uniform(0.01, 0.02))
    };
    let all = [DType::I8, DType::I6, DType::I4];
    cases.iter().flat_map(|case| all.map(|dtype| recast(case, dtype))).collect()
}

impl Kernel for QuantizedMatmul {
    const NAME: &'static str = "quantized_matmul";
    const SIGNATURE: &'static str = "x[m,k]:f32 w[n,k]:i8|i6|i4 s[n,g]:f16 -> y[m,l]:f32";
    const GRADIENT: Gradient = Gradient::None("quantised weights are for inference only");
    const WGSL: &'static [Wgsl<Self>] =
        weights_variants!(1, any, [], ("i8", 3, DType::I8), ("i6", 4, DType::I6), ("i4", 5, DType::I4));
    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "gemv",
            entries: &[
                "quantized_matmul_gemv1_i8",
                "quantized_matmul_gemv4_i8",
                "quantized_matmul_gemv8_i8",
                "quantized_matmul_gemv1_i6",
                "quantized_matmul_gemv4_i6",
                "quantized_matmul_gemv8_i6",
                "quantized_matmul_gemv1_i4",
                "quantized_matmul_gemv4_i4",
                "quantized_matmul_gemv8_i4",
            ],
            hot: true,
            align: 16,
            when: |op, t| widened::takes_few(op.m, op.k, &t[1]),
            launch: |op, t, caps| {
                let entries = match t[1].dtype {
                    DType::I8 => ["quantized_matmul_gemv1_i8", "quantized_matmul_gemv4_i8", "quantized_matmul_gemv8_i8"],
                    DType::I6 => ["quantized_matmul_gemv1_i6", "quantized_matmul_gemv4_i6", "quantized_matmul_gemv8_i6"],
                    _ => ["quantized_matmul_gemv1_i4", "quantized_matmul_gemv4_i4", "quantized_matmul_gemv8_i4"],
                };
                widened::few(op.m, op.n, op.k, &t[1], entries, caps).into()
            },
        },
        Cuda {
            name: "tiled",
            entries: &["quantized_matmul_tiled_i8", "quantized_matmul_tiled_i6", "quantized_matmul_tiled_i4"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| {
                let entry = match t[1].dtype {
                    DType::I8 => "quantized_matmul_tiled_i8",
                    DType::I6 => "quantized_matmul_tiled_i6",
                    _ => "quantized_matmul_tiled_i4",
                };
                widened::tiles(op.m, op.n, entry).into()
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        let groups = self.k.div_ceil(self.group.max(1));
        let dims = [("m", self.m), ("n", self.n), ("k", self.k), ("g", groups), ("l", self.l)];
        dims.map(|(name, d)| (name, d as usize)).to_vec()
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.n0 != 0 || self.l != self.n {
            return Err("a recorded product writes all columns: n0 = 0 and l = n".into());
        }
        check_group(Self::NAME, self.group)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, w, s, y] = t else { return };
        let group = self.group as usize;
        for i in 0..self.m as usize {
            for j in 0..self.n as usize {
                let terms = x.row(i).iter().zip(w.row(j)).enumerate();
                let sum: f64 = terms.map(|(l, (x, w))| x * w * s.row(j)[l / group]).sum();
                y.data[i * self.l as usize + self.n0 as usize + j] = sum;
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (m, n, n0, l) = (self.m as usize, self.n as usize, self.n0 as usize, self.l as usize);
        let w = Stored::groups(args.spec(1), args.read(1), self.group as usize, args.read(2));
        product(&w, args.read(0), Target { m, n, n0, l }, args.write(3));
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Sum { max: 1e-5, why: "a sum of k products in f32, in lanes or in order" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[(u32, u32, u32, u32)] = match size {
            Size::Small => &[(3, 5, 20, 16)],
            Size::Ragged => &[
                (1, 1, 1, 16),
                (1, 131, 777, 64),
                (1, 37, 2560, 32),
                (4, 67, 35, 32),
                (8, 35, 320, 64),
                // More rows of weights than blocks take at a time.
                (2, 1000, 192, 64),
                (9, 70, 264, 48),
                (67, 129, 71, 16),
                (72, 80, 1056, 128),
            ],
            Size::Bench => &[(1, 65_536, 768, 64), (1, 128_256, 2560, 64), (512, 2048, 768, 64)],
        };
        let case = |&(m, n, k, group): &(u32, u32, u32, u32)| {
            Case::new(format!("{m}x{n}x{k} by {group}"), QuantizedMatmul { m, n, k, group, l: n, n0: 0 })
        };
        with_dtypes(shapes.iter().map(case).collect())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let windows = windows(operands, [0, 3], 1, limit)?;
        let piece = |w: &super::matmul::Window| Piece {
            op: QuantizedMatmul { m: w.m as u32, n: w.n as u32, n0: w.n0 as u32, ..*self },
            rows: vec![w.batch(), w.weight(), w.weight(), w.batch()],
        };
        Some(windows.iter().map(piece).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces::compare;

    #[test]
    fn pieces_give_the_whole() {
        let op = QuantizedMatmul { m: 2, n: 37, k: 64, group: 32, l: 37, n0: 0 };
        let case = Case::new("", op).fill("s", Fill::Uniform(0.5, 1.0));
        let limit = case.specs()[3].bytes().max(case.specs()[0].bytes()).max(10 * 64);
        assert_eq!(compare(&case, limit, &[]), 4);
    }

    #[test]
    fn groups_of_other_sizes_are_refused() {
        for group in [0, 8, 40] {
            let op = QuantizedMatmul { m: 1, n: 1, k: 64, group, l: 1, n0: 0 };
            assert!(op.check().is_err(), "{group}");
        }
    }
}
