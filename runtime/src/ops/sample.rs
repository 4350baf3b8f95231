//! Draws one token a row from logits.
//!
//! `control = [temperature, top_k, 0, 0]`. A temperature of 0 takes the largest logit, the lowest
//! index among equals. Otherwise the `top_k` largest logits are kept (0: all; logits equal to the
//! k-th are kept too), and the token is the argmax of `logit / temperature + noise` with Gumbel
//! noise, which draws from the softmax (Gumbel-max trick, Maddison, Tarlow and Minka 2014).
//!
//! The noise of row `i` and index `j` comes from the hash [`bits`] of `(random[0], random[1], i, j)`,
//! seed and step: the same 32 bits on every device, in any order. Only the logarithms may differ,
//! in their last places. NaN counts as -∞, and -∞ is drawn only if there is nothing else.

use crate::cpu::{math, parallel};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{
    Args, Case, Cuda, CudaKernel, CudaLaunch, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl,
};
use crate::ops::rms_norm::workgroup;
use crate::random::Random;
use crate::reference::RefTensor;

/// Scores never fall below this, however small the temperature.
const LEAST: f32 = -1e30;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Sample {
    /// Rows.
    pub m: u32,
    /// Vocabulary.
    pub v: u32,
}

/// Records a draw from `logits[m,v]` (or any shape with last extent `v`) into a new `[m]`.
pub fn sample(g: &mut Graph, logits: Value, control: Value, random: Value) -> Result<Value> {
    let token = g.activation([g.spec(logits).rows()], DType::U32);
    sample_into(g, logits, control, random, token)?;
    Ok(token)
}

/// Records a draw from `logits[m,v]` into a given u32 value of `m` elements.
pub fn sample_into(g: &mut Graph, logits: Value, control: Value, random: Value, token: Value) -> Result<()> {
    let (m, v) = (g.spec(logits).rows(), g.spec(logits).cols());
    let logits = g.view(logits, [m, v])?;
    let token = if g.spec(token).shape == [m] { token } else { g.view(token, [m])? };
    g.record(Sample { m: m as u32, v: v as u32 }, &[logits, control, random, token])
}

