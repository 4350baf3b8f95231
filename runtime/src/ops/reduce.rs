//! Sums over a tensor in blocks: `y_b = max(scale · Σ f(x), floor)` over the flat elements
//! `b·c .. min((b+1)·c, m·k)` of `x[m,k]`, with `f` the value, its magnitude or its square.
//!
//! A sum that is not a number stays one whatever the floor. Two of these make a sum over everything, with the same order on every run. A piece of a cut op
//! binds the rows of some whole blocks and writes elements `first..first+blocks` of `y`; recorded
//! ops have `first = 0` and `blocks = p`.

use crate::cpu::parallel;
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, CudaKernel, Fill, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::reference::RefTensor;

/// What is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The values.
    Sum = 0,
    /// Their magnitudes.
    Abs = 1,
    /// Their squares.
    Square = 2,
}

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Reduce {
    /// Rows of `x` that are bound.
    pub m: u32,
    /// Columns of `x`.
    pub k: u32,
    /// Elements of `y`.
    pub p: u32,
    /// Elements of `x` that one element of `y` covers.
    pub c: u32,
    /// First element of `y` that is written.
    pub first: u32,
    /// Number of elements of `y` that are written.
    pub blocks: u32,
    /// A [`Kind`].
    pub kind: u32,
    /// Factor of the sum.
    pub scale: f32,
    /// Least result.
    pub floor: f32,
}

/// Records `max(scale · Σ f(x), floor)` over a tensor of any shape; gives `[1]`.
pub fn reduce_to_scalar(g: &mut Graph, x: Value, kind: Kind, scale: f32, floor: f32) -> Result<Value> {
    let out = g.activation([1], DType::F32);
    reduce_into(g, x, kind, scale, floor, out)?;
    Ok(out)
}

/// As [`reduce_to_scalar`], into `out[1]`.
pub fn reduce_into(g: &mut Graph, x: Value, kind: Kind, scale: f32, floor: f32, out: Value) -> Result<()> {
    let (m, k) = (g.spec(x).rows(), g.spec(x).cols());
    let x = g.view(x, [m, k])?;
    let c = block_elements(m, k);
    let p = (m * k).div_ceil(c.max(1));
    if p == 1 {
        return g.record(Reduce::whole([m, k], 1, c, kind, scale, floor), &[x, out]);
    }
    let partial = g.activation([p], DType::F32);
    g.record(Reduce::whole([m, k], p, c, kind, 1.0, f32::MIN), &[x, partial])?;
    let partial = g.view(partial, [1, p])?;
    g.record(Reduce::whole([1, p], 1, p, Kind::Sum, scale, floor), &[partial, out])
}

/// Elements that one block of [`reduce_into`] covers: whole rows where there are enough of them, so that
/// a large tensor can be cut.
pub fn block_elements(m: usize, k: usize) -> usize {
    const MOST_BLOCKS: usize = 256;
    const LEAST_BLOCK: usize = 1024;
    let blocks = (m * k).div_ceil(LEAST_BLOCK).clamp(1, MOST_BLOCKS);
    if m >= blocks { m.div_ceil(blocks) * k } else { (m * k).div_ceil(blocks) }
}

impl Reduce {
    fn whole(shape: [usize; 2], p: usize, c: usize, kind: Kind, scale: f32, floor: f32) -> Reduce {
        let [m, k] = shape.map(|v| v as u32);
        let p = p as u32;
        Reduce { m, k, p, c: c as u32, first: 0, blocks: p, kind: kind as u32, scale, floor }
    }

    /// Flat elements of block `b` of those that are bound.
    fn block(&self, b: usize) -> std::ops::Range<usize> {
        let (n, c) = (self.m as usize * self.k as usize, self.c as usize);
        (b * c).min(n)..((b + 1) * c).min(n)
    }

    /// Scale and floor; unlike `max`, this keeps a NaN.
    fn finish(&self, sum: f64) -> f64 {
        let (value, floor) = (f64::from(self.scale) * sum, f64::from(self.floor));
        if value < floor { floor } else { value }
    }
}

