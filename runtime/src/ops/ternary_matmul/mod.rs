//! Product of int8 activations with ternary weights: `y_ij = (Σ_l t_jl · x_il) · (xs_i · ws)`.
//!
//! The sum is an exact `i32`; the two scales are multiplied first, then with the sum, on every
//! device, so equal codes and scales give equal bits. Gradients of codes are those of the
//! dequantised values: `dX̂ = dY · Ŵ`, `dŴ += dYᵀ · X̂`.

mod cuda;

use crate::cpu::ternary::{Activations, Columns, Path, Weights, product};
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::dequantize_int8::dequantize_int8;
use crate::ops::dequantize_ternary::dequantize_ternary;
use crate::ops::matmul::tiles;
use crate::ops::matmul_nn::matmul_nn;
use crate::ops::matmul_tn::matmul_tn_add;
use crate::ops::wgsl_teams::{plain, ternary_variants};
use crate::reference::RefTensor;

/// Largest `k`: sums of `3 · 128 · k` stay within an `i32`.
pub(super) const LONGEST: u32 = 1 << 22;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TernaryMatmul {
    /// Rows of `x` and `y`.
    pub m: u32,
    /// Rows of `w`.
    pub n: u32,
    /// Columns of `w` and `x`.
    pub k: u32,
    /// Columns of `y`: `n`, or more in a piece of a cut op.
    pub l: u32,
    /// Column of `y` where the first row of `w` goes: 0, or more in a piece of a cut op.
    pub n0: u32,
    /// Scales in `ws`: matrices that lie one below the other share one tensor of them.
    pub scales: u32,
    /// The scale that is this matrix's.
    pub scale: u32,
}

impl TernaryMatmul {
    /// The product of whole `w[n,k]`, with a scale of its own, and `x[m,k]`.
    pub fn whole(m: u32, n: u32, k: u32) -> Self {
        TernaryMatmul { m, n, k, l: n, n0: 0, scales: 1, scale: 0 }
    }
}

/// Records `y[m,n]`, in f32 or bf16, of weights `w[n,k]` with scale `ws[scale]` and activations `x[m,k]` with
/// scales `xs[m]`.
pub fn ternary_matmul(
    g: &mut Graph,
    w: Value,
    (ws, scale): (Value, usize),
    x: Value,
    xs: Value,
    dtype: DType,
) -> Result<Value> {
    let (m, n, k) = (g.spec(x).rows() as u32, g.spec(w).rows() as u32, g.spec(w).cols() as u32);
    let (scales, scale) = (g.spec(ws).elements() as u32, scale as u32);
    g.apply_to(TernaryMatmul { scales, scale, ..TernaryMatmul::whole(m, n, k) }, &[w, ws, x, xs], dtype)
}

/// Few enough rows of activations that reading the weights takes longest.
fn few(op: &TernaryMatmul, _: &[Spec]) -> bool {
    op.m <= 8
}

fn quads(op: &TernaryMatmul) -> usize {
    (op.n as usize).div_ceil(4)
}

/// Largest `k` whose sums, of at most `128 · k`, are exact in f32.
const LONGEST_F32: u32 = (1 << 24) / 128;

/// A variant on cooperative matrices of a side, for codes of two bits or of 1.6 (`t1`).
macro_rules! matrix {
    ($name:literal, $side:literal, $t1:literal) => {
        Wgsl {
            name: $name,
            file: "ternary_matrix",
            needs: Needs::matrix($side),
            defines: &[("SIDE", $side), ("T1", $t1)],
            when: |op, operands| {
                operands[0].dtype == if $t1 == 1 { DType::T1 } else { DType::T2 } && op.k <= LONGEST_F32
            },
            launch: |op, _| tiles(op.m, op.n),
        }
    };
}

impl Kernel for TernaryMatmul {
    const NAME: &'static str = "ternary_matmul";
    const SIGNATURE: &'static str = "w[n,k]:t2|t1|t2x16|t1x16 ws[c]:f32 x[m,k]:i8 xs[m]:f32 -> y[m,l]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const CONSTANT: &'static [&'static str] = &["ws", "xs"];
    const WGSL: &'static [Wgsl<Self>] = ternary_variants!(
        "ternary_matvec",
        0,
        few,
        quads,
        plain,
        matrix!("matrix16", 16, 0),
        matrix!("matrix16.t1", 16, 1),
        matrix!("matrix8", 8, 0),
        matrix!("matrix8.t1", 8, 1),
        Wgsl {
            name: "plain",
            file: "ternary_matmul",
            needs: Needs::NONE,
            defines: &[("T1", 0)],
            when: |_, operands| operands[0].dtype == DType::T2,
            launch: |op, _| tiles(op.m, op.n),
        },
        Wgsl {
            name: "plain.t1",
            file: "ternary_matmul",
            needs: Needs::NONE,
            defines: &[("T1", 1)],
            when: |_, operands| operands[0].dtype == DType::T1,
            launch: |op, _| tiles(op.m, op.n),
        },
    );
    const CUDA: &'static [Cuda<Self>] = cuda::VARIANTS;

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("n", self.n as usize), ("k", self.k as usize), ("l", self.l as usize), ("c", self.scales as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.l != self.n || self.n0 != 0 {
            return Err(format!("ternary_matmul: columns {}+{} of {} are for pieces only", self.n0, self.n, self.l));
        }
        if self.scale >= self.scales {
            return Err(format!("ternary_matmul: there is no scale {} among {}", self.scale, self.scales));
        }
        if self.k > LONGEST {
            return Err(format!("ternary_matmul: k is {}, but sums are exact up to {LONGEST} only", self.k));
        }
        Ok(())
    }

