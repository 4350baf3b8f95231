//! Values of ternary codes: `y_ij = t_ij · s`.
//!
//! The gradient of codes is that of the dequantised value, so it passes unchanged.

use crate::cpu::parallel;
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{elementwise, split};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct DequantizeTernary {
    /// Rows.
    pub n: u32,
    /// Columns.
    pub k: u32,
}

/// Records `t[n,k] · s[1]` in f32 or bf16.
pub fn dequantize_ternary(g: &mut Graph, t: Value, s: Value, dtype: DType) -> Result<Value> {
    let (n, k) = (g.spec(t).rows() as u32, g.spec(t).cols() as u32);
    g.apply_to(DequantizeTernary { n, k }, &[t, s], dtype)
}

impl Kernel for DequantizeTernary {
    const NAME: &'static str = "dequantize_ternary";
    const SIGNATURE: &'static str = "t[n,k]:t2 s[1]:f32 -> y[n,k]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const CONSTANT: &'static [&'static str] = &["s"];
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "dequantize_ternary",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.n as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["dequantize_ternary_f32", "dequantize_ternary_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda_for(&t[2], ["dequantize_ternary_f32", "dequantize_ternary_bf16"]),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("n", self.n as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [t, s, y] = t else { return };
        for (y, t) in y.data.iter_mut().zip(&t.data) {
            *y = t * s.data[0];
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let words = k.div_ceil(16);
        let (t, s) = (args.read::<u32>(0), args.read::<f32>(1)[0]);
        parallel::rows(args.write::<f32>(2), k, k, |i, y| {
            for (y, &word) in y.chunks_mut(16).zip(&t[i * words..(i + 1) * words]) {
                for (j, y) in y.iter_mut().enumerate() {
                    *y = ((word >> (2 * j) & 3) as i32 - 1) as f32 * s;
                }
            }
        });
    }

    fn operations(&self) -> u64 {
        u64::from(self.n) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[(u32, u32)] = match size {
            Size::Small => &[(3, 8)],
            Size::Ragged => &[(1, 1), (5, 67), (2, 1031)],
            Size::Bench => &[(768, 2048), (6912, 2560)],
        };
        let case = |&(n, k): &(u32, u32)| {
            let case = Case::new(format!("{n}x{k}"), DequantizeTernary { n, k });
            case.scaled_by("t", "s").fill("s", Fill::Uniform(0.01, 0.1))
        };
        shapes.iter().map(case).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        if let (Some(dy), true) = (cx.upstream(2), cx.wanted(0)) {
            cx.give(0, dy);
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[1], limit, |_, rows| DequantizeTernary { n: rows as u32, ..*self })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pieces_give_the_whole() {
        let (n, k) = (13usize, 37usize);
        let op = DequantizeTernary { n: n as u32, k: k as u32 };
        let specs = crate::ops::Op::from(op).specs();
        let codes: Vec<f64> = (0..n * k).map(|i| (i * i % 7 % 3) as f64 - 1.0).collect();
        let t = crate::reference::encode(&specs[0], &codes);
        let run = |op: DequantizeTernary, t: &[u32], y: &mut [u32]| {
            let reads = vec![t, bytemuck::cast_slice(&[0.5f32]), &[]];
            op.cpu(Args::new(&specs, reads, vec![&mut [], &mut [], y]));
        };
        let mut whole = vec![u32::MAX; n * k];
        run(op, &t, &mut whole);
        assert!(whole.iter().zip(&codes).all(|(&y, t)| f64::from(f32::from_bits(y)) == 0.5 * t));
        let mut parts = vec![u32::MAX; n * k];
        let pieces = op.shard(&specs, 4 * 4 * k as u64).unwrap();
        assert_eq!(pieces.len(), 4);
        let words = k.div_ceil(16);
        for piece in pieces {
            let (first, count) = piece.rows[0];
            let t = &t[first * words..(first + count) * words];
            run(piece.op, t, &mut parts[first * k..(first + count) * k]);
        }
        assert_eq!(parts, whole);
    }
}
