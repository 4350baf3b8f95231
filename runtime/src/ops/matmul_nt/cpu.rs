//! The product on the CPU.

use super::MatmulNt;
use crate::cpu::parallel;
use crate::dtype::DType;
use crate::ops::dense_gemm::{Extents, Matrix, dot, gemm};
use crate::ops::matmul::FEW;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Rows of an f16 weight that the CPU has in f32 at a time.
pub(super) const WIDENED: usize = 512;

/// The product of f32 factors.
pub(super) fn product(op: &MatmulNt, x: &[f32], w: &[f32], y: &mut [f32]) {
    let [m, n, k, n0, l] = [op.m, op.n, op.k, op.n0, op.l].map(|v| v as usize);
    if m <= FEW {
        few(x, w, k, m, y, n0, n, l);
        return;
    }
    let (a, b) = (Matrix { data: x, row: k, col: 1 }, Matrix { data: w, row: 1, col: k });
    gemm(&mut y[n0..], l, Extents { m, n, depth: k }, a, b, false);
}

/// The product of stored f16 factors.
pub(super) fn product_f16(op: &MatmulNt, x: &[f16], w: &[f16], y: &mut [f32]) {
    let (m, n, k) = (op.m as usize, op.n as usize, op.k as usize);
    let x = widened(x, 0, m, k);
    // The weight in windows: whole, its copy in f32 would be twice its size.
    for first in (0..n).step_by(WIDENED) {
        let rows = WIDENED.min(n - first);
        let window = MatmulNt { n: rows as u32, n0: op.n0 + first as u32, ..*op };
        product(&window, &x, &widened(w, first, rows, k), y);
    }
}

/// Rows `first..first + rows` of a stored f16 matrix with `k` columns in f32, without padding.
fn widened(stored: &[f16], first: usize, rows: usize, k: usize) -> Vec<f32> {
    let width = DType::F16.padded(k);
    let mut wide = vec![0f32; rows * k];
    parallel::rows(&mut wide, k, k, |i, row| {
        stored[(first + i) * width..][..k].convert_to_f32_slice(row);
    });
    wide
}

/// A few rows of `x`: each row of `w` is read from memory once, for all of them.
#[allow(clippy::too_many_arguments)]
fn few(x: &[f32], w: &[f32], k: usize, m: usize, y: &mut [f32], n0: usize, n: usize, l: usize) {
    if m == 1 {
        parallel::rows(&mut y[n0..n0 + n], 1, k, |j, y| y[0] = dot(x, &w[j * k..(j + 1) * k]));
        return;
    }
    let mut columns = vec![0f32; n * m];
    parallel::rows(&mut columns, m, m * k, |j, column| {
        for (y, x) in column.iter_mut().zip(x.chunks_exact(k)) {
            *y = dot(x, &w[j * k..(j + 1) * k]);
        }
    });
    for (i, y) in y.chunks_exact_mut(l).enumerate() {
        for (y, column) in y[n0..n0 + n].iter_mut().zip(columns.chunks_exact(m)) {
            *y = column[i];
        }
    }
}
