//! Dense product with a transposed left side, added: `y[n,k] += x[m,n]ᵀ · z[m,k]`.
//!
//! The gradient of a weight. A piece of a cut op binds rows `n0..n0+n` of `y` and reads columns
//! `n0..n0+n` of `x`, whose rows have `l` columns; recorded ops have `n0 = 0` and `l = n`.

use crate::cpu::parallel;
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::dense_gemm::{Extents, Matrix, axpy, gemm};
use crate::ops::matmul::cuda::{self, Tile};
use crate::ops::matmul::{FEW, Window, shapes, tiles, windows};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MatmulTn {
    /// Rows of `x` and `z`.
    pub m: u32,
    /// Rows of `y` that are bound.
    pub n: u32,
    /// Columns of `z` and `y`.
    pub k: u32,
    /// First column of `x` that is read.
    pub n0: u32,
    /// Columns of `x`.
    pub l: u32,
}

/// Records `acc += xᵀ · z` for `x[..,n]`, `z[..,k]` (any shapes with equal rows) and `acc[n,k]`.
pub fn matmul_tn_add(g: &mut Graph, x: Value, z: Value, acc: Value) -> Result<()> {
    let (m, n, k) = (g.spec(x).rows(), g.spec(x).cols(), g.spec(z).cols());
    let (x, z) = (g.view(x, [m, n])?, g.view(z, [m, k])?);
    g.record(MatmulTn { m: m as u32, n: n as u32, k: k as u32, n0: 0, l: n as u32 }, &[x, z, acc])
}

impl Kernel for MatmulTn {
    const NAME: &'static str = "matmul_tn";
    const SIGNATURE: &'static str = "x[m,l]:f32|bf16 z[m,k]:f32|bf16 -> &y[n,k]:f32";
    const GRADIENT: Gradient = Gradient::None("it accumulates gradients");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "tiled",
        file: "matmul_tn",
        needs: Needs::NONE,
        defines: &[("BF16", 0)],
        when: |_, _| true,
        launch: |op, _| tiles(op.n, op.k),
    }];
    const WGSL_BF16: &'static [Wgsl<Self>] = &[Wgsl {
        name: "tiled_bf16",
        file: "matmul_tn",
        needs: Needs::NONE,
        defines: &[("BF16", 1)],
        when: |_, _| true,
        launch: |op, _| tiles(op.n, op.k),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "tiled",
            entries: &[
                "matmul_tn_f32_128",
                "matmul_tn_f32_64",
                "matmul_tn_f32_sum",
                "matmul_tn_bf16_256",
                "matmul_tn_bf16_128",
                "matmul_tn_bf16_64",
            ],
            hot: true,
            align: 16,
            when: |op, s| cuda::vectors(&s[0], op.n0) && cuda::vectors(&s[1], 0),
            launch: |op, s, caps| cuda::launch(extents(op), tiles_cuda(s), SUM, caps),
        },
        Cuda {
            name: "ragged",
            entries: &["matmul_tn_f32_ragged", "matmul_tn_f32_sum", "matmul_tn_bf16_ragged"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, s, caps| cuda::launch(extents(op), tiles_ragged(s), SUM, caps),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        [("m", self.m), ("n", self.n), ("k", self.k), ("l", self.l)].map(|(name, d)| (name, d as usize)).to_vec()
    }

    fn check(&self) -> std::result::Result<(), String> {
        let whole = self.n0 == 0 && self.l == self.n;
        whole.then_some(()).ok_or_else(|| "a recorded product reads all columns: n0 = 0 and l = n".into())
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, z, y] = t else { return };
        let (k, n0) = (self.k as usize, self.n0 as usize);
        for i in 0..self.n as usize {
            for j in 0..k {
                y.data[i * k + j] += (0..self.m as usize).map(|r| x.row(r)[n0 + i] * z.row(r)[j]).sum::<f64>();
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let [m, n, k, n0, l] = [self.m, self.n, self.k, self.n0, self.l].map(|v| v as usize);
        let (x, z, y) = (args.read::<f32>(0), args.read::<f32>(1), args.write::<f32>(2));
        if m <= FEW {
            parallel::rows(y, k, m * k, |i, y| {
                for (x, z) in x.chunks_exact(l).zip(z.chunks_exact(k)) {
                    axpy(y, x[n0 + i], z);
                }
            });
            return;
        }
        let (a, b) = (Matrix { data: &x[n0..], row: 1, col: l }, Matrix { data: z, row: k, col: 1 });
        gemm(y, k, Extents { m: n, n: k, depth: m }, a, b, true);
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Sum { max: 1e-5, why: "a sum of m products in f32, in order or in blocks" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let op = |(m, n, k)| MatmulTn { m, n, k, n0: 0, l: n };
        shapes(size).into_iter().map(|s| Case::new(format!("{}x{}x{}", s.0, s.1, s.2), op(s))).collect()
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let windows = windows(operands, [0, 1], 2, limit)?;
        let piece = |w: &Window| Piece {
            op: MatmulTn { m: w.m as u32, n: w.n as u32, n0: w.n0 as u32, ..*self },
            rows: vec![w.batch(), w.batch(), w.weight()],
        };
        Some(windows.iter().map(piece).collect())
    }
}

/// CUDA entry that adds the sums of a depth that was cut, of any factors.
const SUM: &str = "matmul_tn_f32_sum";

fn extents(op: &MatmulTn) -> cuda::Extents {
    cuda::Extents { rows: op.n, cols: op.k, depth: op.m }
}

/// CUDA entries for rows of multiples of 16 bytes.
fn tiles_cuda(operands: &[Spec]) -> &'static [Tile] {
    if operands[0].dtype == DType::F32 {
        return &const { [Tile::simt128("matmul_tn_f32_128", 0), Tile::simt64("matmul_tn_f32_64", 0)] };
    }
    &const { [Tile::mma256("matmul_tn_bf16_256"), Tile::mma128("matmul_tn_bf16_128"), Tile::mma64("matmul_tn_bf16_64")] }
}

/// CUDA entries for any rows.
fn tiles_ragged(operands: &[Spec]) -> &'static [Tile] {
    if operands[0].dtype == DType::F32 {
        return &const { [Tile::simt64("matmul_tn_f32_ragged", 0)] };
    }
    &const { [Tile::mma128("matmul_tn_bf16_ragged")] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;

    #[test]
    fn pieces_equal_the_whole() {
        for m in [3, 70] {
            let case = Case::new("", MatmulTn { m, n: 150, k: 20, n0: 0, l: 150 });
            assert!(pieces::compare(&case, 64 * 20 * 4, &[]) >= 3);
        }
    }
}
