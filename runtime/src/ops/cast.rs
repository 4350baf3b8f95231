//! Changes the dtype of floats: `y[m,k] = x[m,k]`, from f32 to bf16 or back.
//!
//! To bf16 it rounds to nearest, halves to even; what is not a number stays so (made quiet), infinities
//! and subnormals keep their meaning. To f32 it is exact. Both ways are defined on bits, so all devices
//! agree bit for bit. The gradient is the cast back (straight through the rounding).

use crate::cpu::parallel;
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Fill, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::{elementwise, split};
use crate::random::Random;
use crate::reference::{RefTensor, decode, encode};

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Cast {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub k: u32,
}

/// Records `x` of any shape in another dtype; gives `x` itself where it has that dtype.
pub fn cast(g: &mut Graph, x: Value, dtype: DType) -> Result<Value> {
    if g.spec(x).dtype == dtype {
        return Ok(x);
    }
    let y = g.activation(g.spec(x).shape.clone(), dtype);
    cast_into(g, x, y)?;
    Ok(y)
}

/// Records `y = x` for equal shapes of different dtypes.
pub fn cast_into(g: &mut Graph, x: Value, y: Value) -> Result<()> {
    let (m, k) = (g.spec(x).rows(), g.spec(x).cols());
    let (x, y) = (g.view(x, [m, k])?, g.view(y, [m, k])?);
    g.record(Cast { m: m as u32, k: k as u32 }, &[x, y])
}

impl Kernel for Cast {
    const NAME: &'static str = "cast";
    const SIGNATURE: &'static str = "x[m,k]:f32|bf16 -> y[m,k]:bf16|f32";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = &[];
    const WGSL_BF16: &'static [Wgsl<Self>] = &[
        Wgsl {
            name: "f32_to_bf16",
            file: "cast",
            needs: Needs::NONE,
            defines: &[("TO_BF16", 1)],
            when: |_, operands| operands.first().is_some_and(|x| x.dtype == DType::F32),
            launch: |op, _| Launch::groups((op.m as usize * (op.k as usize).div_ceil(2)).div_ceil(256)),
        },
        Wgsl {
            name: "bf16_to_f32",
            file: "cast",
            needs: Needs::NONE,
            defines: &[("TO_BF16", 0)],
            when: |_, operands| operands.first().is_some_and(|x| x.dtype == DType::Bf16),
            launch: |op, _| Launch::groups((op.m as usize * (op.k as usize).div_ceil(2)).div_ceil(256)),
        },
    ];
    fn cpu_takes(_operands: &[Spec]) -> bool {
        true
    }
    const CUDA: &'static [Cuda<Self>] = &[Cuda {
        name: "plain",
        entries: &["cast_bf16_f32", "cast_f32_bf16"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |_, t, _| elementwise::cuda_for(&t[1], ["cast_bf16_f32", "cast_f32_bf16"]),
    }];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("k", self.k as usize)]
    }

    fn check_dtypes(operands: &[Spec]) -> std::result::Result<(), String> {
        match operands {
            [x, y] if x.dtype == y.dtype => Err(format!("cast: {x} has the dtype already; use copy")),
            _ => Ok(()),
        }
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, y] = t else { return };
        y.data = decode(&y.spec, &encode(&y.spec, &x.data));
    }

    fn surrogate(&self, t: &mut [RefTensor]) {
        let [x, y] = t else { return };
        y.data.copy_from_slice(&x.data);
    }

    fn cpu(&self, mut args: Args<'_>) {
        let k = self.k as usize;
        // An even k has no padding: one run of elements. An odd one goes row by row.
        let (rows, cols) = if k.is_multiple_of(2) { (1, self.m as usize * k) } else { (self.m as usize, k) };
        let padded = DType::Bf16.padded(cols);
        if args.spec(0).dtype == DType::F32 {
            let (x, y) = (args.read::<f32>(0), args.write::<u16>(1));
            blocks(y, padded, rows, |row, first, y| {
                let count = y.len().min(cols - first);
                let (y, padding) = y.split_at_mut(count);
                y.iter_mut().zip(&x[row * cols + first..]).for_each(|(y, x)| *y = bf16_bits(*x));
                padding.fill(0);
            });
        } else {
            let (x, y) = (args.read::<u16>(0), args.write::<f32>(1));
            blocks(y, cols, rows, |row, first, y| {
                let x = &x[row * padded + first..];
                y.iter_mut().zip(x).for_each(|(y, x)| *y = f32::from_bits(u32::from(*x) << 16));
            });
        }
    }

    fn operations(&self) -> u64 {
        u64::from(self.m) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Exact
    }

    fn cases(size: Size) -> Vec<Case> {
        let down = |m, k| Case::new(format!("{m}x{k} f32 to bf16"), Cast { m, k });
        let up = |m, k| {
            let case = Case::new(format!("{m}x{k} bf16 to f32"), Cast { m, k });
            case.dtype("x", DType::Bf16).dtype("y", DType::F32)
        };
        let mut cases = Vec::new();
        for (m, k) in elementwise::shapes(size) {
            cases.extend([down(m, k), up(m, k)]);
        }
        if size == Size::Ragged {
            let (m, k) = (9, 37);
            let named = |mut case: Case, label: &str, values: Vec<f64>| {
                case.label = label.into();
                case.fill("x", Fill::Values(values))
            };
            cases.push(named(down(m, k), "halves between neighbours", halves(m * k)));
            cases.push(named(down(m, k), "not finite, subnormal, largest", special(m * k)));
            cases.push(named(up(m, k), "not finite, subnormal, largest from bf16", special(m * k)));
        }
        cases
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        if let (Some(dy), true) = (cx.upstream(1), cx.wanted(0)) {
            let dtype = cx.graph.spec(cx.operand(0)).dtype;
            let dx = cast(cx.graph, dy, dtype)?;
            cx.give(0, dx);
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        split::by_rows(operands, &[], limit, |_, rows| Cast { m: rows as u32, ..*self })
    }
}

