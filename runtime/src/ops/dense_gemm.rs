//! Dense f32 products on the CPU: `y (+)= A · B` with any strides of `A` and `B`.
//!
//! Large products go to the `gemm-f32` crate (packed tiles, vector instructions found at run
//! time, rayon). The sum of one output element runs over the depth in an order that depends on
//! the shape alone, so results do not depend on the number of threads. That crate takes raw
//! pointers; this file is the one place that calls it, behind checks of every slice. In a
//! browser, where it is absent, plain loops do the work.

/// A matrix in a slice: element `(i, j)` is `data[i·row + j·col]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    /// Elements.
    pub(crate) data: &'a [f32],
    /// Step from row to row.
    pub(crate) row: usize,
    /// Step from column to column.
    pub(crate) col: usize,
}

impl Matrix<'_> {
    /// Are all elements of an `m`×`n` matrix inside the slice?
    fn holds(&self, m: usize, n: usize) -> bool {
        let last = || (m - 1).checked_mul(self.row)?.checked_add((n - 1).checked_mul(self.col)?);
        m > 0 && n > 0 && last().is_some_and(|last| last < self.data.len())
    }
}

/// Extents of one product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    /// Rows of `A` and `y`.
    pub(crate) m: usize,
    /// Columns of `B` and `y`.
    pub(crate) n: usize,
    /// Columns of `A`, rows of `B`.
    pub(crate) depth: usize,
}

/// `y[m,n] = A[m,depth] · B[depth,n]`, or `+=` with `add`; row `i` of `y` begins at `i·stride`.
/// Does nothing if a matrix does not lie in its slice (the signature's check rules that out).
pub(crate) fn gemm(y: &mut [f32], stride: usize, e: Extents, a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    let y_holds = stride >= e.n && Matrix { data: y, row: stride, col: 1 }.holds(e.m, e.n);
    if !(y_holds && a.holds(e.m, e.depth) && b.holds(e.depth, e.n)) {
        debug_assert!(false, "a matrix lies outside its slice: {e:?}");
        return;
    }
    #[cfg(not(target_arch = "wasm32"))]
    packed(y, stride, e, a, b, add);
    #[cfg(target_arch = "wasm32")]
    plain(y, stride, e, a, b, add);
}

