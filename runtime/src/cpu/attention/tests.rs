//! Every instruction set against the reference of the rows, and threads against each other.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::decode::decode;
use super::prompt::prompt;
use super::{Floats, Inputs, Path, Quantised, Store};
use crate::dtype::DType;
use crate::op::{Case, Op, Row, Size};
use crate::random::{Random, fresh_seed};
use crate::reference::{RefTensor, encode};

/// A case's operands as stored, and what its outputs should be.
struct Prepared {
    words: Vec<Vec<u32>>,
    dtype: DType,
    op: Op,
    expected: [Vec<f64>; 2],
}

fn prepare(case: &Case, seed: u64) -> Prepared {
    let mut random = Random::new(seed);
    let mut tensors: Vec<RefTensor> = case
        .operands
        .iter()
        .enumerate()
        .map(|(i, o)| RefTensor::new(o.spec.clone(), case.values(i, &mut random)))
        .collect();
    let words: Vec<Vec<u32>> = tensors.iter().map(|t| encode(&t.spec, &t.data)).collect();
    // The reference sees what is stored.
    for (tensor, words) in tensors.iter_mut().zip(&words) {
        tensor.data = crate::reference::decode(&tensor.spec, words);
    }
    case.op.reference(&mut tensors);
    let n = tensors.len();
    let expected = [tensors[n - 2].data.clone(), tensors[n - 1].data.clone()];
    Prepared { words, dtype: case.operands[2].spec.dtype, op: case.op, expected }
}

impl Prepared {
    fn is_prompt(&self) -> bool {
        match self.op {
            Op::PagedAttention(op) => op.prompt != 0,
            Op::QuantizedAttention(op) => op.prompt != 0,
            _ => false,
        }
    }

    /// `tiles`: a prompt by tiles of queries, else token by token.
    fn run(&self, path: Path, tiles: bool) -> [Vec<f32>; 2] {
        let (mut o, mut lse) = (vec![f32::NAN; self.expected[0].len()], vec![f32::NAN; self.expected[1].len()]);
        let floats = |i: usize| bytemuck::cast_slice::<u32, f32>(&self.words[i]);
        let queries = [floats(0), floats(1)];
        let run = if tiles && self.is_prompt() { prompt } else { decode };
        match self.op {
            Op::PagedAttention(op) => {
                let floats = match self.dtype {
                    DType::F16 => Floats::Half(bytemuck::cast_slice(&self.words[2])),
                    _ => Floats::Single(floats(2)),
                };
                let (store, rows, table) = (Store { floats, quantised: None }, &self.words[3][..], &self.words[4][..]);
                run(path, &Inputs { shape: &op.shape(), queries, rows, table, store }, &mut o, &mut lse);
            }
            Op::QuantizedAttention(op) => {
                let quantised = Some(Quantised { words: &self.words[2], block: op.block(), ring: op.ring as usize });
                let store = Store { floats: Floats::Single(floats(3)), quantised };
                let (rows, table) = (&self.words[4][..], &self.words[5][..]);
                run(path, &Inputs { shape: &op.shape(), queries, rows, table, store }, &mut o, &mut lse);
            }
            _ => panic!("a row over a cache"),
        }
        [o, lse]
    }
}

fn cases(size: Size) -> Vec<Case> {
    let over_cache = |row: &&Row| ["paged_attention", "quantized_attention"].contains(&row.name);
    Row::all().iter().filter(over_cache).flat_map(|row| (row.cases)(size)).collect()
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    let most = expected.iter().filter(|e| **e > -1e29).fold(1e-3, |m: f64, e| m.max(e.abs()));
    let far = |(f, e): (&f32, &f64)| if f.is_nan() { f64::INFINITY } else { (f64::from(*f) - e).abs() };
    found.iter().zip(expected).map(far).fold(0.0, f64::max) / most
}

#[test]
fn every_instruction_set_gives_the_reference() {
    let seed = fresh_seed();
    for case in cases(Size::Small).into_iter().chain(cases(Size::Ragged)) {
        let prepared = prepare(&case, seed);
        for (path, tiles) in Path::all().into_iter().flat_map(|path| [(path, false), (path, true)]) {
            let found = prepared.run(path, tiles);
            for (name, found, expected) in
                [("o", &found[0], &prepared.expected[0]), ("lse", &found[1], &prepared.expected[1])]
            {
                let worst = worst(found, expected);
                assert!(worst <= 1e-5, "{name} of `{}` by {path:?}, tiles {tiles}, seed {seed}: {worst:e}", case.label);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in cases(Size::Ragged) {
        let prepared = prepare(&case, 7);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| prepared.run(Path::best(), true))
        };
        let one = run(1);
        for threads in [2, 3, 16] {
            assert!(run(threads) == one, "`{}` on {threads} threads", case.label);
        }
    }
}
