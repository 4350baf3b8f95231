//! What the tests over all rows cannot see: every instruction set, every tail, the largest sums.

use super::*;
use crate::dtype::Spec;
use crate::random::Random;
use crate::reference::encode;

const LAYOUTS: [DType; 4] = [DType::T2, DType::T1, DType::T2x16, DType::T1x16];

struct Data {
    m: usize,
    n: usize,
    k: usize,
    w: Vec<f64>,
    x: Vec<f64>,
}

impl Data {
    fn new(m: usize, n: usize, k: usize, random: &mut Random) -> Data {
        let w = (0..n * k).map(|_| random.below(3) as f64 - 1.0).collect();
        let x = (0..m * k).map(|_| random.below(256) as f64 - 128.0).collect();
        Data { m, n, k, w, x }
    }

    fn run(&self, path: Path, dtype: DType) -> Vec<f32> {
        let w = encode(&Spec::new([self.n, self.k], dtype), &self.w);
        let x = encode(&Spec::new([self.m, self.k], DType::I8), &self.x);
        let w = Weights::new(&w, dtype, self.n, self.k);
        let x = Activations::new(path, &x, self.k, &w);
        // Columns before and after the product's own stay as they are.
        let to = Columns { n0: 3, l: self.n + 5 };
        let mut y = vec![f32::NAN; self.m * to.l];
        product(path, &w, &x, &vec![1.0; self.m], |_| 1.0, to, &mut y);
        for row in y.chunks_exact(to.l) {
            assert!(row[..3].iter().chain(&row[3 + self.n..]).all(|v| v.is_nan()));
        }
        y.chunks_exact(to.l).flat_map(|row| row[3..3 + self.n].to_vec()).collect()
    }

    /// One element after the other, in integers.
    fn expected(&self) -> Vec<f32> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| *a as i32 * *b as i32).sum::<i32>();
        let rows = |x: &[f64]| self.w.chunks_exact(self.k).map(|w| dot(w, x) as f32).collect::<Vec<_>>();
        self.x.chunks_exact(self.k).flat_map(rows).collect()
    }

    fn check(&self) {
        let expected = self.expected();
        for path in Path::available() {
            for dtype in LAYOUTS {
                assert!(self.run(path, dtype) == expected, "{path:?} {dtype} {}x{}x{}", self.m, self.n, self.k);
            }
        }
    }
}

#[test]
fn every_instruction_set_and_layout_gives_the_same_integers() {
    let mut random = Random::new(1);
    assert_eq!(Path::available().last(), Some(&Path::Portable));
    for (m, n, k) in [(1, 1, 1), (1, 70, 2560), (2, 5, 4099), (3, 9, 8192), (5, 131, 100), (230, 33, 333)] {
        Data::new(m, n, k, &mut random).check();
    }
    for _ in 0..24 {
        let mut below = |n| 1 + random.below(n) as usize;
        let (m, n, k) = (below(30), below(90), below(1500));
        Data::new(m, n, k, &mut random).check();
    }
}

#[test]
fn every_length_of_a_row_is_exact() {
    let mut random = Random::new(4);
    for k in 1..=170 {
        let m = 1 + k % 14;
        Data::new(m, 17, k, &mut random).check();
    }
}

#[test]
fn saturated_inputs_do_not_overflow() {
    for k in [64, 1000, 16 * 1024] {
        for x in [-128.0, 127.0] {
            for w in [-1.0, 1.0] {
                let (m, n) = (3, 4);
                Data { m, n, k, w: vec![w; n * k], x: vec![x; m * k] }.check();
            }
        }
    }
}