impl Kernel for Reduce {
    const NAME: &'static str = "reduce";
    const SIGNATURE: &'static str = "x[m,k]:f32 -> y[p]:f32";
    const GRADIENT: Gradient = Gradient::None("used for norms and reports");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "reduce",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups(op.blocks as usize).with("WORKGROUP", 256),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &["reduce_vector_f32"],
            hot: true,
            align: 16,
            when: |op, _| op.c.is_multiple_of(4) && op.m.wrapping_mul(op.k).is_multiple_of(4),
            launch: |op, _, _| CudaKernel::new("reduce_vector_f32", op.blocks as usize, 256).into(),
        },
        Cuda {
            name: "plain",
            entries: &["reduce_f32"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, _, _| CudaKernel::new("reduce_f32", op.blocks as usize, 256).into(),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize), ("p", self.p as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        let n = u64::from(self.m) * u64::from(self.k);
        if self.first != 0 || self.blocks != self.p {
            return Err("a recorded reduction writes all blocks: first = 0 and blocks = p".into());
        }
        if self.c == 0 || n.div_ceil(u64::from(self.c)) != u64::from(self.p) {
            return Err(format!("{} blocks of {} elements do not cover {n} elements", self.p, self.c));
        }
        if n > u64::from(u32::MAX) {
            return Err(format!("{n} elements are more than 32 bits count; reduce parts of the tensor"));
        }
        (self.kind <= Kind::Square as u32).then_some(()).ok_or_else(|| format!("kind {} is not known", self.kind))
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, y] = t else { return };
        for b in 0..self.blocks as usize {
            let x = &x.data[self.block(b)];
            let sum: f64 = match self.kind {
                0 => x.iter().sum(),
                1 => x.iter().map(|v| v.abs()).sum(),
                _ => x.iter().map(|v| v * v).sum(),
            };
            y.data[self.first as usize + b] = self.finish(sum);
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let x = args.read::<f32>(0);
        let y = &mut args.write::<f32>(1)[self.first as usize..][..self.blocks as usize];
        parallel::rows(y, 1, self.c as usize, |b, y| {
            let x = &x[self.block(b)];
            let sum = match self.kind {
                0 => sum_of(x.len(), |i| x[i]),
                1 => sum_of(x.len(), |i| x[i].abs()),
                _ => sum_of(x.len(), |i| x[i] * x[i]),
            };
            y[0] = self.finish(sum) as f32;
        });
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 1e-5, why: "a sum of c values in f32 in a tree; cases keep sums away from zero" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let shapes: &[([usize; 2], usize)] = match size {
            Size::Small => &[([3, 4], 12), ([4, 4], 8)],
            Size::Ragged => &[
                ([1, 1], 1),
                ([5, 67], 335),
                ([5, 67], 100),
                ([7, 1031], 2062),
                ([9, 1031], 9279),
                ([5, 5000], 12_000),
            ],
            Size::Bench => &[([768, 768], 2304), ([6912, 2560], 69_120), ([1, 256], 256)],
        };
        let kinds = [Kind::Sum, Kind::Abs, Kind::Square];
        let each = |&([m, k], c): &([usize; 2], usize)| {
            let p = (m * k).div_ceil(c);
            let op = move |kind, floor| Reduce::whole([m, k], p, c, kind, 0.5, floor);
            let case = move |kind, floor| {
                let label = format!("{m}x{k} in {p}, {kind:?}, at least {floor:e}");
                Case::new(label, op(kind, floor)).fill("x", Fill::Uniform(-0.5, 1.5))
            };
            // The last floor is above every sum of these shapes.
            let floored = (size != Size::Bench).then(|| case(Kind::Abs, 1e6));
            kinds.into_iter().map(move |kind| case(kind, f32::MIN)).chain(floored).collect::<Vec<_>>()
        };
        shapes.iter().flat_map(each).collect()
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        // A piece is a run of whole blocks, which must be whole rows.
        let rows = (self.c / self.k.max(1)) as usize;
        let most = (limit / (u64::from(self.c.max(1)) * 4)) as usize;
        if !self.c.is_multiple_of(self.k) || most == 0 || operands.get(1)?.bytes() > limit {
            return None;
        }
        let piece = |first: usize| {
            let blocks = most.min(self.blocks as usize - first);
            let (row, m) = (first * rows, (blocks * rows).min(self.m as usize - first * rows));
            let op = Reduce { m: m as u32, first: first as u32, blocks: blocks as u32, ..*self };
            Piece { op, rows: vec![(row, m), (0, 1)] }
        };
        Some((0..self.blocks as usize).step_by(most).map(piece).collect())
    }
}

/// Sum of `f(i)` over `0..n`, in f32 over stretches of 4096 and in f64 over these.
pub fn sum_of(n: usize, f: impl Fn(usize) -> f32) -> f64 {
    const STRETCH: usize = 4096;
    let stretch = |first: usize| f64::from(parallel::sum(STRETCH.min(n - first), |i| f(first + i)));
    (0..n).step_by(STRETCH).map(stretch).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ops::pieces;
    use crate::reference::Interpreter;

    #[test]
    fn pieces_equal_the_whole() {
        let case = Case::new("", Reduce::whole([19, 7], 10, 14, Kind::Square, 2.0, 0.0));
        assert_eq!(pieces::compare(&case, 14 * 4 * 4, &[]), 3);
        let ragged = Reduce::whole([19, 7], 9, 15, Kind::Sum, 1.0, 0.0);
        assert!(ragged.shard(&[Spec::new([19, 7], DType::F32), Spec::new([9], DType::F32)], 400).is_none());
    }

    #[test]
    fn one_and_two_stages_give_the_scaled_sum_and_the_floor() {
        for shape in [vec![3], vec![40, 70], vec![2, 9001], vec![600, 3, 5]] {
            let mut g = Graph::new("test");
            let n: usize = shape.iter().product();
            let x = g.activation(shape, DType::F32);
            crate::ops::fill::fill(&mut g, x, -2.0).unwrap();
            let mean = reduce_to_scalar(&mut g, x, Kind::Abs, 1.0 / n as f32, 0.0).unwrap();
            let floor = reduce_to_scalar(&mut g, x, Kind::Sum, 1.0, 7.0).unwrap();
            let mut run = Interpreter::default();
            run.run(&g, false).unwrap();
            assert!((run.get(mean).unwrap()[0] - 2.0).abs() < 1e-6);
            assert_eq!(run.get(floor).unwrap(), [7.0]);
        }
    }
}