/// The crate's kernels have columns of `y` that are contiguous in mind, so `yᵀ = Bᵀ · Aᵀ` is asked for.
#[cfg(not(target_arch = "wasm32"))]
#[allow(unsafe_code)]
fn packed(y: &mut [f32], stride: usize, e: Extents, a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    let kernel = gemm_f32::gemm::f32::get_gemm_fn();
    let (y_col, y_row) = (stride as isize, 1);
    // Waking a thread costs more than such a product; the tiles of attention are of this size.
    let small = e.m * e.n * e.depth < 1 << 20;
    let parallelism = if small { gemm_common::Parallelism::None } else { gemm_common::Parallelism::Rayon(0) };
    // SAFETY: the caller, `gemm`, has checked that the largest index reached in `y`, `a` and `b`
    // lies in their slices and that rows of `y` do not overlap (`stride ≥ n`). All extents are
    // above zero. Steps are at most a slice's length where they are used more than zero times, so
    // no offset overflows `isize`. `y` is borrowed mutably, `a` and `b` are not, so they do not
    // alias. The kernel reads `y` only when `add` says so, and every f32 is a valid value.
    unsafe {
        kernel(
            e.n,
            e.m,
            e.depth,
            y.as_mut_ptr(),
            y_col,
            y_row,
            add,
            b.data.as_ptr(),
            b.row as isize,
            b.col as isize,
            a.data.as_ptr(),
            a.row as isize,
            a.col as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Plain loops: rows of `B` scaled and added where they are contiguous, otherwise dot products.
#[cfg(any(target_arch = "wasm32", test))]
fn plain(y: &mut [f32], stride: usize, e: Extents, a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    for (i, y) in y.chunks_mut(stride).take(e.m).enumerate() {
        let y = &mut y[..e.n];
        if !add {
            y.fill(0.0);
        }
        if b.col == 1 {
            for d in 0..e.depth {
                axpy(y, a.data[i * a.row + d * a.col], &b.data[d * b.row..][..e.n]);
            }
            continue;
        }
        for (j, y) in y.iter_mut().enumerate() {
            let term = |d: usize| a.data[i * a.row + d * a.col] * b.data[d * b.row + j * b.col];
            *y += (0..e.depth).map(term).sum::<f32>();
        }
    }
}

/// `y += s · x`.
pub(crate) fn axpy(y: &mut [f32], s: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += s * x;
    }
}

/// Dot product in 32 lanes, lanes added pairwise in the end.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::random::Random;

    fn normal(n: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed);
        (0..n).map(|_| random.normal() as f32).collect()
    }

    /// The three transpositions that rows ask for, as (A, B).
    fn operands<'a>(e: Extents, a: &'a [f32], b: &'a [f32]) -> [(Matrix<'a>, Matrix<'a>); 3] {
        let by_row = |data, cols| Matrix { data, row: cols, col: 1 };
        let by_col = |data, rows| Matrix { data, row: 1, col: rows };
        [
            (by_row(a, e.depth), by_col(b, e.depth)),
            (by_row(a, e.depth), by_row(b, e.n)),
            (by_col(a, e.m), by_row(b, e.n)),
        ]
    }

    #[test]
    fn packed_products_equal_plain_ones() {
        for (m, n, depth) in
            [(1, 1, 1), (1, 40, 2), (40, 1, 3), (1, 65, 70), (7, 300, 65), (33, 31, 129), (130, 70, 600)]
        {
            let e = Extents { m, n, depth };
            let (a, b) = (normal(m * depth, 1), normal(depth * n, 2));
            for (a, b) in operands(e, &a, &b) {
                for add in [false, true] {
                    // Between the rows of y lies memory that must stay as it is.
                    let stride = n + 3;
                    let start = if add { 0.5 } else { f32::NAN };
                    let (mut found, mut expected) = (vec![start; m * stride], vec![start; m * stride]);
                    gemm(&mut found, stride, e, a, b, add);
                    plain(&mut expected, stride, e, a, b, add);
                    let worst = found.chunks(stride).zip(expected.chunks(stride)).flat_map(|(f, e)| {
                        assert!(f[n..].iter().all(|v| v.to_bits() == start.to_bits()));
                        f[..n].iter().zip(&e[..n]).map(|(f, e)| (f - e).abs())
                    });
                    let worst = worst.fold(0f32, |a, b| if b.is_nan() { f32::INFINITY } else { a.max(b) });
                    assert!(worst <= 1e-5 * (depth as f32).sqrt().max(4.0), "{e:?} add {add}: {worst}");
                }
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let e = Extents { m: 130, n: 515, depth: 1100 };
        let (a, b) = (normal(e.m * e.depth, 3), normal(e.depth * e.n, 4));
        for (a, b) in operands(e, &a, &b) {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut y = vec![0.25; e.m * e.n];
                pool.install(|| gemm(&mut y, e.n, e, a, b, true));
                y
            };
            let one = run(1);
            assert!([1, 2, 3].into_iter().all(|threads| run(threads) == one));
        }
    }

    #[test]
    fn dot_and_axpy_take_any_length() {
        for n in [0, 1, 31, 32, 33, 100] {
            let (a, b) = (normal(n, 5), normal(n, 6));
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&a, &b)) - expected).abs() < 1e-5);
            let mut y = a.clone();
            axpy(&mut y, 2.0, &b);
            assert!(y.iter().zip(&a).zip(&b).all(|((y, a), b)| (y - (a + 2.0 * b)).abs() < 1e-6));
        }
    }
}