    fn differentiable(operands: &[Spec]) -> bool {
        operands[0].dtype == DType::T2 && operands[1].elements() == 1
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [w, ws, x, xs, y] = t else { return };
        for i in 0..self.m as usize {
            for j in 0..self.n as usize {
                let sum: f64 = w.row(j).iter().zip(x.row(i)).map(|(w, x)| w * x).sum();
                y.data[i * self.l as usize + self.n0 as usize + j] = sum * (xs.data[i] * ws.data[self.scale as usize]);
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (n, k, path) = (self.n as usize, self.k as usize, Path::best());
        let w = Weights::new(args.read(0), args.spec(0).dtype, n, k);
        let ws = args.read::<f32>(1)[self.scale as usize];
        let x = Activations::new(path, args.read(2), k, &w);
        let to = Columns { n0: self.n0 as usize, l: self.l as usize };
        product(path, &w, &x, args.read(3), |_| ws, to, args.write(4));
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 4e-7, why: "an exact integer and two products of f32" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[(u32, u32, u32)] = match size {
            Size::Small => &[(1, 3, 8), (3, 5, 20)],
            Size::Ragged => {
                &[
                    (1, 1, 1),
                    (1, 70, 1031),
                    (3, 67, 259),
                    (6, 9, 4099),
                    (9, 130, 77),
                    (67, 129, 515),
                    (130, 61, 16),
                    // Rows of w of whole 16 bytes, k of more than 8192, tiles of 64 and of 128.
                    (1, 37, 832),
                    (1, 18, 8256),
                    (2, 17, 64),
                    (8, 35, 320),
                    (9, 20, 2560),
                    (67, 130, 384),
                    (130, 692, 320),
                    // Rows of w that begin anywhere in 16 bytes, in pairs that begin alike; blocks with several groups.
                    (1, 72, 1028),
                    (3, 2576, 516),
                    (9, 16, 8196),
                ]
            }
            Size::Bench => &[(1, 768, 768), (512, 768, 768), (512, 2048, 768), (1, 6912, 2560), (512, 2560, 6912)],
        };
        let case = |&(m, n, k): &(u32, u32, u32)| {
            Case::new(format!("{m}x{n}x{k}"), TernaryMatmul::whole(m, n, k))
                .scaled_by("w", "ws")
                .scaled_by("x", "xs")
                .fill("ws", Fill::Uniform(0.5, 2.0))
                .fill("xs", Fill::Uniform(0.01, 0.1))
        };
        let mut cases: Vec<Case> = shapes.iter().map(case).collect();
        if size == Size::Ragged {
            for shape in [(1, 65, 2573), (7, 33, 300), (65, 66, 67)] {
                let mut unit = case(&shape).fill("ws", Fill::Constant(1.0)).fill("xs", Fill::Constant(1.0)).exact();
                unit.label = format!("{} integers", unit.label);
                cases.push(unit);
            }
            for shape in [(2, 5, 8000), (70, 5, 8000)] {
                let extreme = case(&shape).fill("x", Fill::Constant(-128.0)).fill("w", Fill::Constant(1.0));
                let mut extreme = extreme.fill("ws", Fill::Constant(0.5)).fill("xs", Fill::Constant(0.25)).exact();
                extreme.label = format!("{} largest codes", extreme.label);
                cases.push(extreme);
            }
            let mut shared = case(&(3, 37, 100));
            shared.op = TernaryMatmul { scales: 3, scale: 1, ..TernaryMatmul::whole(3, 37, 100) }.into();
            shared.operands[1].spec.shape = vec![3];
            cases.push(Case { label: "one of three scales".into(), ..shared });
        }
        let others = [DType::T1, DType::T2x16, DType::T1x16].into_iter().flat_map(|dtype| {
            let recast = |case: &Case| Case { label: format!("{} {dtype}", case.label), ..case.clone().dtype("w", dtype) };
            cases.iter().map(recast).collect::<Vec<_>>()
        });
        let others: Vec<Case> = others.collect();
        cases.extend(others);
        cases
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dy) = cx.upstream(4) else { return Ok(()) };
        let (w, ws, x, xs) = (cx.operand(0), cx.operand(1), cx.operand(2), cx.operand(3));
        let dtype = cx.graph.spec(dy).dtype;
        if cx.wanted(2) {
            let values = dequantize_ternary(cx.graph, w, ws, dtype)?;
            let dx = matmul_nn(cx.graph, dy, values)?;
            cx.give(2, dx);
        }
        if cx.wanted(0) {
            let values = dequantize_int8(cx.graph, x, xs, dtype)?;
            let dw = cx.accumulator(0)?;
            matmul_tn_add(cx.graph, dy, values, dw)?;
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let [w, _, x, xs, y] = operands else { return None };
        if w.dtype.only_cpu() || x.bytes().max(xs.bytes()).max(y.bytes()) > limit {
            return None;
        }
        let (m, n) = (self.m as usize, self.n as usize);
        let fit = usize::try_from(limit / w.row_bytes()).unwrap_or(usize::MAX);
        // Rows of whole words: 64 of them are a multiple of 256 bytes, as bindings must be.
        let most = if fit >= 64 { fit / 64 * 64 } else { fit };
        let pieces = (0..n).step_by(most.max(1)).map(|first| {
            let count = most.min(n - first);
            let op = TernaryMatmul { n: count as u32, n0: self.n0 + first as u32, ..*self };
            Piece { op, rows: vec![(first, count), (0, self.scales as usize), (0, m), (0, 1), (0, m)] }
        });
        (most > 0).then(|| pieces.collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
