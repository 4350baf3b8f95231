//! What the three dense products share: test shapes, tiles, and the cut into pieces.

use crate::dtype::{DType, Spec};
use crate::op::{Case, Launch, Size};

pub(super) mod cuda;

/// Rows of a left operand up to which a product is a few matrix-vector products, bound by memory.
pub(super) const FEW: usize = 4;

/// Side of a tile of the output that one GPU workgroup computes.
const TILE: usize = 64;

/// Workgroups for an output of `rows`×`cols`.
pub(super) fn tiles(rows: u32, cols: u32) -> Launch {
    Launch::groups((rows as usize).div_ceil(TILE) * (cols as usize).div_ceil(TILE))
}

/// `(m, n, k)` of test cases.
pub(super) fn shapes(size: Size) -> Vec<(u32, u32, u32)> {
    match size {
        Size::Small => vec![(3, 5, 4), (6, 2, 3)],
        Size::Ragged => {
            vec![
                (1, 1, 1),
                (1, 131, 777),
                (4, 67, 35),
                (5, 65, 33),
                (64, 64, 64),
                (67, 129, 71),
                (130, 3, 515),
                // Long sums, which CUDA shares among blocks: of k, of n, of m.
                (72, 80, 1056),
                (33, 1037, 66),
                (1032, 72, 136),
            ]
        }
        Size::Bench => {
            vec![
                (1, 2048, 768),
                (1, 65_536, 768),
                (512, 768, 768),
                (512, 2048, 768),
                (512, 768, 2048),
                (512, 6912, 2560),
            ]
        }
    }
}

/// Both factors have one dtype; the product has it too, where the signature lets it, or stays in f32.
pub(super) fn check_dtypes(operands: &[Spec]) -> std::result::Result<(), String> {
    match operands {
        // Weights kept in 16 bits.
        [x, w, y] if x.dtype == DType::F32 && matches!(w.dtype, DType::F16 | DType::Bf16) => {
            if y.dtype == DType::F32 {
                Ok(())
            } else {
                Err(format!("the product of f32 cannot be {}", y.dtype))
            }
        }
        [x, w, _] if x.dtype != w.dtype => {
            Err(format!("the factors are {} and {}: give both in one", x.dtype, w.dtype))
        }
        [x, _, y] if y.dtype != x.dtype && y.dtype != DType::F32 => {
            Err(format!("the product of {} cannot be {}", x.dtype, y.dtype))
        }
        _ => Ok(()),
    }
}

/// The cases, and of the small and ragged ones also those of bf16 factors whose product stays in f32.
pub(super) fn wide_cases(mut cases: Vec<Case>, size: Size) -> Vec<Case> {
    let wide = |case: &Case| {
        let mut case = case.clone().dtype("x", DType::Bf16).dtype("w", DType::Bf16);
        case.label += " bf16 to f32";
        case
    };
    let wide: Vec<Case> = if size == Size::Bench { Vec::new() } else { cases.iter().map(wide).collect() };
    cases.extend(wide);
    cases
}

/// A window of rows `m0..m0+m` of the batch and rows `n0..n0+n` of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) m0: usize,
    pub(super) m: usize,
    pub(super) n0: usize,
    pub(super) n: usize,
}

impl Window {
    /// First row and number of rows of the batch.
    pub(super) fn batch(&self) -> (usize, usize) {
        (self.m0, self.m)
    }

    /// First row and number of rows of the weight.
    pub(super) fn weight(&self) -> (usize, usize) {
        (self.n0, self.n)
    }
}

/// Windows of a product whose operands `batch` have the rows of the batch and whose operand
/// `weight` those of the weight, in the order of the weight's rows.
pub(super) fn windows(operands: &[Spec], batch: [usize; 2], weight: usize, limit: u64) -> Option<Vec<Window>> {
    let wide = batch.into_iter().map(|i| operands[i].row_bytes()).max()?;
    let (m, n) = (operands[batch[0]].rows(), operands[weight].rows());
    let (most_m, most_n) = (most(limit, wide, m)?, most(limit, operands[weight].row_bytes(), n)?);
    let cut = |n0: usize| {
        let window = move |m0: usize| Window { m0, m: most_m.min(m - m0), n0, n: most_n.min(n - n0) };
        (0..m).step_by(most_m).map(window)
    };
    Some((0..n).step_by(most_n).flat_map(cut).collect())
}

/// Rows that fit the limit. Multiples of 64 where possible, so that windows begin on 256 bytes.
fn most(limit: u64, row_bytes: u64, rows: usize) -> Option<usize> {
    let most = (limit / row_bytes.max(1)).min(rows as u64) as usize;
    let whole = if most < rows && most >= 64 { most / 64 * 64 } else { most };
    (whole > 0).then_some(whole)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn windows_cover_the_product_once_and_fit() {
        let specs =
            [Spec::new([70, 16], DType::F32), Spec::new([130, 16], DType::F32), Spec::new([70, 130], DType::F32)];
        let limit = 64 * 130 * 4;
        let windows = windows(&specs, [0, 2], 1, limit).unwrap();
        assert_eq!(windows.iter().map(|w| w.m * w.n).sum::<usize>(), 70 * 130);
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[1].m0, 64);
        assert!(super::windows(&specs, [0, 2], 1, 63).is_none());
    }
}
