//! Rotary position embedding (Su et al. 2021), half-split pairs `(i, i + d/2)`.
//!
//! Token `m` at position `pos_m` turns pair `i` of every head by `sign · pos_m · w_i`. Cosines and
//! sines come from two tables and are composed by angle addition, so that the tables stay small
//! at any context length: with `pos = hi·f + lo`,
//! `cos = cos_hi·cos_lo − sin_hi·sin_lo` and `sin = sin_hi·cos_lo + cos_hi·sin_lo`.
//! Row `r` of `fine` is `[cos(r·w_0), …, cos(r·w_{d/2−1}), sin(r·w_0), …]`, row `r` of `coarse` the
//! same at `r·f`. Positions from `c·f` on count as `c·f − 1`.

use crate::cpu::parallel;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::elementwise;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Rope {
    /// Tokens.
    pub m: u32,
    /// Heads.
    pub h: u32,
    /// Elements of a head, even.
    pub d: u32,
    /// Rows of the coarse table.
    pub c: u32,
    /// Rows of the fine table.
    pub f: u32,
    /// +1 forward, −1 for the gradient.
    pub sign: f32,
}

/// The two tables, row-major `[c, d]` and `[f, d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables {
    /// Angles `r·f·w`.
    pub coarse: Vec<f32>,
    /// Angles `r·w`.
    pub fine: Vec<f32>,
    /// Rows of `coarse`.
    pub c: usize,
    /// Rows of `fine`.
    pub f: usize,
}

/// Tables for positions below `max_positions`, computed in f64; `inv_freq` has `d/2` entries.
pub fn tables(inv_freq: &[f64], max_positions: usize) -> Tables {
    const FINE: usize = 64;
    let table = |rows: usize, step: usize| {
        let mut t = Vec::with_capacity(rows * 2 * inv_freq.len());
        for r in 0..rows {
            let angle = |w: &f64| (r * step) as f64 * w;
            t.extend(inv_freq.iter().map(|w| angle(w).cos() as f32));
            t.extend(inv_freq.iter().map(|w| angle(w).sin() as f32));
        }
        t
    };
    let c = max_positions.div_ceil(FINE).max(1);
    Tables { coarse: table(c, FINE), fine: table(FINE, 1), c, f: FINE }
}

/// `theta^(−2i/d)` for `i < d/2`.
pub fn inverse_frequencies(theta: f64, d: usize) -> Vec<f64> {
    (0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64)).collect()
}

/// Frequencies stretched as Llama 3.1 does: wavelengths above `original_max / low_freq_factor` are
/// slowed by `factor`, those below `original_max / high_freq_factor` are kept, and between the two
/// the frequency is interpolated.
pub fn llama3(
    inv: &[f64],
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_max: f64,
) -> Vec<f64> {
    let stretch = |&w: &f64| {
        let wavelength = std::f64::consts::TAU / w;
        if wavelength > original_max / low_freq_factor {
            w / factor
        } else if wavelength < original_max / high_freq_factor {
            w
        } else {
            let t = (original_max / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - t) * w / factor + t * w
        }
    };
    inv.iter().map(stretch).collect()
}

/// Records the rotation of `x[m,h,d]` by the positions `pos[m]`.
pub fn rope(g: &mut Graph, x: Value, pos: Value, coarse: Value, fine: Value) -> Result<Value> {
    turned(g, x, pos, [coarse, fine], 1.0)
}

/// Records the rotation of `x[m,h,d]` back by the positions `pos[m]`.
pub fn rope_back(g: &mut Graph, x: Value, pos: Value, coarse: Value, fine: Value) -> Result<Value> {
    turned(g, x, pos, [coarse, fine], -1.0)
}

fn turned(g: &mut Graph, x: Value, pos: Value, [coarse, fine]: [Value; 2], sign: f32) -> Result<Value> {
    let &[m, h, d] = g.spec(x).shape.as_slice() else {
        let message = format!("rope: `{}` ({}) is not [tokens, heads, head size]", g.value_name(x), g.spec(x));
        return Err(Error::Record { graph: g.name().into(), message });
    };
    let (c, f) = (g.spec(coarse).rows(), g.spec(fine).rows());
    let [m, h, d, c, f] = [m, h, d, c, f].map(|n| n as u32);
    g.apply(Rope { m, h, d, c, f, sign }, &[x, pos, coarse, fine])
}

impl Rope {
    /// Rows of the coarse and of the fine table for a position.
    fn split(&self, pos: u64) -> (usize, usize) {
        let f = u64::from(self.f);
        let pos = pos.min(u64::from(self.c) * f - 1);
        ((pos / f) as usize, (pos % f) as usize)
    }

    /// The heads of one token, `x` to `y`.
    pub(super) fn rotate(&self, pos: u32, coarse: &[f32], fine: &[f32], x: &[f32], y: &mut [f32]) {
        let d = self.d as usize;
        let half = d / 2;
        let (hi, lo) = self.split(u64::from(pos));
        let (cos_hi, sin_hi) = coarse[hi * d..(hi + 1) * d].split_at(half);
        let (cos_lo, sin_lo) = fine[lo * d..(lo + 1) * d].split_at(half);
        let (mut cos, mut sin) = (vec![0f32; half], vec![0f32; half]);
        for j in 0..half {
            cos[j] = cos_hi[j] * cos_lo[j] - sin_hi[j] * sin_lo[j];
            sin[j] = self.sign * (sin_hi[j] * cos_lo[j] + cos_hi[j] * sin_lo[j]);
        }
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let ((ya, yb), (xa, xb)) = (y.split_at_mut(half), x.split_at(half));
            for j in 0..half {
                ya[j] = xa[j] * cos[j] - xb[j] * sin[j];
                yb[j] = xb[j] * cos[j] + xa[j] * sin[j];
            }
        }
    }
}

