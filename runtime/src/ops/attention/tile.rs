//! Small dense tiles in scratch memory, and what fills them: the inner loops of all attention rows.

use crate::ops::dense_gemm::{Extents, Matrix, gemm};

/// Keys (or, in the gradient of keys, query rows) that one tile holds.
pub(crate) const KEYS: usize = 128;

/// Rows of a tile of queries, roughly: tokens times the heads that share keys.
pub(crate) const ROWS: usize = 128;

/// Rows and columns of the register tile of [`multiply_add`].
const REGISTER: (usize, usize) = (4, 16);

/// Rows that a tile for `n` of them needs as the left factor of [`multiply_add`].
pub(crate) fn padded_rows(n: usize) -> usize {
    n.next_multiple_of(REGISTER.0)
}

/// Columns that a tile for `n` of them needs as the right factor of [`multiply_add`].
pub(crate) fn padded_columns(n: usize) -> usize {
    n.next_multiple_of(REGISTER.1)
}

/// `c[r,n] += a[r,k] · b[k,n]`, row-major without gaps, `r` padded for rows and `n` for columns.
pub(crate) fn multiply_add(c: &mut [f32], a: &[f32], b: &[f32], k: usize, n: usize) {
    let m = (c.len() / n).min(a.len() / k);
    gemm(
        c,
        n,
        Extents { m, n, depth: k },
        Matrix { data: a, row: k, col: 1 },
        Matrix { data: b, row: n, col: 1 },
        true,
    );
}

/// Rows of `width` elements in a tile with rows of `padded`; what is past a row or past the last
/// row becomes zero, as do rows that `row` does not give.
pub(crate) fn gather<'a>(tile: &mut [f32], padded: usize, row: impl Fn(usize) -> Option<&'a [f32]>) {
    for (r, out) in tile.chunks_exact_mut(padded).enumerate() {
        let taken = row(r).map_or(0, |row| {
            out[..row.len()].copy_from_slice(row);
            row.len()
        });
        out[taken..].fill(0.0);
    }
}

/// `out[columns, rows]` of the first `columns` elements of every row of `tile`, which has rows of
/// `padded`; `out` has as many columns as the tile has rows.
pub(crate) fn transpose(out: &mut [f32], tile: &[f32], padded: usize) {
    let rows = tile.len() / padded;
    for (c, out) in out.chunks_exact_mut(rows).enumerate() {
        for (out, row) in out.iter_mut().zip(tile.chunks_exact(padded)) {
            *out = row[c];
        }
    }
}
