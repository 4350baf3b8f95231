//! Writes keys and values into rows of a cache: `cache[slot_i] = (k_i, v_i)`.
//!
//! An f16 cache gets each value rounded to nearest, ties to even. A slot past the end is ignored. Slots are
//! distinct (the caller's contract; of two equal ones either may win).

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
    /// Columns of the keys, and of the values.
    pub c: u32,
    /// Rows of the cache.
    pub t: u32,
}

/// Records `cache[slot] = (k, v)`; `k[m,…]` and `v[m,…]` are seen as matrices of `m` rows, half as wide as `cache[t,…]`.
pub fn cache_append(g: &mut Graph, [k, v]: [Value; 2], slot: Value, cache: Value) -> Result<()> {
    let rows = |g: &Graph, v: Value| g.spec(v).shape.first().copied().unwrap_or(1).max(1);
    let (m, t) = (rows(g, k), rows(g, cache));
    let c = g.spec(k).elements() / m;
    let half = g.spec(cache).dtype == DType::F16;
    if g.spec(cache).elements() / t != 2 * c || g.spec(v).elements() != m * c || (half && !c.is_multiple_of(2)) {
        let message = format!(
            "cache_append: `{}` ({}) and `{}` ({}) into `{}` ({}): a row of the cache is one of both, of even sizes for f16",
            g.value_name(k),
            g.spec(k),
            g.value_name(v),
            g.spec(v),
            g.value_name(cache),
            g.spec(cache)
        );
        return Err(Error::Record { graph: g.name().into(), message });
    }
    let (k, v) = (g.view(k, [m, c])?, g.view(v, [m, c])?);
    let cache = g.view(cache, [t, 2 * c])?;
    g.record(CacheAppend { m: m as u32, c: c as u32, t: t as u32 }, &[k, v, slot, cache])
}

fn is(dtype: DType, operands: &[Spec]) -> bool {
    operands.get(3).is_some_and(|s| s.dtype == dtype)
}

/// Writes a key and a value into one row, unless it is past the end.
pub(super) fn append_row(dtype: DType, cache: &mut [u32], slot: u32, k: &[f32], v: &[f32]) {
    let words = dtype.row_bytes(2 * k.len()) / 4;
    let Some(row) = cache.chunks_exact_mut(words).nth(slot as usize) else { return };
    if dtype == DType::F16 {
        let (keys, values) = bytemuck::cast_slice_mut::<u32, f16>(row).split_at_mut(k.len());
        keys.convert_from_f32_slice(k);
        values.convert_from_f32_slice(v);
    } else {
        let (keys, values) = bytemuck::cast_slice_mut(row).split_at_mut(k.len());
        keys.copy_from_slice(k);
        values.copy_from_slice(v);
    }
}

impl Kernel for CacheAppend {
    const NAME: &'static str = "cache_append";
    const SIGNATURE: &'static str = "k[m,c]:f32 v[m,c]:f32 slot[m]:u32 -> &cache[t,c2]:f32|f16";
    const GRADIENT: Gradient = Gradient::None("caches are for inference only");
    const WGSL: &'static [Wgsl<Self>] = &[
        Wgsl {
            name: "f16",
            file: "cache_append",
            needs: Needs::NONE,
            defines: &[("HALF", 1)],
            when: |_, operands| is(DType::F16, operands),
            launch: |op, _| Launch::groups((op.m as usize * op.c as usize).div_ceil(256)),
        },
        Wgsl {
            name: "plain",
            file: "cache_append",
            needs: Needs::NONE,
            defines: &[("HALF", 0)],
            when: |_, operands| is(DType::F32, operands),
            launch: |op, _| Launch::groups((2 * op.m as usize * op.c as usize).div_ceil(256)),
        },
    ];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "f16",
            entries: &["cache_append_f16"],
            hot: true,
            align: 4,
            when: |_, operands| is(DType::F16, operands),
            launch: |op, t, _| elementwise::cuda("cache_append_f16", u64::from(op.m) * t[3].row_bytes()),
        },
        Cuda {
            name: "plain",
            entries: &["cache_append_f32"],
            hot: true,
            align: 4,
            when: |_, operands| is(DType::F32, operands),
            launch: |op, t, _| elementwise::cuda("cache_append_f32", u64::from(op.m) * t[3].row_bytes()),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("c", self.c as usize), ("c2", 2 * self.c as usize), ("t", self.t as usize)]
    }

    fn check(&self) -> std::result::Result<(), String> {
        let even = self.c.is_multiple_of(2);
        even.then_some(()).ok_or_else(|| format!("cache_append: rows of {} elements; they must be even", self.c))
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [k, v, slot, cache] = t else { return };
        let c = self.c as usize;
        for i in 0..self.m as usize {
            let at = slot.data[i] as usize;
            if at < self.t as usize {
                cache.data[2 * at * c..][..c].copy_from_slice(k.row(i));
                cache.data[(2 * at + 1) * c..][..c].copy_from_slice(v.row(i));
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let c = self.c as usize;
        let (k, v, slot) = (args.read::<f32>(0), args.read::<f32>(1), args.read::<u32>(2));
        let dtype = args.spec(3).dtype;
        let cache = args.write::<u32>(3);
        for (i, &slot) in slot.iter().enumerate() {
            append_row(dtype, cache, slot, &k[i * c..(i + 1) * c], &v[i * c..(i + 1) * c]);
        }
    }

    fn operations(&self) -> u64 {
        0
    }

    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        let read = operands[..3].iter().map(Spec::bytes).sum();
        (read, u64::from(self.m) * operands[3].row_bytes())
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[[u32; 3]] = match size {
            Size::Small => &[[3, 4, 5]],
            Size::Ragged => &[[1, 2, 1], [5, 66, 9], [11, 34, 13], [7, 40, 9]],
            Size::Bench => &[[1, 256, 4096], [512, 256, 4096]],
        };
        let mut cases = Vec::new();
        for &[m, c, t] in sizes {
            // Distinct rows in falling order; the first is past the end.
            let positions = (0..m).map(|i| f64::from(t.max(m) - i)).collect();
            let positions = if m == 1 { vec![f64::from(t - 1)] } else { positions };
            for dtype in [DType::F32, DType::F16] {
                let case = Case::new(format!("{m}x{c} into {t} of {dtype}"), CacheAppend { m, c, t });
                // Values up to 1e5 reach infinity in f16, those near 1e-6 its subnormals.
                let spread = |(i, v): (usize, f64)| v * [1.0, 1e-6, 3e4, 1e-8][i % 4];
                let spread = |i| case.values(i, &mut crate::random::Random::new(7)).into_iter().enumerate().map(spread).collect();
                let (k, v) = (Fill::Values(spread(0)), Fill::Values(spread(1)));
                let case = case.clone().fill("k", k).fill("v", v).fill("slot", Fill::Values(positions.clone()));
                cases.push(case.dtype("cache", dtype));
            }
        }
        cases
    }
}
