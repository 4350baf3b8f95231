//! Values of int8 codes: `y_ij = q_ij · s_i`.
//!
//! The gradient of codes is that of the dequantised value, so it passes unchanged.

use crate::cpu::parallel;
use crate::dtype::DType;
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::elementwise;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct DequantizeInt8 {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

/// Records `q[m,k] · s[m]` in f32 or bf16.
pub fn dequantize_int8(g: &mut Graph, q: Value, s: Value, dtype: DType) -> Result<Value> {
    let (m, k) = (g.spec(q).rows() as u32, g.spec(q).cols() as u32);
    g.apply_to(DequantizeInt8 { m, k }, &[q, s], dtype)
}

impl Kernel for DequantizeInt8 {
    const NAME: &'static str = "dequantize_int8";
    const SIGNATURE: &'static str = "q[m,k]:i8 s[m]:f32 -> y[m,k]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const CONSTANT: &'static [&'static str] = &["s"];
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "dequantize_int8",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["dequantize_int8_f32", "dequantize_int8_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda_for(&t[2], ["dequantize_int8_f32", "dequantize_int8_bf16"]),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [q, s, y] = t else { return };
        let k = self.k as usize;
        for (i, (y, q)) in y.data.iter_mut().zip(&q.data).enumerate() {
            *y = q * s.data[i / k];
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let row = DType::I8.row_bytes(k);
        let (q, s) = (args.read::<i8>(0), args.read::<f32>(1));
        parallel::rows(args.write::<f32>(2), k, k, |i, y| {
            for (y, &q) in y.iter_mut().zip(&q[i * row..(i + 1) * row]) {
                *y = f32::from(q) * s[i];
            }
        });
    }

    fn operations(&self) -> u64 {
        u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[(u32, u32)] = match size {
            Size::Small => &[(3, 8)],
            Size::Ragged => &[(1, 1), (5, 67), (2, 1031)],
            Size::Bench => &[(512, 768), (512, 6912)],
        };
        let case = |&(m, k): &(u32, u32)| {
            let case = Case::new(format!("{m}x{k}"), DequantizeInt8 { m, k }).scaled_by("q", "s");
            case.fill("q", Fill::Integers(-128, 128)).fill("s", Fill::Uniform(0.01, 0.1))
        };
        shapes.iter().map(case).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        if let (Some(dy), true) = (cx.upstream(2), cx.wanted(0)) {
            cx.give(0, dy);
        }
        Ok(())
    }
}
