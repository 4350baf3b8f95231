//! Products of f32 activations with weights that are stored in fewer bits: 16-bit floats, and integers
//! with a scale for each group.
//!
//! Few rows of activations are bound by reading the weights: each row of them is unpacked in
//! registers and multiplied once for every row of `x`. For many rows a window of the weights is
//! widened to f32 and goes through the dense product. Sums run in f32, in an order that depends
//! on the shape alone.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

use crate::cpu::parallel;
use crate::dtype::{DType, Spec};
use crate::layout::code_at;
use crate::ops::dense_gemm::{Extents, Matrix, dot, gemm};
use half::{bf16, f16};

/// Rows of `x` up to which unpacking the weights anew for each is cheaper than widening them.
const FEW: usize = 8;
/// Rows of weights that are in f32 at a time.
const WIDENED: usize = 512;

/// A stored matrix `[n, k]`.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    dtype: DType,
    k: usize,
    bytes: &'a [u8],
    row: usize,
    group: usize,
    scales: &'a [u16],
}

impl<'a> Stored<'a> {
    /// 16-bit floats.
    pub(crate) fn floats(spec: &Spec, bytes: &'a [u8]) -> Self {
        Stored { dtype: spec.dtype, k: spec.cols(), bytes, row: spec.row_bytes() as usize, group: 0, scales: &[] }
    }

    /// Integers; `scales` as stored for rows of `⌈k/group⌉` f16 values.
    pub(crate) fn groups(spec: &Spec, bytes: &'a [u8], group: usize, scales: &'a [u16]) -> Self {
        let (k, row) = (spec.cols(), spec.row_bytes() as usize);
        Stored { dtype: spec.dtype, k, bytes, row, group, scales }
    }

    fn row(&self, j: usize) -> &'a [u8] {
        &self.bytes[j * self.row..(j + 1) * self.row]
    }

    /// Scales of a row, none for floats.
    fn halves(&self, j: usize) -> &'a [u16] {
        if self.group == 0 {
            return &[];
        }
        let count = self.k.div_ceil(self.group);
        let stride = DType::F16.padded(count);
        &self.scales[j * stride..][..count]
    }

    /// Scales of a row in f32.
    fn row_scales(&self, j: usize) -> impl Iterator<Item = f32> + use<'a> {
        self.halves(j).iter().map(|&bits| f16::from_bits(bits).to_f32())
    }

    /// The same, into a buffer.
    fn scales_into(&self, j: usize, to: &mut Vec<f32>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(path) = x86::Wide::best() {
            return path.widen(self.halves(j), to);
        }
        to.clear();
        to.extend(self.row_scales(j));
    }

    /// Row `j` in f32.
    pub(crate) fn widen(&self, j: usize, to: &mut [f32]) {
        let row = self.row(j);
        let half = |i: usize| u16::from_le_bytes([row[2 * i], row[2 * i + 1]]);
        match self.dtype {
            DType::F16 => to.iter_mut().enumerate().for_each(|(i, v)| *v = f16::from_bits(half(i)).to_f32()),
            DType::Bf16 => to.iter_mut().enumerate().for_each(|(i, v)| *v = bf16::from_bits(half(i)).to_f32()),
            _ => {
                let groups = to.chunks_mut(self.group).zip(self.row_scales(j)).enumerate();
                for (g, (to, scale)) in groups {
                    let first = g * self.group;
                    to.iter_mut()
                        .enumerate()
                        .for_each(|(i, v)| *v = code_at(self.dtype, row, first + i) as f32 * scale);
                }
            }
        }
    }
}

/// Where the product's columns go.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Rows of `x` and `y`.
    pub(crate) m: usize,
    /// Rows of the weights.
    pub(crate) n: usize,
    /// First column.
    pub(crate) n0: usize,
    /// Columns of a row of `y`.
    pub(crate) l: usize,
}

/// Columns `n0..n0 + n` of `y[m, l]` are `x[m, k] · wᵀ`.
pub(crate) fn product(w: &Stored<'_>, x: &[f32], t: Target, y: &mut [f32]) {
    if t.m > FEW {
        return wide(w, x, t, y);
    }
    let rows = |first: usize, y: &mut [f32]| {
        let mut scales = Vec::new();
        for (j, y) in y.chunks_exact_mut(t.m).enumerate() {
            w.scales_into(first + j, &mut scales);
            for (x, y) in x.chunks_exact(w.k).zip(y) {
                *y = row_dot(w, w.row(first + j), &scales, x);
            }
        }
    };
    let chunk = (t.n / (8 * parallel::threads())).clamp(1, (256 << 10) / w.row.max(1) + 1);
    if t.m == 1 {
        parallel::rows(&mut y[t.n0..t.n0 + t.n], chunk, chunk * w.k, |c, y| rows(c * chunk, y));
        return;
    }
    let mut transposed = vec![0.0; t.n * t.m];
    parallel::rows(&mut transposed, chunk * t.m, chunk * w.k * t.m, |c, y| rows(c * chunk, y));
    for (i, y) in y.chunks_exact_mut(t.l).enumerate() {
        let column = transposed[i..].iter().step_by(t.m);
        y[t.n0..t.n0 + t.n].iter_mut().zip(column).for_each(|(y, &v)| *y = v);
    }
}

