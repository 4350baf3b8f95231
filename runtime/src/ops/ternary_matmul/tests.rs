//! What the tests over all rows cannot see: every instruction set, both branches, pieces.

use super::cpu::{Inputs, Path, matmul};
use super::*;
use crate::random::Random;
use crate::reference::encode;

struct Data {
    op: TernaryMatmul,
    specs: Vec<Spec>,
    w: Vec<u32>,
    x: Vec<u32>,
    xs: Vec<f32>,
    codes: (Vec<f64>, Vec<f64>),
}

impl Data {
    fn new(m: u32, n: u32, k: u32, random: &mut Random) -> Data {
        let op = TernaryMatmul { m, n, k, l: n, n0: 0 };
        let specs = crate::ops::Op::from(op).specs();
        let w: Vec<f64> = (0..n * k).map(|_| random.below(3) as f64 - 1.0).collect();
        let x: Vec<f64> = (0..m * k).map(|_| random.below(256) as f64 - 128.0).collect();
        let (words, bytes) = (encode(&specs[0], &w), encode(&specs[2], &x));
        Data { op, w: words, x: bytes, xs: vec![1.0; m as usize], codes: (w, x), specs }
    }

    fn run(&self, path: Path) -> Vec<f32> {
        let mut y = vec![f32::NAN; (self.op.m * self.op.n) as usize];
        self.piece(path, &self.op, &self.w, &mut y);
        y
    }

    fn piece(&self, path: Path, op: &TernaryMatmul, w: &[u32], y: &mut [f32]) {
        let inputs = Inputs { w: bytemuck::cast_slice(w), ws: 1.0, x: &self.x, xs: &self.xs };
        matmul(path, op, &inputs, y);
    }

    /// One element after the other, in integers.
    fn expected(&self) -> Vec<f32> {
        let k = self.op.k as usize;
        let (w, x) = &self.codes;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| *a as i32 * *b as i32).sum::<i32>();
        x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(w, x) as f32)).collect()
    }
}

#[test]
fn every_instruction_set_gives_the_same_integers() {
    let mut random = Random::new(1);
    let mut sizes = vec![(1, 1, 1), (1, 70, 2560), (2, 5, 4099), (3, 9, 8192), (5, 131, 100), (200, 17, 333)];
    for _ in 0..24 {
        let mut below = |n| 1 + random.below(n) as u32;
        sizes.push((below(9), below(90), below(3000)));
    }
    let paths = Path::available();
    assert_eq!(paths.last(), Some(&Path::Portable));
    for (m, n, k) in sizes {
        let data = Data::new(m, n, k, &mut random);
        let expected = data.expected();
        for &path in &paths {
            assert_eq!(data.run(path), expected, "{path:?} {m}x{n}x{k}");
        }
    }
}

#[test]
fn the_largest_codes_do_not_overflow() {
    let k = 16 * 1024;
    for value in [-128.0, 127.0] {
        let mut data = Data::new(2, 4, k, &mut Random::new(2));
        data.codes = (vec![1.0; 4 * k as usize], vec![value; 2 * k as usize]);
        data.w = encode(&data.specs[0], &data.codes.0);
        data.x = encode(&data.specs[2], &data.codes.1);
        for path in Path::available() {
            assert_eq!(data.run(path), vec![value as f32 * k as f32; 8], "{path:?}");
        }
    }
}

#[test]
fn pieces_give_the_whole() {
    for (m, n, k) in [(1, 37, 100), (3, 37, 100), (70, 37, 100)] {
        let data = Data::new(m, n, k, &mut Random::new(3));
        let row = data.specs[0].row_bytes();
        let largest = data.specs.iter().skip(1).map(Spec::bytes).max().unwrap();
        let pieces = data.op.shard(&data.specs, largest);
        assert!(pieces.is_some_and(|p| p.iter().map(|p| p.rows[0].1).sum::<usize>() == n as usize));
        assert!(data.op.shard(&data.specs, largest - 1).is_none());
        // A limit below y, to get several pieces of this small case.
        let small = Spec::new([1], crate::dtype::DType::F32);
        let specs = [data.specs[0].clone(), small.clone(), small.clone(), small.clone(), small];
        let pieces = data.op.shard(&specs, 10 * row).unwrap();
        assert_eq!(pieces.len(), 4);
        let mut y = vec![f32::NAN; (m * n) as usize];
        for piece in pieces {
            let (first, count) = piece.rows[0];
            let words = row as usize / 4;
            data.piece(Path::best(), &piece.op, &data.w[first * words..(first + count) * words], &mut y);
        }
        assert_eq!(y, data.expected());
    }
}

#[test]
fn only_pieces_have_columns_of_their_own() {
    let whole = TernaryMatmul { m: 1, n: 4, k: 8, l: 4, n0: 0 };
    assert!(whole.check().is_ok());
    assert!(TernaryMatmul { l: 5, ..whole }.check().is_err());
    assert!(TernaryMatmul { n0: 1, ..whole }.check().is_err());
    assert!(TernaryMatmul { k: LONGEST + 1, ..whole }.check().is_err());
}
