//! Writes rows into a cache at given positions: `cache[pos_i] = x_i`.
//!
//! An f16 cache gets each value rounded to nearest, ties to even. A position past the end is
//! ignored. Positions are distinct (the caller's contract; of two equal ones either may win).

use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::elementwise;
use crate::reference::RefTensor;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CacheAppend {
    /// Rows to write.
    pub m: u32,
    /// Columns.
    pub c: u32,
    /// Rows of the cache.
    pub t: u32,
}

/// Records `cache[pos] = x`; `x[m,…]` and `cache[t,…]` are seen as matrices of `m` and `t` rows.
pub fn cache_append(g: &mut Graph, x: Value, pos: Value, cache: Value) -> Result<()> {
    let rows = |g: &Graph, v: Value| g.spec(v).shape.first().copied().unwrap_or(1).max(1);
    let (m, t) = (rows(g, x), rows(g, cache));
    let c = g.spec(x).elements() / m;
    let cache_columns = g.spec(cache).elements() / t;
    let half = g.spec(cache).dtype == DType::F16;
    if cache_columns != c || (half && !c.is_multiple_of(2)) {
        let message = format!(
            "cache_append: `{}` ({}) into `{}` ({}): rows must have the same size, an even one for f16",
            g.value_name(x),
            g.spec(x),
            g.value_name(cache),
            g.spec(cache)
        );
        return Err(Error::Record { graph: g.name().into(), message });
    }
    let x = g.view(x, [m, c])?;
    let cache = g.view(cache, [t, c])?;
    g.record(CacheAppend { m: m as u32, c: c as u32, t: t as u32 }, &[x, pos, cache])
}

fn is(dtype: DType, operands: &[Spec]) -> bool {
    operands.get(2).is_some_and(|s| s.dtype == dtype)
}

/// Writes one row, unless its place is past the end.
pub(super) fn append_row(dtype: DType, cache: &mut [u32], pos: u32, x: &[f32]) {
    let words = dtype.row_bytes(x.len()) / 4;
    let Some(row) = cache.chunks_exact_mut(words).nth(pos as usize) else { return };
    if dtype == DType::F16 {
        let (values, padding) = bytemuck::cast_slice_mut::<u32, f16>(row).split_at_mut(x.len());
        values.convert_from_f32_slice(x);
        padding.fill(f16::ZERO);
    } else {
        bytemuck::cast_slice_mut(row).copy_from_slice(x);
    }
}

impl Kernel for CacheAppend {
    const NAME: &'static str = "cache_append";
    const SIGNATURE: &'static str = "x[m,c]:f32 pos[m]:u32 -> &cache[t,c]:f32|f16";
    const GRADIENT: Gradient = Gradient::None("caches are for inference only");
    const WGSL: &'static [Wgsl<Self>] = &[
        Wgsl {
            name: "f16",
            file: "cache_append",
            needs: Needs::NONE,
            defines: &[("HALF", 1)],
            when: |_, operands| is(DType::F16, operands),
            launch: |op, _| Launch::groups((op.m as usize * (op.c as usize).div_ceil(2)).div_ceil(256)),
        },
        Wgsl {
            name: "plain",
            file: "cache_append",
            needs: Needs::NONE,
            defines: &[("HALF", 0)],
            when: |_, operands| is(DType::F32, operands),
            launch: |op, _| Launch::groups((op.m as usize * op.c as usize).div_ceil(256)),
        },
    ];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "f16",
            entries: &["cache_append_f16"],
            hot: true,
            align: 4,
            when: |_, operands| is(DType::F16, operands),
            launch: |op, t, _| elementwise::cuda("cache_append_f16", u64::from(op.m) * t[2].row_bytes()),
        },
        Cuda {
            name: "plain",
            entries: &["cache_append_f32"],
            hot: true,
            align: 4,
            when: |_, operands| is(DType::F32, operands),
            launch: |op, t, _| elementwise::cuda("cache_append_f32", u64::from(op.m) * t[2].row_bytes()),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("c", self.c as usize), ("t", self.t as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, pos, cache] = t else { return };
        let c = self.c as usize;
        for i in 0..self.m as usize {
            let at = pos.data[i] as usize;
            if at < self.t as usize {
                cache.data[at * c..(at + 1) * c].copy_from_slice(x.row(i));
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let c = self.c as usize;
        let (x, pos) = (args.read::<f32>(0), args.read::<u32>(1));
        let dtype = args.spec(2).dtype;
        let cache = args.write::<u32>(2);
        pos.iter().zip(x.chunks_exact(c)).for_each(|(&p, x)| append_row(dtype, cache, p, x));
    }

    fn operations(&self) -> u64 {
        0
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let read = operands[0].bytes() + operands[1].bytes();
        (read, u64::from(self.m) * operands[2].row_bytes())
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[[u32; 3]] = match size {
            Size::Small => &[[3, 4, 5]],
            Size::Ragged => &[[1, 1, 1], [1, 2, 1], [5, 66, 9], [11, 33, 13], [7, 40, 9]],
            Size::Bench => &[[1, 256, 4096], [512, 256, 4096]],
        };
        let mut cases = Vec::new();
        for &[m, c, t] in sizes {
            for dtype in [DType::F32, DType::F16] {
                // Distinct positions in falling order; the first is past the end.
                let positions = (0..m).map(|i| f64::from(t.max(m) - i)).collect();
                let positions = if m == 1 { vec![f64::from(t - 1)] } else { positions };
                let case = Case::new(format!("{m}x{c} into {t} of {dtype}"), CacheAppend { m, c, t });
                // Values up to 1e5 reach infinity in f16, those near 1e-6 its subnormals.
                let x = case.values(0, &mut crate::random::Random::new(7));
                let spread = |(i, v): (usize, f64)| v * [1.0, 1e-6, 3e4, 1e-8][i % 4];
                let x = x.into_iter().enumerate().map(spread).collect();
                cases.push(case.fill("x", Fill::Values(x)).fill("pos", Fill::Values(positions)).dtype("cache", dtype));
            }
        }
        cases
    }
}
