//! AdamW (Loshchilov and Hutter 2019) in the form of torch, with clipping by the global norm.
//!
//! `hyper = [lr, beta1, beta2, eps, weight_decay, 1 - beta1^t, 1 - beta2^t, max_norm]`, and
//! `norm[0]` is the norm of all gradients together. Where it is not finite, nothing changes.
//! Otherwise, with `c = max_norm / norm` if `max_norm > 0` and `norm > max_norm`, else 1:
//!
//! ```text
//! g  ← c g
//! m1 ← beta1 m1 + (1 - beta1) g
//! m2 ← beta2 m2 + (1 - beta2) g²
//! p  ← p (1 - lr weight_decay) - lr / (1 - beta1^t) · m1 / (sqrt(m2) / sqrt(1 - beta2^t) + eps)
//! ```

use crate::cpu::parallel;
use crate::dtype::Spec;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{elementwise, split};
use crate::reference::RefTensor;

/// Elements that one task of the CPU kernel updates.
const BLOCK: usize = 4096;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Adamw {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

/// Records one update of `p` and its moments `m1` and `m2`, all of one shape, from gradient `grad`.
pub fn adamw(g: &mut Graph, grad: Value, hyper: Value, norm: Value, p: Value, m1: Value, m2: Value) -> Result<()> {
    let (m, k) = (g.spec(p).rows(), g.spec(p).cols());
    let mut matrix = |value| g.view(value, [m, k]);
    let (grad, p, m1, m2) = (matrix(grad)?, matrix(p)?, matrix(m1)?, matrix(m2)?);
    g.record(Adamw { m: m as u32, k: k as u32 }, &[grad, hyper, norm, p, m1, m2])
}

/// What `hyper` and `norm` come to.
struct Step<T> {
    clip: T,
    beta1: T,
    beta2: T,
    eps: T,
    /// `1 - lr · weight_decay`.
    keep: T,
    /// `lr / (1 - beta1^t)`.
    rate: T,
    /// `sqrt(1 - beta2^t)`.
    root: T,
}

macro_rules! step {
    ($name:ident, $t:ty) => {
        /// `None` where the step is to be skipped.
        fn $name(hyper: &[$t], norm: $t) -> Option<Step<$t>> {
            let &[lr, beta1, beta2, eps, decay, bias1, bias2, max_norm] = hyper else { return None };
            let clip = if max_norm > 0.0 && norm > max_norm { max_norm / norm } else { 1.0 };
            let (keep, rate, root) = (1.0 - lr * decay, lr / bias1, bias2.sqrt());
            norm.is_finite().then_some(Step { clip, beta1, beta2, eps, keep, rate, root })
        }
    };
}

step!(step_f32, f32);
step!(step_f64, f64);

impl Kernel for Adamw {
    const NAME: &'static str = "adamw";
    const SIGNATURE: &'static str = "g[m,k]:f32 hyper[8]:f32 norm[1]:f32 -> &p[m,k]:f32 &m1[m,k]:f32 &m2[m,k]:f32";
    const GRADIENT: Gradient = Gradient::None("it is an update");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "adamw",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.k as usize).div_ceil(256)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["adamw_f32"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda("adamw_f32", t[3].bytes()),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [g, hyper, norm, p, m1, m2] = t else { return };
        let Some(s) = step_f64(&hyper.data, norm.data[0]) else { return };
        for i in 0..g.data.len() {
            let g = s.clip * g.data[i];
            m1.data[i] = s.beta1 * m1.data[i] + (1.0 - s.beta1) * g;
            m2.data[i] = s.beta2 * m2.data[i] + (1.0 - s.beta2) * g * g;
            p.data[i] = p.data[i] * s.keep - s.rate * m1.data[i] / (m2.data[i].sqrt() / s.root + s.eps);
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let g = args.read::<f32>(0);
        let Some(s) = step_f32(args.read(1), args.read::<f32>(2)[0]) else { return };
        let (p, m1, m2) = (args.write::<f32>(3), args.write::<f32>(4), args.write::<f32>(5));
        // Three outputs on a helper for two: the second moment is updated first, then read.
        parallel::rows(m2, BLOCK, BLOCK, |block, m2| {
            for (m2, g) in m2.iter_mut().zip(&g[block * BLOCK..]) {
                let g = s.clip * g;
                *m2 = s.beta2 * *m2 + (1.0 - s.beta2) * g * g;
            }
        });
        let m2 = &*m2;
        parallel::rows2(p, BLOCK, m1, BLOCK, BLOCK, |block, p, m1| {
            let (g, m2) = (&g[block * BLOCK..], &m2[block * BLOCK..]);
            for (((p, m1), g), m2) in p.iter_mut().zip(m1).zip(g).zip(m2) {
                *m1 = s.beta1 * *m1 + (1.0 - s.beta1) * (s.clip * g);
                *p = *p * s.keep - s.rate * *m1 / (m2.sqrt() / s.root + s.eps);
            }
        });
    }

    fn operations(&self) -> u64 {
        15 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float {
            max: 3e-6,
            why: "about a dozen roundings an element; WGSL: three quotients within 2.5 ULP, two square roots within 5 ULP",
        }
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[(u32, u32)] = match size {
            Size::Small => &[(2, 3)],
            Size::Ragged => &[(1, 1), (7, 33), (5, 1031)],
            Size::Bench => &[(768, 768), (2048, 768), (2560, 2560)],
        };
        let plain = sizes.iter().map(|&(m, k)| case(format!("{m}x{k}"), m, k, 3.0, 0.0));
        let mut cases: Vec<Case> = plain.collect();
        if size != Size::Bench {
            let (m, k) = sizes[sizes.len() - 1];
            cases.push(case("a gradient that is clipped".into(), m, k, 40.0, 1.5));
            cases.push(case("a gradient below the clipping norm".into(), m, k, 1.25, 1.5));
            for norm in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
                cases.push(case(format!("a norm of {norm} changes nothing"), m, k, norm, 1.5).exact());
            }
        }
        cases
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[1, 2], limit, |_, rows| Adamw { m: rows as u32, ..*self })
    }
}

