//! Norm, int8 quantisation, gate and up projection and gated activation in one op:
//! `y = act(W_gate · q) ⊙ (W_up · q)` with `q` of `rms_norm(x)`.
//!
//! The first half of a feed-forward block in a decode step. Rows `0..n` of `w` are the gate (scale
//! `ws[0]`), rows `n..2n` up (`ws[1]`). See [`super::ternary_row`] for the product and
//! [`super::gate`] for the kinds of activation.

use crate::dtype::Spec;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Size, Tolerance, Wgsl};
use crate::ops::gate::{self, Activation, Gate};
use crate::ops::ternary_few::{self, Few, of_codes};
use crate::ops::ternary_row::{Inner, inputs};
use crate::ops::wgsl_teams::{any, plain, ternary_variants};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TernaryGate {
    /// Tokens.
    pub m: u32,
    /// Columns of `y`: half of the rows of `w`.
    pub n: u32,
    /// Columns of `x` and `w`.
    pub k: u32,
    /// Elements of `norm`: `k`, or 1 where there is no norm.
    pub p: u32,
    /// The activation: 0 squared ReLU, 1 SiLU.
    pub kind: u32,
    /// Added to the mean square.
    pub eps: f32,
}

/// Records the gated product for `x[m,k]`, a norm weight and its epsilon (or none), and gate and up codes one below
/// the other, `w[2n,k]` with scales `ws[2]`; gives `[m,n]` in f32.
pub fn ternary_gate(
    g: &mut Graph,
    activation: Activation,
    x: Value,
    norm: Option<(Value, f32)>,
    (w, ws): (Value, Value),
) -> Result<Value> {
    let (m, n, k) = (g.spec(x).rows() as u32, g.spec(w).rows() as u32 / 2, g.spec(w).cols() as u32);
    let (norm, p, eps) = norm.map_or((ws, 1, 0.0), |(norm, eps)| (norm, k, eps));
    // Without a norm its operand is unread, but it must have one element.
    let norm = if p == 1 && k != 1 { g.elements(norm, 0, 1)? } else { norm };
    g.apply(TernaryGate { m, n, k, p, kind: activation.kind(), eps }, &[x, norm, w, ws])
}

/// Two rows of the gate and two of up.
fn quads(op: &TernaryGate) -> usize {
    (op.n as usize).div_ceil(2)
}

impl TernaryGate {
    fn inner(&self) -> Inner {
        Inner { m: self.m, n: 2 * self.n, k: self.k, p: self.p, eps: self.eps }
    }

    /// Pairs of rows of `w` on CUDA: gate and up.
    fn pairs(&self) -> u32 {
        self.n
    }

    /// The CUDA plan for few tokens, if they and `w` can be taken in vectors.
    fn few(&self, w: &Spec) -> Option<Few> {
        Few::new(w.dtype, self.k).filter(|few| few.pairs_alike(self.n))
    }
}

impl Kernel for TernaryGate {
    const NAME: &'static str = "ternary_gate";
    const SIGNATURE: &'static str = "x[m,k]:f32 norm[p]:f32 w[n2,k]:t2|t1|t2x16|t1x16 ws[2]:f32 -> y[m,n]:f32";
    const GRADIENT: Gradient = Gradient::None("fused for inference; its parts have gradients");
    const WGSL: &'static [Wgsl<Self>] = ternary_variants!("ternary_gate", 2, any, quads, plain);
    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "few",
            entries: &[
                "ternary_gate_few1_t2",
                "ternary_gate_few8_t2",
                "ternary_gate_few1_t1",
                "ternary_gate_few8_t1",
            ],
            hot: true,
            align: 16,
            when: |op, t| op.few(&t[2]).is_some(),
            launch: |op, t, caps| {
                let entries = [["ternary_gate_few1_t2", "ternary_gate_few8_t2"], ["ternary_gate_few1_t1", "ternary_gate_few8_t1"]];
                let few = op.few(&t[2]);
                few.map(|few| few.launch(op.m, op.pairs(), of_codes(&t[2], entries), caps).into()).unwrap_or_default()
            },
        },
        Cuda {
            name: "plain",
            entries: &[
                "ternary_gate_codes",
                "ternary_gate_plain_t2",
                "ternary_gate_plain_t1",
            ],
            hot: false,
            align: 4,
            when: |_, t| !t[2].dtype.only_cpu(),
            launch: |op, t, _| {
                let entries = ["ternary_gate_plain_t2", "ternary_gate_plain_t1"];
                ternary_few::plain(op.m, op.k, op.pairs(), "ternary_gate_codes", of_codes(&t[2], entries))
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        let dims = [("m", self.m), ("n", self.n), ("k", self.k), ("p", self.p), ("n2", 2 * self.n)];
        dims.map(|(name, d)| (name, d as usize)).to_vec()
    }

    fn check(&self) -> std::result::Result<(), String> {
        gate::check_kind(Self::NAME, self.kind)?;
        self.inner().check(Self::NAME)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, norm, w, ws, y] = t else { return };
        let n = self.n as usize;
        let product = self.inner().reference(x, norm, w, |j| ws.data[j / n]);
        let half = |first: usize| {
            let rows = product.chunks_exact(2 * n).flat_map(|row| row[first..first + n].to_vec());
            RefTensor::new(y.spec.clone(), rows.collect())
        };
        let mut t = [half(0), half(n), y.clone()];
        Gate { m: self.m, k: self.n, kind: self.kind }.reference(&mut t);
        y.data.copy_from_slice(&t[2].data);
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (ws, n) = (args.read::<f32>(3), self.n as usize);
        let product = self.inner().cpu(&args, |j| ws[usize::from(j >= n)]);
        let rows = args.write::<f32>(4).chunks_exact_mut(n).zip(product.chunks_exact(2 * n));
        rows.for_each(|(y, row)| gate::gate_row(self.kind, &row[..n], &row[n..], y));
    }

    fn operations(&self) -> u64 {
        self.inner().operations() + 4 * u64::from(self.m) * u64::from(self.n)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 2e-5, why: "two products with a norm's scale (8e-6 each), of which one may be squared" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(i, (m, k, normed)): (usize, (u32, u32, bool))| {
            let n = match size {
                Size::Small => 3,
                Size::Ragged => [1, 19, 66, 36][i % 4],
                Size::Bench => 6912,
            };
            let op = TernaryGate { m, n, k, p: if normed { k } else { 1 }, kind: i as u32 / 2 % 2, eps: 1e-5 };
            let label = format!("{} {m}x{n}x{k}{}", ["relu2", "silu"][op.kind as usize], if normed { "" } else { " without a norm" });
            op.inner().fill(Case::new(label, op))
        };
        Inner::with_layouts(inputs(size).into_iter().enumerate().map(case).collect())
    }
}
