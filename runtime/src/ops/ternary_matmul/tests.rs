//! What the tests over all rows cannot see: pieces, and what is refused.

use super::*;
use crate::ops::pieces::compare;

#[test]
fn pieces_give_the_whole() {
    for (m, n, k) in [(1, 37, 100), (3, 37, 100), (70, 37, 100)] {
        let case = Case::new("pieces", TernaryMatmul::whole(m, n, k));
        let specs = case.specs();
        let row = specs[0].row_bytes();
        let largest = specs.iter().skip(1).map(Spec::bytes).max().unwrap();
        let op = TernaryMatmul::whole(m, n, k);
        assert!(op.shard(&specs, largest).is_some_and(|p| p.iter().map(|p| p.rows[0].1).sum::<usize>() == n as usize));
        assert!(op.shard(&specs, largest - 1).is_none());
        let limit = largest.max(10 * row);
        assert_eq!(compare(&case, limit, &[]), (n as usize).div_ceil((limit / row) as usize).max(1));
    }
}

#[test]
fn impossible_parameters_are_refused() {
    let whole = TernaryMatmul::whole(1, 4, 8);
    assert!(whole.check().is_ok());
    assert!(TernaryMatmul { l: 5, ..whole }.check().is_err());
    assert!(TernaryMatmul { n0: 1, ..whole }.check().is_err());
    assert!(TernaryMatmul { scale: 1, ..whole }.check().is_err());
    assert!(TernaryMatmul { k: LONGEST + 1, ..whole }.check().is_err());
}
