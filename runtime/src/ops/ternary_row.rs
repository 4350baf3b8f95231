//! What the fused decode rows share: a norm, int8 quantisation and a ternary product in one op.
//!
//! For each row `x_i`: `n = rms_norm(x_i; norm, eps)` where there is a norm weight (`p = k`), else
//! `n = x_i` (`p = 1`, the weight unread); `(q, s) = quantize_int8(n)`; and
//! `y_ij = (Σ_l t_jl · q_l) · (s · ws_j)`, with `ws_j` the scale of the matrix that row `j` belongs to.
//! Each step is that of the row of its name, so a fused row on the CPU equals its unfused
//! composition bit for bit.

use crate::cpu::ternary::{Activations, Columns, Path, Weights, product};
use crate::dtype::{DType, Spec};
use crate::op::{Args, Case, Fill, Kernel, Size};
use crate::ops::quantize_int8::{QuantizeInt8, clear, quantize_row};
use crate::ops::rms_norm::{RmsNorm, norm_row};
use crate::reference::RefTensor;

/// Extents of the product inside.
#[derive(Clone, Copy)]
pub(super) struct Inner {
    /// Rows of `x`.
    pub(super) m: u32,
    /// Rows of `w`.
    pub(super) n: u32,
    /// Columns of both.
    pub(super) k: u32,
    /// Elements of the norm weight: `k`, or 1 for no norm.
    pub(super) p: u32,
    /// Added to the mean square.
    pub(super) eps: f32,
}

impl Inner {
    /// Refuses what is neither a norm nor none, and rows too long for exact sums.
    pub(super) fn check(&self, name: &str) -> std::result::Result<(), String> {
        if self.p != self.k && self.p != 1 {
            return Err(format!(
                "{name}: a norm weight of {} for rows of {}; give as many, or 1 for no norm",
                self.p, self.k
            ));
        }
        if self.k > super::ternary_matmul::LONGEST {
            return Err(format!("{name}: rows of {} are too long for exact sums", self.k));
        }
        Ok(())
    }

    /// The product's rows in f64; `scale(j)` is the scale of row `j` of `w`.
    pub(super) fn reference(
        &self,
        x: &RefTensor,
        norm: &RefTensor,
        w: &RefTensor,
        scale: impl Fn(usize) -> f64,
    ) -> Vec<f64> {
        let (m, k) = (self.m as usize, self.k as usize);
        let (matrix, column) = (Spec::new([m, k], DType::F32), Spec::new([m], DType::F32));
        let mut normed = RefTensor::filled(matrix.clone(), 0.0);
        if self.p == self.k {
            let mut t = [x.clone(), norm.clone(), normed, RefTensor::filled(column.clone(), 0.0)];
            RmsNorm { m: self.m, k: self.k, eps: self.eps }.reference(&mut t);
            [_, _, normed, _] = t;
        } else {
            normed.data.copy_from_slice(&x.data);
        }
        let mut t = [normed, RefTensor::filled(matrix, 0.0), RefTensor::filled(column, 0.0)];
        QuantizeInt8 { m: self.m, k: self.k }.reference(&mut t);
        let [_, q, s] = t;
        let mut y = Vec::with_capacity(m * self.n as usize);
        for i in 0..m {
            for j in 0..self.n as usize {
                let sum: f64 = w.row(j).iter().zip(q.row(i)).map(|(w, q)| w * q).sum();
                y.push(sum * (s.data[i] * scale(j)));
            }
        }
        y
    }

    /// The product's rows of the operands `x`, `norm` and `w`, which are the first three of a fused row.
    pub(super) fn cpu(&self, args: &Args<'_>, scale: impl Fn(usize) -> f32 + Sync) -> Vec<f32> {
        let (m, n, k) = (self.m as usize, self.n as usize, self.k as usize);
        let (x, norm) = (args.read::<f32>(0), args.read::<f32>(1));
        let mut codes = vec![0u32; m * DType::I8.row_bytes(k) / 4];
        let mut scales = vec![0f32; m];
        let mut normed = vec![0f32; k];
        let rows = bytemuck::cast_slice_mut::<u32, u8>(&mut codes).chunks_exact_mut(DType::I8.row_bytes(k));
        for ((x, codes), s) in x.chunks_exact(k).zip(rows).zip(&mut scales) {
            *s = if self.p == self.k {
                norm_row(x, norm, self.eps, &mut normed);
                quantize_row(&normed, codes)
            } else {
                quantize_row(x, codes)
            };
        }
        let path = Path::best();
        let w = Weights::new(args.read(2), args.spec(2).dtype, n, k);
        let x = Activations::new(path, &codes, k, &w);
        let mut y = vec![0f32; m * n];
        product(path, &w, &x, &scales, scale, Columns { n0: 0, l: n }, &mut y);
        y
    }

    /// Operations of the product.
    pub(super) fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k) + 8 * u64::from(self.m) * u64::from(self.k)
    }

    /// Fills a case so that codes lie clear of ties, with and without a norm: the factor of a norm cancels
    /// in the codes, and its weights are powers of two.
    pub(super) fn fill(&self, case: Case) -> Case {
        let k = self.k as usize;
        let weight = |j: usize| if self.p == self.k { [1.0, 0.5, 2.0][j % 3] } else { 1.0 };
        let x = clear(self.m, self.k).into_iter().enumerate().map(|(i, v)| v / weight(i % k)).collect();
        let norm = (0..self.p as usize).map(weight).collect();
        let reach = 1.0 / f64::from(self.k).sqrt();
        case.fill("x", Fill::Values(x)).fill("norm", Fill::Values(norm)).fill("ws", Fill::Uniform(reach, 2.0 * reach))
    }

    /// Of the layouts of weights.
    pub(super) fn with_layouts(cases: Vec<Case>) -> Vec<Case> {
        let all = [DType::T2, DType::T1, DType::T2x16, DType::T1x16];
        let recast = |case: &Case, dtype: DType| Case {
            label: format!("{} {dtype}", case.label),
            ..case.clone().dtype("w", dtype)
        };
        cases.iter().flat_map(|case| all.map(|dtype| recast(case, dtype))).collect()
    }
}

/// `(m, k, with a norm?)` of test cases.
pub(super) fn inputs(size: Size) -> Vec<(u32, u32, bool)> {
    match size {
        Size::Small => vec![(2, 20, true), (1, 12, false)],
        Size::Ragged => vec![
            (1, 1, true),
            (1, 259, true),
            (1, 640, false),
            (1, 2560, true),
            (3, 77, true),
            (4, 320, false),
            (5, 1024, true),
            (1, 8264, true),
            (9, 640, true),
        ],
        Size::Bench => vec![(1, 768, true), (1, 2560, true), (1, 6912, true), (1, 4096, true)],
    }
}
