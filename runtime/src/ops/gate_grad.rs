//! Gradient of the gated activation with respect to both factors.
//!
//! Squared ReLU, with `g⁺ = max(0, g)`: `dgate = 2·g⁺·u·dy`, `dup = g⁺²·dy`.
//! SiLU, with `s = 1 / (1 + exp(−g))`: `dgate = s·(1 + g·(1 − s))·u·dy`, `dup = g·s·dy`.

use crate::cpu::parallel;
use crate::dtype::Spec;
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::gate::{check_kind, label, shapes, sigmoid, wide};
use crate::ops::{elementwise, split};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct GateGrad {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
    /// The activation: 0 squared ReLU, 1 SiLU.
    pub kind: u32,
}

impl Kernel for GateGrad {
    const NAME: &'static str = "gate_grad";
    const SIGNATURE: &'static str = "gate[m,k]:f32|bf16 up[m,k]:f32|bf16 dy[m,k]:f32|bf16 -> dgate[m,k]:f32|bf16 dup[m,k]:f32|bf16";
    const GRADIENT: Gradient = Gradient::None("it is a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "gate_grad",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["gate_grad_f32", "gate_grad_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda_for(&t[3], ["gate_grad_f32", "gate_grad_bf16"]),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_kind(Self::NAME, self.kind)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [gate, up, dy, dgate, dup] = t else { return };
        for i in 0..dy.data.len() {
            let (g, u, dy) = (gate.data[i], up.data[i], dy.data[i]);
            let (act, slope) = if self.kind == 0 {
                (g.max(0.0).powi(2), 2.0 * g.max(0.0))
            } else {
                let s = 1.0 / (1.0 + (-g).exp());
                (g * s, s * (1.0 + g * (1.0 - s)))
            };
            dgate.data[i] = slope * u * dy;
            dup.data[i] = act * dy;
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let (gate, up, dy) = (args.read::<f32>(0), args.read::<f32>(1), args.read::<f32>(2));
        let (dgate, dup) = (args.write::<f32>(3), args.write::<f32>(4));
        parallel::rows2(dgate, k, dup, k, 6 * k, |i, dgate, dup| {
            let row = i * k..(i + 1) * k;
            let (gate, up, dy) = (&gate[row.clone()], &up[row.clone()], &dy[row]);
            let (dgate, dup) = (&mut dgate[..k], &mut dup[..k]);
            if self.kind == 0 {
                for j in 0..k {
                    let g = gate[j].max(0.0);
                    dgate[j] = 2.0 * g * up[j] * dy[j];
                    dup[j] = g * g * dy[j];
                }
            } else {
                for j in 0..k {
                    let (g, s) = (gate[j], sigmoid(gate[j]));
                    dgate[j] = s * (1.0 + g * (1.0 - s)) * up[j] * dy[j];
                    dup[j] = g * s * dy[j];
                }
            }
        });
    }

    fn operations(&self) -> u64 {
        8 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 4e-6,
            why: "WGSL's exp is within 3 + 2|x| ULP and division within 2.5; exp(−|g|) weighs less than 2|x| there; five products",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(m, k, kind)| wide(Case::new(label(m, k, kind), GateGrad { m, k, kind }), size);
        shapes(size).into_iter().map(case).collect()
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[], limit, |_, rows| GateGrad { m: rows as u32, ..*self })
    }
}
