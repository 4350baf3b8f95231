//! Speed of the ternary product on the CPU against what the machine can do:
//! `RAYON_NUM_THREADS=1 cargo run --release -p tritter-runtime --example ternary_speed`.
//!
//! Weights are the two matrices of a 2B model's feed-forward layer, several copies of each so that they come
//! from memory and not from a cache. GB/s counts the packed weights and stands beside the share of the read
//! bandwidth, Gop/s beside the share of the int8 peak, both measured first and last.

use std::time::Instant;
use tritter_runtime::cpu::parallel;
use tritter_runtime::cpu::peaks::{Peaks, peaks};
use tritter_runtime::dtype::{DType, Spec};
use tritter_runtime::op::{Args, Op};
use tritter_runtime::ops::ternary_matmul::TernaryMatmul;
use tritter_runtime::random::Random;

fn main() {
    let limits = peaks(1.0);
    show(&limits);
    for dtype in [DType::T2x16, DType::T1x16, DType::T2] {
        for (n, k) in [(6912, 2560), (2560, 6912)] {
            for m in [1, 4, 16, 256] {
                parallel::inside(|| measure(dtype, m, n, k, &limits));
            }
        }
    }
    show(&peaks(1.0));
}

fn show(limits: &Peaks) {
    let Peaks { threads, read_gb_s, dot_tops, dot_name } = limits;
    println!("{threads} threads: {read_gb_s:.1} GB/s read, {dot_tops:.2} Top/s by {dot_name}");
}

fn measure(dtype: DType, m: u32, n: u32, k: u32, limits: &Peaks) {
    let op = Op::from(TernaryMatmul::whole(m, n, k));
    let mut specs = op.specs();
    specs[0].dtype = dtype;
    let mut random = Random::new(1);
    // Codes 0..2 of two random bits each, the pair of both set becoming the pair of none; any byte is five trits.
    let mut codes = |words: u64| -> Vec<u32> {
        let word = |bits: u32| bits & !((bits & (bits >> 1) & 0x5555_5555) * 3);
        (0..words).map(|_| word(random.bits() as u32)).collect()
    };
    let copies = if m < 16 { 64 } else { 2 };
    let weights: Vec<Vec<u32>> = (0..copies).map(|_| codes(specs[0].bytes() / 4)).collect();
    let x: Vec<u32> = (0..specs[2].bytes() / 4).map(|_| random.bits() as u32).collect();
    let scales = vec![1f32.to_bits(); m as usize];
    let mut y = vec![0u32; m as usize * n as usize];
    let mut run = |w: &[u32]| call(&op, &specs, w, &x, &scales, &mut y);
    run(&weights[0]);
    let (start, mut calls) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < 0.3 {
        weights.iter().for_each(|w| run(w));
        calls += copies;
    }
    let seconds = start.elapsed().as_secs_f64() / f64::from(calls);
    let (bytes, operations) = (specs[0].bytes() as f64 * 1e-9 / seconds, op.operations() as f64 * 1e-9 / seconds);
    println!(
        "{dtype:>6} {m:4} x {n} x {k}: {:9.1} us {operations:7.1} Gop/s ({:3.0} %) {bytes:6.2} GB/s ({:3.0} %)",
        1e6 * seconds,
        0.1 * operations / limits.dot_tops,
        100.0 * bytes / limits.read_gb_s,
    );
}

fn call(op: &Op, specs: &[Spec], w: &[u32], x: &[u32], scales: &[u32], y: &mut [u32]) {
    let writes = vec![&mut [][..], &mut [], &mut [], &mut [], y];
    op.cpu(Args::new(specs, vec![w, &scales[..1], x, scales, &[]], writes));
}
