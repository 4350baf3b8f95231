//! For tests: the pieces of a cut op, run one after the other, against the whole op.

#![allow(clippy::unwrap_used)]

use crate::dtype::{DType, Spec};
use crate::op::{Access, Args, Case, Op};
use crate::random::Random;
use crate::reference::{decode, encode};

/// Runs a case on the CPU whole and in pieces of at most `limit` bytes an operand (operands in
/// `whole` may be larger) and compares all outputs. Returns the number of pieces.
pub(super) fn compare(case: &Case, limit: u64, whole: &[usize]) -> usize {
    let specs = case.specs();
    let signature = &case.op.row().signature;
    let mut random = Random::new(9);
    let mut start: Vec<Vec<u32>> = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let values = case.values(i, &mut random);
        let poisoned = signature.operands[i].access == Access::Out;
        let words = encode(spec, &values);
        start.push(if poisoned { vec![f32::NAN.to_bits(); words.len()] } else { words });
    }
    let (mut expected, mut found) = (start.clone(), start);
    let all: Vec<_> = specs.iter().map(|s| (0, s.rows())).collect();
    run(&case.op, &specs, &all, &mut expected);
    let pieces = case.op.shard(&specs, limit).unwrap();
    for piece in &pieces {
        for (i, (spec, rows)) in specs.iter().zip(&piece.rows).enumerate() {
            assert!(whole.contains(&i) || spec.row_bytes() * rows.1 as u64 <= limit, "operand {i}: {rows:?}");
        }
        run(&piece.op, &specs, &piece.rows, &mut found);
    }
    for (i, spec) in specs.iter().enumerate().filter(|(_, s)| s.dtype == DType::F32) {
        let (expected, found) = (decode(spec, &expected[i]), decode(spec, &found[i]));
        let largest = expected.iter().fold(0f64, |a, b| a.max(b.abs()));
        let close = |(e, f): (&f64, &f64)| (e - f).abs() <= 1e-5 * largest;
        assert!(expected.iter().zip(&found).all(close), "operand {i} of {:?}", case.op);
    }
    pieces.len()
}

fn run(op: &Op, specs: &[Spec], rows: &[(usize, usize)], data: &mut [Vec<u32>]) {
    let accesses = op.row().signature.operands.iter().map(|o| o.access);
    let dims = op.dims();
    let (mut bound, mut reads, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    for (((access, spec), &(first, count)), data) in accesses.zip(specs).zip(rows).zip(data) {
        let words = spec.row_bytes() as usize / 4;
        let window = &mut data[first * words..(first + count) * words];
        let shape = if spec.shape.len() == 1 { spec.shape.clone() } else { vec![count, spec.cols()] };
        bound.push(Spec::new(shape, spec.dtype));
        let (read, write): (&[u32], &mut [u32]) = if access.writes() { (&[], window) } else { (window, &mut []) };
        reads.push(read);
        writes.push(write);
    }
    for (operand, spec) in op.row().signature.operands.iter().zip(&bound) {
        assert_eq!(operand.shape(&dims), spec.shape, "window of `{}` of {op:?}", operand.name);
    }
    op.cpu(Args::new(&bound, reads, writes));
}