/// 32 random bits of a position: the four-word PCG hash of Jarzynski and Olano ("Hash functions
/// for GPU rendering", JCGT 9(3), 2020), first word.
pub fn bits(seed: u32, step: u32, row: u32, index: u32) -> u32 {
    let mut s = [seed, step, row, index].map(|w| w.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    for (to, a, b) in [(0, 1, 3), (1, 2, 0), (2, 0, 1), (3, 1, 2)] {
        s[to] = s[to].wrapping_add(s[a].wrapping_mul(s[b]));
    }
    let s = s.map(|w| w ^ w >> 16);
    s[0].wrapping_add(s[1].wrapping_mul(s[3]))
}

/// Order-preserving image of a logit in u32: NaN goes to -∞ and -0 to 0.
fn key(x: f32) -> u32 {
    let x = if x.is_nan() { f32::NEG_INFINITY } else { x + 0.0 };
    let word = x.to_bits();
    if word >> 31 == 1 { !word } else { word | 1 << 31 }
}

/// Uniform in (0, 1) from 32 random bits; small values keep all their bits.
fn uniform(bits: u32) -> f32 {
    const SCALE: f32 = 1.0 / 4_294_967_296.0;
    bits as f32 * SCALE + 0.5 * SCALE
}

/// Gumbel noise `-ln E` with `E = -ln(1 - w)`. Small `E`, the ones that win, come from a series.
fn gumbel(w: f32) -> f32 {
    let e = if w < 0.03125 {
        w + w * w * (0.5 + w * (1.0 / 3.0 + w * (0.25 + w * 0.2)))
    } else {
        -(1.0 - w.min(1.0 - f32::EPSILON / 2.0)).ln()
    };
    -e.ln()
}

/// How many logits are kept; `None` is all.
fn kept(top_k: f32, v: usize) -> Option<usize> {
    (top_k >= 1.0 && top_k < v as f32).then_some(top_k as usize)
}

impl Sample {
    /// The three launches that `cuda/kernels/sample.cu` describes, with the same constants.
    fn cuda(&self) -> CudaLaunch {
        const GROUPS: u32 = 1024;
        const SPAN: u32 = 1024;
        const GROUPS_A_BLOCK: u32 = 8;
        let m = self.m as usize;
        let groups = self.v.div_ceil(32 * self.v.div_ceil(32 * GROUPS));
        let spans = self.v.div_ceil(SPAN);
        let kernels = vec![
            CudaKernel::new("sample_groups", m * groups.div_ceil(GROUPS_A_BLOCK) as usize, 256),
            CudaKernel::new("sample_scores", m * spans as usize, 256),
            CudaKernel::new("sample_pick", m, GROUPS),
        ];
        CudaLaunch { kernels, scratch: 8 * m as u64 * u64::from(groups + spans) }
    }
}

fn draw(row: &[f32], temperature: f32, top_k: f32, noise: impl Fn(u32) -> u32) -> u32 {
    let mut best = (0, key(row[0]));
    for (j, &x) in row.iter().enumerate() {
        if key(x) > best.1 {
            best = (j, key(x));
        }
    }
    let (greedy, max) = (best.0 as u32, row[best.0]);
    if !(temperature > 0.0 && max.is_finite()) {
        return greedy;
    }
    let least = kept(top_k, row.len()).map_or(0, |k| {
        let mut keys: Vec<u32> = row.iter().map(|&x| key(x)).collect();
        *keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1
    });
    let mut best = (greedy, f32::NEG_INFINITY);
    for (j, &x) in row.iter().enumerate() {
        if key(x) < least || key(x) <= key(f32::NEG_INFINITY) {
            continue;
        }
        let score = ((x - max) / temperature).max(LEAST);
        let w = uniform(noise(j as u32));
        // Noise is below -ln w. Where that cannot reach the best so far, spare the logarithms.
        if w > 1.001 * math::exp(score - best.1) {
            continue;
        }
        let score = score + gumbel(w);
        if score > best.1 {
            best = (j as u32, score);
        }
    }
    best.0
}

impl Kernel for Sample {
    const NAME: &'static str = "sample";
    const SIGNATURE: &'static str = "logits[m,v]:f32 control[4]:f32 random[2]:u32 -> token[m]:u32";
    const GRADIENT: Gradient = Gradient::None("a draw has no gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "sample",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.m as usize).with("WORKGROUP", workgroup(op.v)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["sample_groups", "sample_scores", "sample_pick"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, _, _| op.cuda(),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("v", self.v as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.v <= 1 << 30 { Ok(()) } else { Err(format!("a vocabulary of {} is above 2^30", self.v)) }
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [logits, control, random, token] = t else { return };
        let (temperature, top_k) = (control.data[0], control.data[1] as usize);
        for i in 0..self.m as usize {
            let row = logits.row(i).iter().map(|&x| if x.is_nan() { f64::NEG_INFINITY } else { x });
            let row: Vec<f64> = row.collect();
            let mut sorted = row.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = if top_k == 0 || top_k > row.len() { f64::NEG_INFINITY } else { sorted[top_k - 1] };
            let score = |j: usize| {
                let hash = bits(random.data[0] as u32, random.data[1] as u32, i as u32, j as u32);
                let w = (f64::from(hash) + 0.5) / 4_294_967_296.0;
                if temperature == 0.0 {
                    row[j]
                } else if row[j] < least {
                    f64::NEG_INFINITY
                } else {
                    row[j] / temperature - (-(-w).ln_1p()).ln()
                }
            };
            let scores: Vec<f64> = (0..row.len()).map(score).collect();
            let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            token.data[i] = scores.iter().position(|&s| s == best).unwrap_or(0) as f64;
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let v = self.v as usize;
        let (logits, control, random) = (args.read::<f32>(0), args.read::<f32>(1), args.read::<u32>(2));
        parallel::rows(args.write::<u32>(3), 1, 4 * v, |i, token| {
            let noise = |j| bits(random[0], random[1], i as u32, j);
            token[0] = draw(&logits[i * v..(i + 1) * v], control[0], control[1], noise);
        });
    }

    fn operations(&self) -> u64 {
        4 * u64::from(self.m) * u64::from(self.v)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[(u32, u32)] = match size {
            Size::Small => &[(2, 8)],
            Size::Ragged => &[(1, 1), (5, 67), (3, 1031)],
            Size::Bench => &[(1, 65_536), (16, 65_536)],
        };
        let mut cases = Vec::new();
        for &(m, v) in shapes {
            for (temperature, top_k) in [(0.0, 0.0), (0.8, 0.0), (0.8, 1.0), (1.0, 5.0), (1.5, f64::from(v))] {
                cases.push(case(format!("{m}x{v}, temperature {temperature}, top {top_k}"), m, v, temperature, top_k));
            }
        }
        if size == Size::Ragged {
            // Few and many of a long row, and a row of so many equal logits that no short list holds them.
            for (m, v, top_k) in [(2, 5003, 40.0), (2, 5003, 0.0), (2, 5003, 1000.0), (1, 40_000, 50.0)] {
                cases.push(case(format!("{m}x{v}, top {top_k}"), m, v, 0.9, top_k));
            }
            cases.push(case("5003 equal logits, top 5".into(), 1, 5003, 0.9, 5.0).fill("logits", Fill::Constant(0.5)));
        }
        if size != Size::Bench {
            cases.extend(special_cases());
        }
        cases
    }
}

/// The logits are random but always the same, so that a draw whose two best scores lie as close as
/// logarithms differ between devices cannot turn up one day.
fn case(label: String, m: u32, v: u32, temperature: f64, top_k: f64) -> Case {
    let mut source = Random::new(u64::from(v));
    let logits = (0..m as usize * v as usize).map(|_| 3.0 * source.normal()).collect();
    Case::new(label, Sample { m, v })
        .fill("logits", Fill::Values(logits))
        .fill("control", Fill::Values(vec![temperature, top_k, 0.0, 0.0]))
        .fill("random", Fill::Values(vec![4_000_000_007.0, 12.0]))
}

fn special_cases() -> Vec<Case> {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let tied = [-0.0, 0.0, 2.0, nan, 2.0, -inf, 2.0, -1.0];
    let masked = [-inf, nan, -inf, 1.0, nan, -inf, 40.0, -inf];
    let nothing = [nan, -inf, nan, -inf, nan, -inf, nan, -inf];
    let two = [0.5, inf, 3.0, nan, inf, -inf, 0.0, 1.0];
    let of = |label: &str, logits: [f64; 8], temperature: f64, top_k: f64| {
        case(label.into(), 1, 8, temperature, top_k).fill("logits", Fill::Values(logits.to_vec()))
    };
    vec![
        of("ties to the lowest index", tied, 0.0, 0.0),
        of("ties with the k-th are kept", tied, 1.0, 1.0),
        of("zeros of both signs are equal", [-0.0, 0.0, -0.0, 0.0, -1.0, -2.0, -1.0, -3.0], 0.0, 0.0),
        of("one far above", masked, 1.0, 0.0),
        of("masked logits do not fill the top k", masked, 1.0, 5.0),
        of("nothing to draw from, greedy", nothing, 0.0, 0.0),
        of("nothing to draw from", nothing, 1.0, 0.0),
        of("infinity wins", two, 0.0, 0.0),
        of("infinity wins a draw", two, 0.7, 0.0),
        of("a temperature near 0", [0.0, 1.0, 1.5, 0.25, -1.0, 1.25, 0.5, 0.75], 1e-6, 0.0),
    ]
}

#[cfg(test)]
mod tests;