fn wide(w: &Stored<'_>, x: &[f32], t: Target, y: &mut [f32]) {
    let k = w.k;
    let mut widened = vec![0.0; WIDENED.min(t.n) * k];
    for first in (0..t.n).step_by(WIDENED) {
        let n = WIDENED.min(t.n - first);
        parallel::rows(&mut widened[..n * k], k, k, |j, row| w.widen(first + j, row));
        let a = Matrix { data: x, row: k, col: 1 };
        let b = Matrix { data: &widened, row: 1, col: k };
        gemm(&mut y[t.n0 + first..], t.l, Extents { m: t.m, n, depth: k }, a, b, false);
    }
}

/// Dot product of a stored row, its scales in f32, with `x`.
fn row_dot(w: &Stored<'_>, row: &[u8], scales: &[f32], x: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(sum) = x86::Wide::best().and_then(|path| path.dot(w.dtype, row, w.group, scales, x)) {
        return sum;
    }
    plain_dot(w, row, scales, x)
}

/// The same in plain Rust, a group at a time.
fn plain_dot(w: &Stored<'_>, row: &[u8], scales: &[f32], x: &[f32]) -> f32 {
    const BLOCK: usize = 64;
    let mut values = [0f32; BLOCK];
    let half = |i: usize| u16::from_le_bytes([row[2 * i], row[2 * i + 1]]);
    let group = if w.group == 0 { BLOCK } else { w.group };
    let mut total = 0.0;
    for (g, x) in x.chunks(group).enumerate() {
        let scale = scales.get(g).copied().unwrap_or(1.0);
        for (b, x) in x.chunks(BLOCK).enumerate() {
            let first = g * group + b * BLOCK;
            let values = &mut values[..x.len()];
            for (i, v) in values.iter_mut().enumerate() {
                *v = match w.dtype {
                    DType::F16 => f16::from_bits(half(first + i)).to_f32(),
                    DType::Bf16 => bf16::from_bits(half(first + i)).to_f32(),
                    _ => code_at(w.dtype, row, first + i) as f32,
                };
            }
            total += scale * dot(values, x);
        }
    }
    total
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::reference::{decode, encode};

    #[test]
    fn vector_paths_agree_with_the_plain_loop_for_any_length() {
        let mut random = Random::new(5);
        for k in (1..150).chain([2560, 4099]) {
            let x: Vec<f32> = (0..k).map(|_| random.normal() as f32).collect();
            for dtype in [DType::F16, DType::Bf16, DType::I8, DType::I6, DType::I4] {
                let spec = Spec::new([1, k], dtype);
                let integer = matches!(dtype, DType::I8 | DType::I6 | DType::I4);
                let most =
                    [127.0, 31.0, 7.0][[DType::I8, DType::I6, DType::I4].iter().position(|&d| d == dtype).unwrap_or(0)];
                let value =
                    |r: &mut Random| if integer { (most * (2.0 * r.uniform() - 1.0)).round() } else { r.normal() };
                let values: Vec<f64> = (0..k).map(|_| value(&mut random)).collect();
                let words = encode(&spec, &values);
                let bytes: &[u8] = bytemuck::cast_slice(&words);
                let group = if integer { 16 * (1 + random.below(5) as usize) } else { 0 };
                let scales: Vec<f32> =
                    if integer { (0..k.div_ceil(group)).map(|_| random.normal() as f32).collect() } else { vec![] };
                let stored = Stored { dtype, k, bytes, row: bytes.len(), group, scales: &[] };
                let scale = |i: usize| if integer { f64::from(scales[i / group]) } else { 1.0 };
                let terms = decode(&spec, &words).into_iter().zip(&x).enumerate();
                let terms: Vec<f64> = terms.map(|(i, (w, x))| w * scale(i) * f64::from(*x)).collect();
                let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
                for found in [row_dot(&stored, bytes, &scales, &x), plain_dot(&stored, bytes, &scales, &x)] {
                    assert!((f64::from(found) - sum).abs() <= 1e-6 * size, "{dtype} {k} {group}: {found} {sum}");
                }
            }
        }
    }
}