impl Kernel for Rope {
    const NAME: &'static str = "rope";
    const SIGNATURE: &'static str = "x[m,h,d]:f32|bf16 pos[m]:u32 coarse[c,d]:f32 fine[f,d]:f32 -> y[m,h,d]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const CONSTANT: &'static [&'static str] = &["coarse", "fine"];
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "rope",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.h as usize * (op.d as usize / 2)).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["rope_f32", "rope_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| {
            // A thread makes two vectors of y, one in each half of a head.
            let entry = if t[4].dtype == DType::Bf16 { "rope_bf16" } else { "rope_f32" };
            elementwise::cuda(entry, t[4].bytes() / 2)
        },
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        let Rope { m, h, d, c, f, .. } = *self;
        [("m", m), ("h", h), ("d", d), ("c", c), ("f", f)].map(|(name, n)| (name, n as usize)).to_vec()
    }

    fn check(&self) -> std::result::Result<(), String> {
        if !self.d.is_multiple_of(2) {
            return Err(format!("rope: the head size {} is odd; pairs (i, i + d/2) need an even one", self.d));
        }
        Ok(())
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, pos, coarse, fine, y] = t else { return };
        let (h, d) = (self.h as usize, self.d as usize);
        let half = d / 2;
        for i in 0..self.m as usize {
            let (hi, lo) = self.split(pos.data[i] as u64);
            let (hi, lo) = (coarse.row(hi), fine.row(lo));
            for (head, j) in (0..h).flat_map(|head| (0..half).map(move |j| (head, j))) {
                let cos = hi[j] * lo[j] - hi[half + j] * lo[half + j];
                let sin = f64::from(self.sign) * (hi[half + j] * lo[j] + hi[j] * lo[half + j]);
                let (a, b) = ((i * h + head) * d + j, (i * h + head) * d + half + j);
                y.data[a] = x.data[a] * cos - x.data[b] * sin;
                y.data[b] = x.data[b] * cos + x.data[a] * sin;
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (h, d) = (self.h as usize, self.d as usize);
        let (x, pos) = (args.read::<f32>(0), args.read::<u32>(1));
        let (coarse, fine) = (args.read::<f32>(2), args.read::<f32>(3));
        parallel::rows(args.write::<f32>(4), h * d, 2 * h * d, |i, y| {
            self.rotate(pos[i], coarse, fine, &x[i * h * d..(i + 1) * h * d], y);
        });
    }

    fn operations(&self) -> u64 {
        let tokens = u64::from(self.m);
        3 * tokens * u64::from(self.h) * u64::from(self.d) + 3 * tokens * u64::from(self.d)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 1e-6, why: "two nested sums of two products in f32: at most 6 roundings" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[[u32; 5]] = match size {
            Size::Small => &[[3, 2, 4, 3, 4]],
            Size::Ragged => &[[1, 1, 2, 1, 1], [7, 3, 24, 5, 7], [67, 5, 16, 33, 64]],
            Size::Bench => &[[1, 12, 64, 32, 64], [512, 12, 64, 32, 64], [512, 20, 128, 64, 64]],
        };
        let mut cases = Vec::new();
        for &[m, h, d, c, f] in sizes {
            for sign in [1.0, -1.0] {
                // Positions past the tables are clamped: a few of them.
                let positions = i64::from(c) * i64::from(f) + 2;
                let label = format!("{m} tokens, {h} heads of {d}, sign {sign}");
                cases.push(Case::new(label, Rope { m, h, d, c, f, sign }).fill("pos", Fill::Integers(0, positions)));
            }
        }
        cases
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dy) = cx.upstream(4) else { return Ok(()) };
        if cx.wanted(0) {
            let (pos, coarse, fine) = (cx.operand(1), cx.operand(2), cx.operand(3));
            let dx = cx.graph.apply(Rope { sign: -self.sign, ..*self }, &[dy, pos, coarse, fine])?;
            cx.give(0, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composed_tables_give_the_angle_itself() {
        let inv = inverse_frequencies(10_000.0, 8);
        let t = tables(&inv, 1000);
        assert_eq!((t.c, t.f, t.coarse.len(), t.fine.len()), (16, 64, 16 * 8, 64 * 8));
        for pos in [0usize, 1, 63, 64, 65, 999] {
            let (hi, lo) = (&t.coarse[pos / 64 * 8..], &t.fine[pos % 64 * 8..]);
            for (i, w) in inv.iter().enumerate() {
                let cos = f64::from(hi[i] * lo[i] - hi[4 + i] * lo[4 + i]);
                let sin = f64::from(hi[4 + i] * lo[i] + hi[i] * lo[4 + i]);
                let angle = pos as f64 * w;
                assert!((cos - angle.cos()).abs() < 2e-7 && (sin - angle.sin()).abs() < 2e-7);
            }
        }
    }

    #[test]
    fn llama3_keeps_fast_slows_slow_and_blends_between() {
        let original = 8192.0;
        let wave = |length: f64| std::f64::consts::TAU / length;
        let stretched = llama3(&[wave(100.0), wave(8192.0 / 2.0), wave(20_000.0)], 8.0, 1.0, 4.0, original);
        assert_eq!(stretched[0], wave(100.0));
        let t = (2.0 - 1.0) / 3.0;
        let blend = (1.0 - t) * wave(4096.0) / 8.0 + t * wave(4096.0);
        assert!((stretched[1] - blend).abs() < 1e-15);
        assert_eq!(stretched[2], wave(20_000.0) / 8.0);
    }
}