/// Calls `f` with row, first column and elements of every block of rows of `width` elements.
fn blocks<T: Send>(y: &mut [T], width: usize, rows: usize, f: impl Fn(usize, usize, &mut [T]) + Sync) {
    const BLOCK: usize = elementwise::BLOCK;
    if rows == 1 {
        parallel::rows(y, BLOCK, BLOCK, |block, y| f(0, block * BLOCK, y));
    } else {
        parallel::rows(y, width, width, |row, y| f(row, 0, y));
    }
}

/// The nearest bf16, halves to even; a NaN stays one.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1));
    let nan = bits & 0x7FFF_FFFF > 0x7F80_0000;
    ((if nan { bits | 0x0040_0000 } else { rounded }) >> 16) as u16
}

/// Values in the middle of two neighbours, exactly and by one f32 beside it.
fn halves(n: u32) -> Vec<f64> {
    let mut random = Random::new(7);
    let value = |i: u32| {
        let above = random.below(0x7F00) as u32;
        let middle = (above << 16 | 0x8000) + i % 3 - 1;
        f64::from(f32::from_bits(middle | (i % 2) << 31))
    };
    (0..n).map(value).collect()
}

/// What rounding must not spoil.
fn special(n: u32) -> Vec<f64> {
    let bits = [0x7F80_0000u32, 0xFF80_0000, 0x7FC0_0000, 0, 0x8000_0000, 0x7F7F_FFFF, 0xFF7F_FFFF, 0x7F7F_0000, 1];
    let bits = bits.iter().chain(&[0x0000_8000, 0x0000_8001, 0x0001_8000, 0x007F_FFFF, 0x0080_0000, 0x3F80_0000]);
    bits.cycle().take(n as usize).map(|&b| f64::from(f32::from_bits(b))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pieces;
    use half::bf16;

    #[test]
    fn rounding_is_that_of_the_reference() {
        let mut random = Random::new(3);
        for i in 0..200_000u32 {
            let bits = random.below(1 << 32) as u32;
            let x = f32::from_bits(if i % 4 == 0 { bits & 0xFFFF_0000 | 0x8000 } else { bits });
            assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x}");
        }
    }

    #[test]
    fn pieces_equal_the_whole() {
        for k in [6, 7] {
            let case = Case::new("", Cast { m: 10, k }).dtype("x", DType::Bf16).dtype("y", DType::F32);
            assert_eq!(pieces::compare(&case, 4 * 4 * u64::from(k), &[]), 3);
        }
    }
}