fn case(label: String, m: u32, k: u32, norm: f64, max_norm: f64) -> Case {
    // Third step of the defaults, with a learning rate that moves the weights visibly.
    let (beta1, beta2) = (0.9f64, 0.95f64);
    let hyper = vec![0.05, beta1, beta2, 1e-8, 0.1, 1.0 - beta1.powi(3), 1.0 - beta2.powi(3), max_norm];
    let case = Case::new(label, Adamw { m, k })
        .fill("hyper", Fill::Values(hyper))
        .fill("norm", Fill::Values(vec![norm]))
        .fill("m2", Fill::Uniform(0.01, 2.0));
    if m * k > 1 {
        return case;
    }
    // The error of one element is relative to itself: its sums must not cancel.
    case.fill("g", Fill::Uniform(0.5, 1.5)).fill("p", Fill::Uniform(3.0, 4.0)).fill("m1", Fill::Uniform(0.5, 1.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_matrix_too_large_to_bind_is_cut_by_rows() {
        let op = Adamw { m: 7, k: 32 };
        let specs = crate::op::Op::from(op).specs();
        let pieces = op.shard(&specs, 3 * 128).unwrap();
        assert_eq!(pieces.iter().map(|p| p.op.m).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(pieces[1].rows, [(3, 3), (0, 1), (0, 1), (3, 3), (3, 3), (3, 3)]);
    }

    #[test]
    fn pieces_run_one_after_the_other_equal_the_whole() {
        let op = Adamw { m: 7, k: 32 };
        let specs = crate::op::Op::from(op).specs();
        let case = case(String::new(), 7, 32, 40.0, 1.5);
        let mut random = crate::random::Random::new(1);
        let words: Vec<Vec<u32>> =
            (0..6).map(|i| crate::reference::encode(&specs[i], &case.values(i, &mut random))).collect();
        let run = |op: Adamw, rows: &[(usize, usize)], w: &mut [Vec<u32>]| {
            let part = |i: usize| rows[i].0 * specs[i].cols()..(rows[i].0 + rows[i].1) * specs[i].cols();
            let (reads, writes) = w.split_at_mut(3);
            let [p, m1, m2] = writes else { return };
            let read = vec![&reads[0][part(0)], &reads[1][part(1)], &reads[2][part(2)], &[], &[], &[]];
            let write = vec![&mut [][..], &mut [], &mut [], &mut p[part(3)], &mut m1[part(4)], &mut m2[part(5)]];
            op.cpu(Args::new(&specs, read, write));
        };
        let (mut whole, mut cut) = (words.clone(), words.clone());
        run(op, &specs.iter().map(|s| (0, s.rows())).collect::<Vec<_>>(), &mut whole);
        for piece in op.shard(&specs, 3 * 128).unwrap() {
            run(piece.op, &piece.rows, &mut cut);
        }
        assert_eq!(cut, whole);
        assert!((3..6).all(|i| whole[i] != words[i]), "every output moved");
    }
}
