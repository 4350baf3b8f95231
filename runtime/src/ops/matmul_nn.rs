//! Dense product: `y[m,k] = x[m,n] · w[n,k]`.
//!
//! A piece of a cut op binds rows `n0..n0+n` of `w` and reads columns `n0..n0+n` of `x`, whose
//! rows have `l` columns; pieces after the first add to `y`. Recorded ops have `n0 = 0`, `l = n`
//! and `add = 0`.

use crate::cpu::parallel;
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::cast::cast;
use crate::ops::dense_gemm::{Extents, Matrix, axpy, gemm};
use crate::ops::matmul::cuda::{self, Tile};
use crate::ops::matmul::{Window, check_dtypes, shapes, tiles, wide_cases, windows};
use crate::ops::{matmul_nt, matmul_tn};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MatmulNn {
    /// Rows of `x` and `y`.
    pub m: u32,
    /// Rows of `w` that are bound.
    pub n: u32,
    /// Columns of `w` and `y`.
    pub k: u32,
    /// First column of `x` that is read.
    pub n0: u32,
    /// Columns of `x`.
    pub l: u32,
    /// 1: add to `y`; 0: overwrite it.
    pub add: u32,
}

impl MatmulNn {
    /// The product of whole `x[m,n]` and `w[n,k]`.
    pub fn whole(m: u32, n: u32, k: u32) -> Self {
        MatmulNn { m, n, k, n0: 0, l: n, add: 0 }
    }
}

/// Records `x · w` for `x[..,n]` (any shape, seen as `[m,n]`) and `w[n,k]`; gives `[m,k]`.
pub fn matmul_nn(g: &mut Graph, x: Value, w: Value) -> Result<Value> {
    let (m, n, k) = (g.spec(x).rows(), g.spec(x).cols(), g.spec(w).cols());
    let x = g.view(x, [m, n])?;
    g.apply(MatmulNn::whole(m as u32, n as u32, k as u32), &[x, w])
}

