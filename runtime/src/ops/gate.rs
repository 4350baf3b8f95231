//! Gated activation of a feed-forward block: `y = act(gate) ⊙ up` (Shazeer 2020).
//!
//! Kind 0 is squared ReLU, `max(0, g)²` (So et al. 2021); kind 1 is SiLU, `g / (1 + exp(−g))`.

use crate::cpu::parallel;
use crate::dtype::Spec;
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::cpu::math::exp;
use crate::ops::{elementwise, gate_grad, split};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Gate {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
    /// The activation: 0 squared ReLU, 1 SiLU.
    pub kind: u32,
}

/// Which function the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(0, g)²`.
    Relu2,
    /// `g / (1 + exp(−g))`.
    Silu,
}

impl Activation {
    /// Its number in the parameters.
    pub fn kind(self) -> u32 {
        match self {
            Activation::Relu2 => 0,
            Activation::Silu => 1,
        }
    }
}

/// Records `act(gate) ⊙ up` for two values of one shape.
pub fn gate(g: &mut Graph, activation: Activation, gate: Value, up: Value) -> Result<Value> {
    let shape = g.spec(gate).shape.clone();
    let (m, k) = (g.spec(gate).rows(), g.spec(gate).cols());
    let gate = g.view(gate, [m, k])?;
    let up = g.view(up, [m, k])?;
    let y = g.apply(Gate { m: m as u32, k: k as u32, kind: activation.kind() }, &[gate, up])?;
    if shape.len() == 2 { Ok(y) } else { g.view(y, shape) }
}

/// `1 / (1 + exp(−g))` without overflow.
#[inline(always)]
pub(crate) fn sigmoid(g: f32) -> f32 {
    let e = exp(-g.abs());
    let numerator = if g < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// One row of `act(gate) · up`.
pub(super) fn gate_row(kind: u32, gate: &[f32], up: &[f32], y: &mut [f32]) {
    let inputs = gate.iter().zip(up);
    if kind == 0 {
        for (y, (&g, &u)) in y.iter_mut().zip(inputs) {
            let g = g.max(0.0);
            *y = g * g * u;
        }
    } else {
        for (y, (&g, &u)) in y.iter_mut().zip(inputs) {
            *y = g * sigmoid(g) * u;
        }
    }
}

/// Refuses kinds that there are not.
pub(crate) fn check_kind(name: &str, kind: u32) -> std::result::Result<(), String> {
    match kind {
        0 | 1 => Ok(()),
        _ => Err(format!("{name}: there is no activation {kind}; 0 is squared ReLU and 1 is SiLU")),
    }
}

/// Sizes for the gate's rows: rows, columns, kind.
pub(crate) fn shapes(size: Size) -> Vec<(u32, u32, u32)> {
    let sizes: &[(u32, u32)] = match size {
        Size::Small => &[(2, 6)],
        Size::Ragged => &[(1, 1), (5, 67), (3, 1031)],
        Size::Bench => &[(1, 2048), (512, 2048), (512, 6912)],
    };
    sizes.iter().flat_map(|&(m, k)| [(m, k, 0), (m, k, 1)]).collect()
}

/// Label of a case.
pub(crate) fn label(m: u32, k: u32, kind: u32) -> String {
    format!("{} {m}x{k}", ["relu2", "silu"][kind as usize % 2])
}

impl Kernel for Gate {
    const NAME: &'static str = "gate";
    const SIGNATURE: &'static str = "gate[m,k]:f32|bf16 up[m,k]:f32|bf16 -> y[m,k]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "gate",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["gate_f32", "gate_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda_for(&t[2], ["gate_f32", "gate_bf16"]),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_kind(Self::NAME, self.kind)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [gate, up, y] = t else { return };
        for i in 0..y.data.len() {
            let g = gate.data[i];
            let act = if self.kind == 0 { g.max(0.0).powi(2) } else { g / (1.0 + (-g).exp()) };
            y.data[i] = act * up.data[i];
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let (gate, up) = (args.read::<f32>(0), args.read::<f32>(1));
        parallel::rows(args.write::<f32>(2), k, 4 * k, |i, y| {
            gate_row(self.kind, &gate[i * k..(i + 1) * k], &up[i * k..(i + 1) * k], y);
        });
    }

    fn operations(&self) -> u64 {
        4 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 4e-6,
            why: "WGSL's exp is within 3 + 2|x| ULP and division within 2.5; exp(−|g|) weighs less than 2|x| there; three products",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        shapes(size).into_iter().map(|(m, k, kind)| wide(Case::new(label(m, k, kind), Gate { m, k, kind }), size)).collect()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dy) = cx.upstream(2) else { return Ok(()) };
        if !cx.wanted(0) && !cx.wanted(1) {
            return Ok(());
        }
        let (gate, up) = (cx.operand(0), cx.operand(1));
        let Gate { m, k, kind } = *self;
        let shape = [m as usize, k as usize];
        let dtype = cx.graph.spec(gate).dtype;
        let (dgate, dup) = (cx.graph.activation(shape, dtype), cx.graph.activation(shape, dtype));
        cx.graph.record(gate_grad::GateGrad { m, k, kind }, &[gate, up, dy, dgate, dup])?;
        for (i, value) in [(0, dgate), (1, dup)] {
            if cx.wanted(i) {
                cx.give(i, value);
            }
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[], limit, |_, rows| Gate { m: rows as u32, ..*self })
    }
}

/// Gates far from zero in the ragged cases, where exp must neither overflow nor matter.
pub(crate) fn wide(case: Case, size: Size) -> Case {
    if size != Size::Ragged {
        return case;
    }
    let gate = case.values(0, &mut crate::random::Random::new(11));
    let far = |(i, v): (usize, f64)| if i % 61 == 7 { [-200.0, -95.0, 12.0][i % 3] } else { v };
    let gate = gate.into_iter().enumerate().map(far).collect();
    case.fill("gate", crate::op::Fill::Values(gate))
}
