//! Draws one token a row from logits, of which the ids drawn last may be penalised.
//!
//! `control[i] = [temperature, top_k, top_p, min_p, repeat_penalty, 0, 0, 0]`, `random[i] = [seed, step]`
//! and `recent[i]`, a ring of the last `r` ids ([`EMPTY`]: none), belong to row `i` alone, so that a row
//! draws the same by itself and among others. In the order of transformers:
//!
//! 1. A finite logit of an id in `recent` is divided by the penalty where it is positive and multiplied
//!    where it is not, once however often the id is there, and stays finite. A penalty of 1 is off.
//! 2. A temperature of 0 takes the largest logit, the lowest index among equals. So does a largest
//!    logit that is infinite. Else logits are seen as weights `e^((x - largest) / temperature)`.
//! 3. `top_k`: the k-th largest logit and all from it on stay. 0, and all from the vocabulary on, is off.
//! 4. `top_p`: the largest of those logits stay that are needed for their weights to reach `top_p` times
//!    the sum of the weights that step 3 left, and all that equal the last of them. 1 is off.
//! 5. `min_p`: weights of at least `min_p` stay, and the largest logit in any case. 0 is off.
//! 6. The token is the argmax of `(x - largest) / temperature + noise` with Gumbel noise, which draws
//!    from the softmax over what is left (Gumbel-max trick, Maddison, Tarlow and Minka 2014).
//! 7. It is written to `recent` at `step mod r`.
//!
//! Settings that mean nothing (`top_p` of 0, a penalty of 0 or below, NaN) are off, so a control of
//! zeros is greedy.
//!
//! Step 4 has no order of addition: weights are whole numbers, `e^… · 2^31` without what follows the
//! point, and 64 bits hold their sum. Which logits stay is said by one key, the largest at which the
//! sum of the weights from it on is `top_p` of the whole, both as f32. Devices differ in the last
//! places of `e^…`, quotients and logarithms alone.
//!
//! The noise of index `j` comes from the hash [`bits`] of `(seed, step, j)`: the same 32 bits on every
//! device, in any order. NaN counts as -∞, and -∞ is drawn only if there is nothing else.

mod cases;
mod draw;

use crate::cpu::parallel;
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, CudaLaunch, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::rms_norm::workgroup;
use crate::reference::RefTensor;
use draw::{Control, draw};

/// A slot of the ring that holds no id.
pub const EMPTY: u32 = u32::MAX;

/// Most slots of the ring: kernels keep it in shared memory.
const MOST_RECENT: u32 = 256;

/// Values of a row of `control`.
pub const CONTROL: usize = 8;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Sample {
    /// Rows.
    pub m: u32,
    /// Vocabulary.
    pub v: u32,
    /// Ids that a row remembers, at most 256.
    pub r: u32,
}

/// Operands of a draw beside the logits.
#[derive(Clone, Copy, Debug)]
pub struct Drawing {
    /// `[m, 8]` f32.
    pub control: Value,
    /// `[m, 2]` u32.
    pub random: Value,
    /// `[m, r]` u32, read and written.
    pub recent: Value,
}

/// Records a draw from `logits[m,v]` (or any shape with last extent `v`) into a new `[m]`.
pub fn sample(g: &mut Graph, logits: Value, with: Drawing) -> Result<Value> {
    let token = g.activation([g.spec(logits).rows()], DType::U32);
    sample_into(g, logits, with, token)?;
    Ok(token)
}

/// Records a draw from `logits[m,v]` into a given u32 value of `m` elements.
pub fn sample_into(g: &mut Graph, logits: Value, with: Drawing, token: Value) -> Result<()> {
    let (m, v, r) = (g.spec(logits).rows(), g.spec(logits).cols(), g.spec(with.recent).cols());
    let logits = g.view(logits, [m, v])?;
    let token = if g.spec(token).shape == [m] { token } else { g.view(token, [m])? };
    let op = Sample { m: m as u32, v: v as u32, r: r as u32 };
    g.record(op, &[logits, with.control, with.random, with.recent, token])
}

/// 32 random bits of a position: the four-word PCG hash of Jarzynski and Olano ("Hash functions
/// for GPU rendering", JCGT 9(3), 2020), first word.
pub fn bits(seed: u32, step: u32, index: u32) -> u32 {
    let mut s = [seed, step, 0, index].map(|w| w.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    for (to, a, b) in [(0, 1, 3), (1, 2, 0), (2, 0, 1), (3, 1, 2)] {
        s[to] = s[to].wrapping_add(s[a].wrapping_mul(s[b]));
    }
    let s = s.map(|w| w ^ w >> 16);
    s[0].wrapping_add(s[1].wrapping_mul(s[3]))
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

impl Kernel for Sample {
    const NAME: &'static str = "sample";
    const SIGNATURE: &'static str = "logits[m,v]:f32 control[m,8]:f32 random[m,2]:u32 -> &recent[m,r]:u32 token[m]:u32";
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
        vec![("m", self.m as usize), ("v", self.v as usize), ("r", self.r as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.v > 1 << 30 {
            return Err(format!("a vocabulary of {} is above 2^30", self.v));
        }
        if self.r == 0 || self.r > MOST_RECENT {
            return Err(format!("{} recent ids are not 1 to {MOST_RECENT}", self.r));
        }
        Ok(())
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [logits, control, random, recent, token] = t else { return };
        let r = self.r as usize;
        for i in 0..self.m as usize {
            let (seed, step) = (random.row(i)[0] as u32, random.row(i)[1] as u32);
            let drawn = draw::reference(logits.row(i), recent.row(i), control.row(i), |j| bits(seed, step, j));
            token.data[i] = drawn as f64;
            recent.data[i * r + step as usize % r] = drawn as f64;
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let (v, r) = (self.v as usize, self.r as usize);
        let (logits, control, random) = (args.read::<f32>(0), args.read::<f32>(1), args.read::<u32>(2));
        let recent = args.write::<u32>(3);
        let token = args.write::<u32>(4);
        let before: &[u32] = recent;
        parallel::rows(token, 1, 4 * v, |i, token| {
            let [seed, step] = [0, 1].map(|word| random[2 * i + word]);
            let control = Control::new(&control[CONTROL * i..CONTROL * (i + 1)], v);
            let (row, recent) = (&logits[i * v..(i + 1) * v], &before[i * r..(i + 1) * r]);
            token[0] = draw(row, recent, control, |j| bits(seed, step, j));
        });
        for ((recent, random), &token) in recent.chunks_exact_mut(r).zip(random.chunks_exact(2)).zip(&*token) {
            recent[random[1] as usize % r] = token;
        }
    }

    fn operations(&self) -> u64 {
        4 * u64::from(self.m) * u64::from(self.v)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        cases::cases(size)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
