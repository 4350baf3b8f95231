//! Int8 quantisation of activations, one scale a row (BitNet b1.58, Ma et al. 2024, section 2).
//!
//! With `a_i = max(max_j |x_ij|, 1e-5)`: `q_ij = clamp(round(x_ij · (127 / a_i)), -128, 127)`, halves
//! to even, and `s_i = a_i / 127`, so that `x ≈ q · s`. Padding bytes of `q` are 0. The gradient is
//! straight-through: the gradient of `q · s` is the gradient of `x`.

use crate::cpu::parallel;
use crate::dtype::DType;
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::cuda_rows;
use crate::random::Random;
use crate::reference::RefTensor;

/// Least value of a row's absolute maximum.
const LEAST: f32 = 1e-5;

/// Adding it rounds a small f32 to an integer, halves to even; the low byte is then that integer.
const ROUND: f32 = 12_582_912.0;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct QuantizeInt8 {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

/// Records the quantisation of `x[m,k]` (or any shape with last extent `k`); gives codes `q[m,k]`
/// and scales `s[m]`.
pub fn quantize_int8(g: &mut Graph, x: Value) -> Result<(Value, Value)> {
    let (m, k) = (g.spec(x).rows(), g.spec(x).cols());
    let x = g.view(x, [m, k])?;
    let q = g.activation([m, k], DType::I8);
    let s = g.activation([m], DType::F32);
    g.record(QuantizeInt8 { m: m as u32, k: k as u32 }, &[x, q, s])?;
    Ok((q, s))
}

impl Kernel for QuantizeInt8 {
    const NAME: &'static str = "quantize_int8";
    const SIGNATURE: &'static str = "x[m,k]:f32|bf16 -> q[m,k]:i8 s[m]:f32";
    const GRADIENT: Gradient = Gradient::Rule;
    const SAVED: &'static [&'static str] = &["s"];
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "quantize_int8",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.m as usize).with("WORKGROUP", workgroup(op.k)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &["quantize_int8_vector_f32", "quantize_int8_vector_bf16"],
            hot: true,
            align: 16,
            when: |op, t| cuda_rows::whole_packs(t[0].dtype, op.k),
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["quantize_int8_vector_f32", "quantize_int8_vector_bf16"]);
                cuda_rows::rows(entry, op.m as usize, op.k, t[0].dtype)
            },
        },
        Cuda {
            name: "plain",
            entries: &["quantize_int8_f32", "quantize_int8_bf16"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["quantize_int8_f32", "quantize_int8_bf16"]);
                cuda_rows::rows(entry, op.m as usize, op.k, t[0].dtype)
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, q, s] = t else { return };
        let k = self.k as usize;
        for i in 0..self.m as usize {
            let most = x.row(i).iter().fold(f64::from(LEAST), |a, v| a.max(v.abs()));
            s.data[i] = most / 127.0;
            for j in i * k..(i + 1) * k {
                q.data[j] = (x.data[j] * (127.0 / most)).round_ties_even().clamp(-128.0, 127.0);
            }
        }
    }

    fn surrogate(&self, t: &mut [RefTensor]) {
        let [x, q, s] = t else { return };
        q.data.copy_from_slice(&x.data);
        s.data.fill(1.0);
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        let x = args.read::<f32>(0);
        let (q, s) = (args.write::<u8>(1), args.write::<f32>(2));
        parallel::rows2(q, DType::I8.row_bytes(k), s, 1, k, |i, q, s| {
            s[0] = quantize_row(&x[i * k..(i + 1) * k], q);
        });
    }

    fn operations(&self) -> u64 {
        4 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::OneCode { float: 5e-7 }
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[(u32, u32)] = match size {
            Size::Small => &[(3, 8)],
            Size::Ragged => &[(1, 1), (5, 67), (2, 1031), (11, 64), (3, 2568), (2, 8264)],
            Size::Bench => &[(1, 2560), (512, 768), (512, 2560)],
        };
        let case = |label: &str, m, k, x| Case::new(label, QuantizeInt8 { m, k }).fill("x", x).scaled_by("q", "s");
        let sized = |&(m, k): &(u32, u32)| {
            case(&format!("{m}x{k}"), m, k, Fill::Values(clear(m, k)))
        };
        let mut cases: Vec<Case> = shapes.iter().map(sized).collect();
        if size == Size::Ragged {
            let (m, k) = (3, 300);
            cases.push(case("ties", m, k, Fill::Values(ties(m, k))));
            cases.push(case("zeros", m, k, Fill::Constant(0.0)));
            cases.push(case("normal", m, k, Fill::Normal(3.0)));
        }
        cases
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        if let (Some(dq), true) = (cx.upstream(1), cx.wanted(0)) {
            cx.give(0, dq);
        }
        Ok(())
    }
}

/// One row, padding included; gives its scale.
pub(super) fn quantize_row(x: &[f32], q: &mut [u8]) -> f32 {
    let most = absmax(x);
    let scale = 127.0 / most;
    let (codes, padding) = q.split_at_mut(x.len());
    for (code, x) in codes.iter_mut().zip(x) {
        *code = ((x * scale).clamp(-128.0, 127.0) + ROUND).to_bits() as u8;
    }
    padding.fill(0);
    most / 127.0
}

/// Largest absolute value of a row, at least [`LEAST`].
fn absmax(x: &[f32]) -> f32 {
    let mut lanes = [LEAST; 16];
    let (whole, rest) = x.as_chunks::<16>();
    let keep = |most: &mut f32, v: f32| *most = if v.abs() > *most { v.abs() } else { *most };
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(most, &v)| keep(most, v));
    }
    lanes.iter_mut().zip(rest).for_each(|(most, &v)| keep(most, v));
    lanes.into_iter().fold(LEAST, f32::max)
}

/// Threads that share a row of `k` elements, four at a time: a power of two, at most 256.
fn workgroup(k: u32) -> usize {
    (k as usize).div_ceil(4).next_power_of_two().clamp(32, 256)
}

/// Rows whose values lie at least 0.05 of a code away from a tie.
pub(super) fn clear(m: u32, k: u32) -> Vec<f64> {
    let mut random = Random::new(11);
    let mut values = Vec::with_capacity((m * k) as usize);
    for i in 0..m {
        let step = 0.003 * f64::from(1 + i % 7);
        let largest = random.below(u64::from(k)) as u32;
        for j in 0..k {
            let code = random.below(253) as f64 - 126.0 + 0.9 * (random.uniform() - 0.5);
            values.push(step * if j == largest { 127.0 } else { code });
        }
    }
    values
}

/// Rows of integers and a half times a step, among them ties that are exact in f32.
fn ties(m: u32, k: u32) -> Vec<f64> {
    let at = |i: u32, j: u32| {
        let step = [1.0, 0.25, 0.01][i as usize % 3];
        step * if j == 0 { 127.0 } else { f64::from(j % 254) - 126.5 }
    };
    (0..m).flat_map(|i| (0..k).map(move |j| at(i, j))).collect()
}
