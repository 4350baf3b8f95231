//! Cutting elementwise ops whose operands are too large to bind whole.

use crate::dtype::Spec;
use crate::op::Piece;

/// Cuts an op whose operands all have the same number of rows (or exactly one row of parameters,
/// when listed in `whole`) into pieces of whole rows; `with_rows` gives the op for a number of rows.
pub(crate) fn by_rows<K>(
    operands: &[Spec],
    whole: &[usize],
    limit: u64,
    with_rows: impl Fn(usize, usize) -> K,
) -> Option<Vec<Piece<K>>> {
    let cut = |i: &usize| !whole.contains(i);
    let rows = operands.iter().enumerate().find(|(i, _)| cut(i)).map(|(_, s)| s.rows())?;
    let widest = operands.iter().enumerate().filter(|(i, _)| cut(i)).map(|(_, s)| s.row_bytes()).max()?;
    if operands.iter().enumerate().any(|(i, s)| !cut(&i) && s.bytes() > limit) {
        return None;
    }
    // Any 64 rows of whole words are a multiple of 256 bytes, where every device can bind.
    let most = (limit / widest) as usize;
    let most = if most >= 64 { most / 64 * 64 } else { most };
    let pieces = (0..rows).step_by(most.max(1)).map(|first| {
        let count = most.min(rows - first);
        let place = |(i, s): (usize, &Spec)| if cut(&i) { (first, count) } else { (0, s.rows()) };
        Piece { op: with_rows(first, count), rows: operands.iter().enumerate().map(place).collect() }
    });
    (most > 0).then(|| pieces.collect())
}
