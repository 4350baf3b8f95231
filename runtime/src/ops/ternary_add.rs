//! Norm, int8 quantisation, ternary product and residual in one op: `y = r + W · q(rms_norm(x))`.
//!
//! The output projections of attention and feed-forward in a decode step. See [`super::ternary_row`] for the
//! product; the sum is that of [`super::add`].

use crate::dtype::Spec;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Size, Tolerance, Wgsl};
use crate::ops::ternary_few::{self, Few, of_codes};
use crate::ops::ternary_row::{Inner, inputs};
use crate::ops::wgsl_teams::{any, plain, ternary_variants};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TernaryAdd {
    /// Tokens.
    pub m: u32,
    /// Rows of `w`, columns of `r` and `y`.
    pub n: u32,
    /// Columns of `x` and `w`.
    pub k: u32,
    /// Elements of `norm`: `k`, or 1 where there is no norm.
    pub p: u32,
    /// Added to the mean square.
    pub eps: f32,
}

/// Records `r + w · x` for `x[m,k]`, a norm weight and its epsilon (or none), codes `w[n,k]` with scale `ws[1]` and
/// `r[m,n]`; gives `[m,n]` in f32.
pub fn ternary_add(
    g: &mut Graph,
    x: Value,
    norm: Option<(Value, f32)>,
    (w, ws): (Value, Value),
    r: Value,
) -> Result<Value> {
    let (m, n, k) = (g.spec(x).rows() as u32, g.spec(w).rows() as u32, g.spec(w).cols() as u32);
    let (norm, p, eps) = norm.map_or((ws, 1, 0.0), |(norm, eps)| (norm, k, eps));
    g.apply(TernaryAdd { m, n, k, p, eps }, &[x, norm, w, ws, r])
}

fn quads(op: &TernaryAdd) -> usize {
    (op.n as usize).div_ceil(4)
}

impl TernaryAdd {
    fn inner(&self) -> Inner {
        Inner { m: self.m, n: self.n, k: self.k, p: self.p, eps: self.eps }
    }

    /// Pairs of rows of `w` on CUDA: `j` and `j + ⌈n/2⌉`.
    fn pairs(&self) -> u32 {
        self.n.div_ceil(2)
    }

    /// The CUDA plan for few tokens, if they and `w` can be taken in vectors.
    fn few(&self, w: &Spec) -> Option<Few> {
        let few = Few::new(w.dtype, self.k)?;
        let apart = if self.n.is_multiple_of(2) { self.n / 2 } else { 1 };
        few.pairs_alike(apart).then_some(few)
    }
}

impl Kernel for TernaryAdd {
    const NAME: &'static str = "ternary_add";
    const SIGNATURE: &'static str =
        "x[m,k]:f32 norm[p]:f32 w[n,k]:t2|t1|t2x16|t1x16 ws[1]:f32 r[m,n]:f32 -> y[m,n]:f32";
    const GRADIENT: Gradient = Gradient::None("fused for inference; its parts have gradients");
    const WGSL: &'static [Wgsl<Self>] = ternary_variants!("ternary_add", 2, any, quads, plain);
    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "few",
            entries: &[
                "ternary_add_few1_t2",
                "ternary_add_few8_t2",
                "ternary_add_few1_t1",
                "ternary_add_few8_t1",
            ],
            hot: true,
            align: 16,
            when: |op, t| op.few(&t[2]).is_some(),
            launch: |op, t, caps| {
                let entries = [["ternary_add_few1_t2", "ternary_add_few8_t2"], ["ternary_add_few1_t1", "ternary_add_few8_t1"]];
                let few = op.few(&t[2]);
                few.map(|few| few.launch(op.m, op.pairs(), of_codes(&t[2], entries), caps).into()).unwrap_or_default()
            },
        },
        Cuda {
            name: "plain",
            entries: &[
                "ternary_add_codes",
                "ternary_add_plain_t2",
                "ternary_add_plain_t1",
            ],
            hot: false,
            align: 4,
            when: |_, t| !t[2].dtype.only_cpu(),
            launch: |op, t, _| {
                let entries = ["ternary_add_plain_t2", "ternary_add_plain_t1"];
                ternary_few::plain(op.m, op.k, op.pairs(), "ternary_add_codes", of_codes(&t[2], entries))
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        [("m", self.m), ("n", self.n), ("k", self.k), ("p", self.p)].map(|(name, d)| (name, d as usize)).to_vec()
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.inner().check(Self::NAME)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, norm, w, ws, r, y] = t else { return };
        let product = self.inner().reference(x, norm, w, |_| ws.data[0]);
        y.data.iter_mut().zip(&r.data).zip(product).for_each(|((y, r), v)| *y = r + v);
    }

    fn cpu(&self, mut args: Args<'_>) {
        let ws = args.read::<f32>(3)[0];
        let product = self.inner().cpu(&args, |_| ws);
        let r = args.read::<f32>(4);
        args.write::<f32>(5).iter_mut().zip(r).zip(product).for_each(|((y, r), v)| *y = r + v);
    }

    fn operations(&self) -> u64 {
        self.inner().operations()
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Sum { max: 8e-6, why: "a norm (4e-6), an exact integer, products of f32 and one sum" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let case = |(i, (m, k, normed)): (usize, (u32, u32, bool))| {
            let n = match size {
                Size::Small => 5,
                Size::Ragged => [1, 37, 66, 80][i % 4],
                Size::Bench => 2560,
            };
            let op = TernaryAdd { m, n, k, p: if normed { k } else { 1 }, eps: 1e-5 };
            let label = format!("{m}x{n}x{k}{}", if normed { "" } else { " without a norm" });
            op.inner().fill(Case::new(label, op))
        };
        Inner::with_layouts(inputs(size).into_iter().enumerate().map(case).collect())
    }
}