impl Kernel for MatmulNn {
    const NAME: &'static str = "matmul_nn";
    const SIGNATURE: &'static str = "x[m,l]:f32|bf16 w[n,k]:f32|bf16 -> y[m,k]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "tiled",
        file: "matmul_nn",
        needs: Needs::NONE,
        defines: &[("BF16", 0), ("Y_BF16", 0)],
        when: |_, _| true,
        launch: |op, _| tiles(op.m, op.k),
    }];
    const WGSL_BF16: &'static [Wgsl<Self>] = &[
        Wgsl {
            name: "tiled_bf16",
            file: "matmul_nn",
            needs: Needs::NONE,
            defines: &[("BF16", 1), ("Y_BF16", 1)],
            // Pieces add up in y, which must not round in between.
            when: |op, operands| operands[2].dtype == DType::Bf16 && op.n == op.l,
            launch: |op, _| tiles(op.m, op.k),
        },
        Wgsl {
            name: "tiled_bf16_to_f32",
            file: "matmul_nn",
            needs: Needs::NONE,
            defines: &[("BF16", 1), ("Y_BF16", 0)],
            when: |_, operands| operands[2].dtype == DType::F32,
            launch: |op, _| tiles(op.m, op.k),
        },
    ];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "tiled",
            entries: &[
                "matmul_nn_f32_128",
                "matmul_nn_f32_64",
                "matmul_nn_f32_sum",
                "matmul_nn_bf16_256",
                "matmul_nn_bf16_128",
                "matmul_nn_bf16_64",
                "matmul_nn_bf16_sum",
                "matmul_nn_bf16_f32_256",
                "matmul_nn_bf16_f32_128",
            ],
            hot: true,
            align: 16,
            when: |op, s| cuda::vectors(&s[0], op.n0) && cuda::vectors(&s[1], 0),
            launch: |op, s, caps| cuda::launch(extents(op), tiles_cuda(s), sum(s), caps),
        },
        Cuda {
            name: "ragged",
            entries: &[
                "matmul_nn_f32_ragged",
                "matmul_nn_f32_sum",
                "matmul_nn_bf16_ragged",
                "matmul_nn_bf16_sum",
                "matmul_nn_bf16_f32_ragged",
            ],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, s, caps| cuda::launch(extents(op), tiles_ragged(s), sum(s), caps),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        [("m", self.m), ("n", self.n), ("k", self.k), ("l", self.l)].map(|(name, d)| (name, d as usize)).to_vec()
    }

    fn check(&self) -> std::result::Result<(), String> {
        let whole = self.n0 == 0 && self.l == self.n && self.add == 0;
        whole.then_some(()).ok_or_else(|| "a recorded product reads all columns: n0 = 0, l = n and add = 0".into())
    }

    fn check_dtypes(operands: &[Spec]) -> std::result::Result<(), String> {
        check_dtypes(operands)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, w, y] = t else { return };
        let (k, n0) = (self.k as usize, self.n0 as usize);
        for i in 0..self.m as usize {
            for j in 0..k {
                let sum: f64 = (0..self.n as usize).map(|r| x.row(i)[n0 + r] * w.data[r * k + j]).sum();
                y.data[i * k + j] = if self.add == 0 { sum } else { y.data[i * k + j] + sum };
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let [m, n, k, n0, l] = [self.m, self.n, self.k, self.n0, self.l].map(|v| v as usize);
        let (x, w, y) = (args.read::<f32>(0), args.read::<f32>(1), args.write::<f32>(2));
        let add = self.add != 0;
        if m == 1 {
            one(&x[n0..n0 + n], w, k, y, add);
            return;
        }
        let (a, b) = (Matrix { data: &x[n0..], row: l, col: 1 }, Matrix { data: w, row: k, col: 1 });
        gemm(y, k, Extents { m, n: k, depth: n }, a, b, add);
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Sum { max: 1e-5, why: "a sum of n products in f32, in order or in blocks" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let op = |(m, n, k)| MatmulNn { m, n, k, n0: 0, l: n, add: 0 };
        let case = |s: (u32, u32, u32)| Case::new(format!("{}x{}x{}", s.0, s.1, s.2), op(s));
        wide_cases(shapes(size).into_iter().map(case).collect(), size)
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dy) = cx.upstream(2) else { return Ok(()) };
        let (x, w) = (cx.operand(0), cx.operand(1));
        // Of bf16 factors whose product stayed in f32.
        let dtype = cx.graph.spec(x).dtype;
        let dy = cast(cx.graph, dy, dtype)?;
        if cx.wanted(0) {
            let dx = matmul_nt::matmul_nt(cx.graph, dy, w)?;
            cx.give(0, dx);
        }
        if cx.wanted(1) {
            let dw = cx.accumulator(1)?;
            matmul_tn::matmul_tn_add(cx.graph, x, dy, dw)?;
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let windows = windows(operands, [0, 2], 1, limit)?;
        let piece = |w: &Window| Piece {
            op: MatmulNn { m: w.m as u32, n: w.n as u32, n0: w.n0 as u32, add: u32::from(w.n0 > 0), ..*self },
            rows: vec![w.batch(), w.weight(), w.batch()],
        };
        Some(windows.iter().map(piece).collect())
    }
}

fn extents(op: &MatmulNn) -> cuda::Extents {
    cuda::Extents { rows: op.m, cols: op.k, depth: op.n }
}

/// CUDA entries for rows of multiples of 16 bytes.
fn tiles_cuda(operands: &[Spec]) -> &'static [Tile] {
    match cuda::dtypes(operands) {
        (DType::F32, _) => &const { [Tile::simt128("matmul_nn_f32_128", 1), Tile::simt64("matmul_nn_f32_64", 1)] },
        (_, DType::F32) => &const { [Tile::mma256("matmul_nn_bf16_f32_256"), Tile::mma128("matmul_nn_bf16_f32_128")] },
        _ => {
            &const {
                [
                    Tile::mma256("matmul_nn_bf16_256"),
                    Tile::mma128("matmul_nn_bf16_128"),
                    Tile::mma64("matmul_nn_bf16_64"),
                ]
            }
        }
    }
}

/// CUDA entries for any rows.
fn tiles_ragged(operands: &[Spec]) -> &'static [Tile] {
    match cuda::dtypes(operands) {
        (DType::F32, _) => &const { [Tile::simt64("matmul_nn_f32_ragged", 1)] },
        (_, DType::F32) => &const { [Tile::mma128("matmul_nn_bf16_f32_ragged")] },
        _ => &const { [Tile::mma128("matmul_nn_bf16_ragged")] },
    }
}

/// CUDA entry that adds the sums of a depth that was cut.
fn sum(operands: &[Spec]) -> &'static str {
    if operands[2].dtype == DType::F32 { "matmul_nn_f32_sum" } else { "matmul_nn_bf16_sum" }
}

/// One row of `x`: blocks of columns of `w`, each read once, rows in order.
fn one(x: &[f32], w: &[f32], k: usize, y: &mut [f32], add: bool) {
    const BLOCK: usize = 256;
    parallel::rows(y, BLOCK, BLOCK * x.len(), |block, y| {
        if !add {
            y.fill(0.0);
        }
        for (x, w) in x.iter().zip(w.chunks_exact(k)) {
            axpy(y, *x, &w[block * BLOCK..][..y.len()]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;

    #[test]
    fn pieces_equal_the_whole() {
        for m in [1, 70] {
            let case = Case::new("", MatmulNn { m, n: 150, k: 20, n0: 0, l: 150, add: 0 });
            assert!(pieces::compare(&case, 64 * 20 * 4, &[]) >= 3);
        }
    }
}
