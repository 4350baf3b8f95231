//! Speed of the ternary product on the CPU: `RAYON_NUM_THREADS=1 cargo run -p tritter-runtime --example ternary_speed`.
//!
//! Weights are the two matrices of a 2B model's feed-forward layer, several copies of each so that
//! they come from memory and not from a cache. GB/s counts the packed weights.

use std::time::Instant;
use tritter_runtime::dtype::Spec;
use tritter_runtime::op::{Args, Op};
use tritter_runtime::ops::ternary_matmul::TernaryMatmul;
use tritter_runtime::random::Random;

fn main() {
    for (n, k) in [(6912, 2560), (2560, 6912)] {
        for m in [1, 2, 4, 16, 128, 512] {
            measure(m, n, k);
        }
    }
}

fn measure(m: u32, n: u32, k: u32) {
    let op = Op::from(TernaryMatmul::whole(m, n, k));
    let specs = op.specs();
    let mut random = Random::new(1);
    // Codes 0..2: of two random bits each, the pair of both set becomes the pair of none.
    let mut codes = |words: u64| -> Vec<u32> {
        let word = |bits: u32| bits & !((bits & (bits >> 1) & 0x5555_5555) * 3);
        (0..words).map(|_| word(random.bits() as u32)).collect()
    };
    let copies = if m < 16 { 32 } else { 2 };
    let weights: Vec<Vec<u32>> = (0..copies).map(|_| codes(specs[0].bytes() / 4)).collect();
    let x: Vec<u32> = (0..specs[2].bytes() / 4).map(|_| random.bits() as u32).collect();
    let scales = vec![1f32.to_bits(); m as usize];
    let mut y = vec![0u32; m as usize * n as usize];
    let mut run = |w: &[u32]| call(&op, &specs, w, &x, &scales, &mut y);
    run(&weights[0]);
    let (start, mut calls) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < 0.5 {
        weights.iter().for_each(|w| run(w));
        calls += copies;
    }
    let seconds = start.elapsed().as_secs_f64() / f64::from(calls);
    let (bytes, products) = (specs[0].bytes() as f64, op.operations() as f64 / 2.0);
    println!(
        "{m:4} x {n} x {k}: {:9.1} us {:7.1} GMAC/s {:6.2} GB/s",
        1e6 * seconds,
        1e-9 * products / seconds,
        1e-9 * bytes / seconds
    );
}

fn call(op: &Op, specs: &[Spec], w: &[u32], x: &[u32], scales: &[u32], y: &mut [u32]) {
    let writes = vec![&mut [][..], &mut [], &mut [], &mut [], y];
    op.cpu(Args::new(specs, vec![w, &scales[..1], x, scales, &[]], writes));
}
