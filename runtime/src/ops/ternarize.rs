//! Ternary codes of a weight matrix (BitNet b1.58, Ma et al. 2024, equations 1 to 3).
//!
//! `t_ij = clamp(round(w_ij · (1 / s)), -1, 1)`, halves to even, where `s` is the mean absolute value
//! of the whole matrix (at least 1e-5), computed before. Padding codes are 1 (zero). The gradient is
//! straight-through: the gradient of `t · s` is the gradient of `w`; `s` gets none.

use crate::cpu::parallel;
use crate::dtype::Spec;
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, Fill, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::split;
use crate::random::Random;
use crate::reference::RefTensor;

/// Adding it rounds a small f32 to an integer, halves to even; the low bits are then that integer.
const ROUND: f32 = 12_582_912.0;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Ternarize {
    /// Rows.
    pub n: u32,
    /// Columns.
    pub k: u32,
}

/// Records the ternary codes `t[n,k]` of `w[n,k]` for the scale `s[1]`.
pub fn ternarize(g: &mut Graph, w: Value, s: Value) -> Result<Value> {
    let (n, k) = (g.spec(w).rows() as u32, g.spec(w).cols() as u32);
    g.apply(Ternarize { n, k }, &[w, s])
}

impl Kernel for Ternarize {
    const NAME: &'static str = "ternarize";
    const SIGNATURE: &'static str = "w[n,k]:f32 s[1]:f32 -> t[n,k]:t2";
    const GRADIENT: Gradient = Gradient::Rule;
    const CONSTANT: &'static [&'static str] = &["s"];
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "ternarize",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.n as usize * (op.k as usize).div_ceil(16)).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["ternarize_f32"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| {
            // A block of 256 threads makes 256 words.
            CudaKernel::new("ternarize_f32", (t[2].bytes() / 4).div_ceil(256) as usize, 256).into()
        },
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("n", self.n as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [w, s, t] = t else { return };
        for (t, w) in t.data.iter_mut().zip(&w.data) {
            *t = (w * (1.0 / s.data[0])).round_ties_even().clamp(-1.0, 1.0);
        }
    }

    /// The dequantised value without rounding: gradients of codes are those of `t · s`.
    fn surrogate(&self, t: &mut [RefTensor]) {
        let [w, _, t] = t else { return };
        t.data.copy_from_slice(&w.data);
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let (w, scale) = (args.read::<f32>(0), 1.0 / args.read::<f32>(1)[0]);
        parallel::rows(args.write::<u32>(2), k.div_ceil(16), k, |i, t| pack_row(&w[i * k..(i + 1) * k], scale, t));
    }

    fn operations(&self) -> u64 {
        3 * u64::from(self.n) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::OneCode { float: 0.0 }
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[(u32, u32, f64)] = match size {
            Size::Small => &[(3, 8, 0.5)],
            Size::Ragged => &[(1, 1, 0.02), (5, 67, 0.3), (33, 1031, 1e-5), (37, 112, 0.3)],
            Size::Bench => &[(768, 2048, 0.02), (6912, 2560, 0.02)],
        };
        let case = |&(n, k, s): &(u32, u32, f64)| {
            Case::new(format!("{n}x{k}"), Ternarize { n, k })
                .fill("w", Fill::Values(clear(n, k, s)))
                .fill("s", Fill::Constant(s))
                .scaled_by("t", "s")
        };
        let mut cases: Vec<Case> = shapes.iter().map(case).collect();
        if size == Size::Ragged {
            let steps: Vec<f64> = (0..3 * 21).map(|i| 0.25 * (f64::from(i % 21) - 10.0)).collect();
            let ties = Case::new("ties", Ternarize { n: 3, k: 21 }).fill("s", Fill::Constant(0.5));
            cases.push(ties.fill("w", Fill::Values(steps)).scaled_by("t", "s"));
        }
        cases
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        if let (Some(dt), true) = (cx.upstream(2), cx.wanted(0)) {
            cx.give(0, dt);
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[1], limit, |_, rows| Ternarize { n: rows as u32, ..*self })
    }
}

/// Codes of a row of weights for the reciprocal of their scale, in `w.len().div_ceil(16)` words; padding is
/// code 1.
pub fn pack_row(w: &[f32], reciprocal: f32, words: &mut [u32]) {
    let (whole, rest) = w.as_chunks::<16>();
    for (word, w) in words.iter_mut().zip(whole) {
        *word = pack(w, reciprocal);
    }
    if let (Some(last), false) = (words.last_mut(), rest.is_empty()) {
        let mut padded = [0.0; 16];
        padded[..rest.len()].copy_from_slice(rest);
        *last = pack(&padded, reciprocal);
    }
}

/// Codes of 16 weights.
fn pack(w: &[f32; 16], scale: f32) -> u32 {
    let mut codes = [0u32; 16];
    for (i, (code, w)) in codes.iter_mut().zip(w).enumerate() {
        let rounded = ((w * scale).clamp(-1.0, 1.0) + ROUND).to_bits();
        *code = (rounded.wrapping_add(1) & 3) << (2 * i);
    }
    codes.into_iter().fold(0, |word, code| word | code)
}

/// Weights at least 0.02 of a code away from a tie at a scale `s`; all three codes occur.
fn clear(n: u32, k: u32, s: f64) -> Vec<f64> {
    let mut random = Random::new(12);
    let mut value = || {
        let code = random.below(5) as f64 - 2.0;
        s * (code + 0.96 * (random.uniform() - 0.5))
    };
    (0..u64::from(n) * u64::from(k)).map(|_| value()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn pieces_give_the_whole() {
        let (n, k) = (13, 37);
        let op = Ternarize { n, k };
        let specs = crate::ops::Op::from(op).specs();
        let w: Vec<f32> = clear(n, k, 0.5).into_iter().map(|v| v as f32).collect();
        let run = |op: Ternarize, w: &[f32], t: &mut [u32]| {
            let reads = vec![bytemuck::cast_slice(w), bytemuck::cast_slice(&[0.5f32]), &[]];
            op.cpu(Args::new(&specs, reads, vec![&mut [], &mut [], t]));
        };
        let words = DType::T2.row_bytes(k as usize) / 4;
        let mut whole = vec![u32::MAX; n as usize * words];
        run(op, &w, &mut whole);
        let mut parts = vec![u32::MAX; whole.len()];
        let pieces = op.shard(&specs, 4 * 4 * u64::from(k)).unwrap();
        assert_eq!(pieces.len(), 4);
        for piece in pieces {
            let (first, count) = piece.rows[2];
            let w = &w[first * k as usize..(first + count) * k as usize];
            run(piece.op, w, &mut parts[first * words..(first + count) * words]);
        }
        assert_eq!(parts, whole);
    }
}
