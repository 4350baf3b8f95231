//! Speed of decode attention on the CPU over caches of each format, against what the machine can read:
//! `RAYON_NUM_THREADS=2 cargo run --release -p tritter-runtime --example attention_speed`.
//!
//! One layer of 32 query heads over 8 key-value heads of 128, one token. Pages lie scattered over a pool that is
//! larger than any cache, and calls rotate over sequences. GB/s counts the bytes of the keys and values that are
//! seen and stands beside the share of the read bandwidth, measured first and last; then the time per key, which
//! is the slope, and how many times faster than f16 at the same length. The last lines are a window at two positions,
//! a chunk of a prompt, and what quantising adds to a step.

use half::f16;
use std::time::Instant;
use tritter_runtime::cpu::parallel;
use tritter_runtime::cpu::peaks::{Peaks, peaks};
use tritter_runtime::dtype::{DType, Spec};
use tritter_runtime::op::{Args, Op};
use tritter_runtime::ops::cache_quantize::CacheQuantize;
use tritter_runtime::ops::paged::codes::Block;
use tritter_runtime::ops::paged_attention::PagedAttention;
use tritter_runtime::ops::quantized_attention::QuantizedAttention;
use tritter_runtime::random::Random;

const H: u32 = 32;
const G: u32 = 8;
const D: u32 = 128;
const PAGE: u32 = 64;
/// Bytes of a pool at least.
const POOL: usize = 1 << 29;
const NO_WINDOW: u32 = u32::MAX;
/// Seconds of a measurement.
const SECONDS: f64 = 0.5;

/// How keys are stored.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Half,
    Codes(u32),
}

impl Format {
    fn name(self) -> String {
        match self {
            Format::Half => "f16".into(),
            Format::Codes(bits) => format!("int{bits}"),
        }
    }

    fn page_bytes(self) -> usize {
        match self {
            Format::Half => (PAGE * 2 * G * D * 2) as usize,
            Format::Codes(bits) => G as usize * block(bits).words() * 4,
        }
    }
}

fn block(bits: u32) -> Block {
    Block { page: PAGE as usize, d: D as usize, bits: bits as usize, precise: false }
}

fn main() {
    let limits = peaks(1.0);
    show(&limits);
    let mut halves = Vec::new();
    let mut steps = Vec::new();
    for format in [Format::Half, Format::Codes(8), Format::Codes(4), Format::Codes(2)] {
        let pool = Pool::new(format, 128 * 1024);
        for keys in [8, 32, 128] {
            let seconds = pool.step(keys * 1024, NO_WINDOW, keys * 1024, 1);
            if format == Format::Half {
                halves.push((keys, seconds));
            }
            steps.push((format, keys, seconds));
            let half = halves.iter().find(|(k, _)| *k == keys).map_or(f64::NAN, |(_, s)| *s);
            let bytes = (keys * 1024 / PAGE) as f64 * format.page_bytes() as f64 * 1e-9 / seconds;
            println!(
                "{:>5} {keys:4}K keys: {:9.1} us  {bytes:6.2} GB/s ({:3.0} %)  {:6.2} ns a key  {:5.2} x f16",
                format.name(),
                1e6 * seconds,
                100.0 * bytes / limits.read_gb_s,
                1e6 * seconds / (1.024 * f64::from(keys)),
                half / seconds,
            );
        }
        for last in [8 * 1024, 1024 * 1024] {
            let seconds = pool.step(last, 4096, 4096 + PAGE, 1);
            println!("{:>5} window of 4096 at {:4}K: {:9.1} us", format.name(), last / 1024, 1e6 * seconds);
        }
        let seconds = pool.step(32 * 1024, NO_WINDOW, 32 * 1024, 256);
        let operations = 4.0 * 256.0 * f64::from(H * D) * (32.0 * 1024.0 - 128.0);
        println!(
            "{:>5} prompt of 256 at 32K: {:9.1} ms  {:6.1} Gop/s",
            format.name(),
            1e3 * seconds,
            operations * 1e-9 / seconds
        );
    }
    for bits in [8, 4, 2] {
        let seconds = quantize(bits) / f64::from(PAGE);
        let share =
            |keys| steps.iter().find(|s| s.0 == Format::Codes(bits) && s.1 == keys).map_or(f64::NAN, |s| seconds / s.2);
        println!(
            " int{bits} quantising: {:6.2} us a step, {:.2} % of attention at 8K, {:.2} % at 32K",
            1e6 * seconds,
            100.0 * share(8),
            100.0 * share(32)
        );
    }
    show(&peaks(1.0));
}

fn show(limits: &Peaks) {
    println!("{} threads: {:.1} GB/s read", limits.threads, limits.read_gb_s);
}

/// Pages with values, and the rest that a call needs.
struct Pool {
    format: Format,
    pages: u32,
    words: Vec<u32>,
    ring: Vec<u32>,
    order: Vec<u32>,
    random: Vec<u32>,
}

impl Pool {
    fn new(format: Format, keys: u32) -> Self {
        let pages = (POOL / format.page_bytes()).max((keys / PAGE) as usize);
        let mut random = Random::new(1);
        let mut words = vec![0u32; pages * format.page_bytes() / 4];
        match format {
            // Two values between 1 and 2 in magnitude.
            Format::Half => words.iter_mut().for_each(|w| *w = random.bits() as u32 & 0x83ff_83ff | 0x3c00_3c00),
            Format::Codes(bits) => {
                words.iter_mut().for_each(|w| *w = random.bits() as u32);
                let parameters =
                    u32::from(f16::from_f32(0.5).to_bits()) | u32::from(f16::from_f32(-1.0).to_bits()) << 16;
                let [_, keys, values, last, end] = block(bits).sections();
                for block in words.chunks_exact_mut(end) {
                    block[keys..values].fill(parameters);
                    block[last..].fill(parameters);
                }
            }
        }
        let mut order: Vec<u32> = (0..pages as u32).collect();
        random.shuffle(&mut order);
        let values = (0..256 * H * D).map(|_| (0.05 * random.normal() as f32).to_bits()).collect();
        Pool { format, pages: pages as u32, words, ring: vec![0; (512 * 2 * G * D) as usize], order, random: values }
    }

    /// Seconds of attention of `m` tokens at positions up to `last`, of which each sees `seen` keys at most.
    fn step(&self, last: u32, window: u32, seen: u32, m: u32) -> f64 {
        let (e, each) = (last.div_ceil(PAGE), seen.div_ceil(PAGE));
        // So many tables that no page comes again before all others did.
        let s = (self.pages / each).clamp(1, 64);
        let mut table = vec![u32::MAX; (s * e) as usize];
        for (row, pages) in table.chunks_exact_mut(e as usize).zip(self.order.chunks_exact(each as usize)) {
            let first = row.len() - each.min(e) as usize;
            row[first..].copy_from_slice(&pages[..each.min(e) as usize]);
        }
        let prompt = u32::from(m > 1);
        let scale = (D as f32).powf(-0.5);
        let (op, cache) = match self.format {
            Format::Half => {
                let (p, page) = (self.pages, PAGE);
                let op =
                    PagedAttention { m, h: H, d: D, g: G, scale, window, sinks: 0, page, p, s, e, parts: 1, prompt };
                (Op::from(op), vec![&self.words[..]])
            }
            Format::Codes(bits) => {
                let op = QuantizedAttention {
                    m,
                    h: H,
                    d: D,
                    g: G,
                    scale,
                    window,
                    sinks: 0,
                    page: PAGE,
                    ring: 512,
                    p: self.pages,
                    s,
                    e,
                    bits,
                    precise: 0,
                    parts: 1,
                    prompt,
                };
                (Op::from(op), vec![&self.words[..], &self.ring[..]])
            }
        };
        let mut specs = op.specs();
        if self.format == Format::Half {
            specs[2].dtype = DType::F16;
        }
        let query = &self.random[..(m * H * D) as usize];
        let mut o = vec![0u32; query.len()];
        let mut lse = vec![0u32; (m * H) as usize];
        let mut run = |sequence: u32| {
            let rows: Vec<u32> = (0..m).flat_map(|i| [sequence, 0, last - m + i, last / PAGE * PAGE]).collect();
            call(&op, &specs, query, &cache, &rows, &table, &mut o, &mut lse);
        };
        parallel::inside(|| {
            run(0);
            let (start, mut calls) = (Instant::now(), 0);
            while calls < 2 || start.elapsed().as_secs_f64() < SECONDS {
                run(calls % s);
                calls += 1;
            }
            start.elapsed().as_secs_f64() / f64::from(calls)
        })
    }
}

#[expect(clippy::too_many_arguments, reason = "operands of the row")]
fn call(
    op: &Op,
    specs: &[Spec],
    query: &[u32],
    cache: &[&[u32]],
    rows: &[u32],
    table: &[u32],
    o: &mut [u32],
    lse: &mut [u32],
) {
    let mut reads: Vec<&[u32]> = vec![query, query];
    reads.extend(cache);
    reads.extend([rows, table, &[], &[]]);
    let mut writes: Vec<&mut [u32]> = (0..reads.len() - 2).map(|_| &mut [][..]).collect();
    writes.extend([o, lse]);
    op.cpu(Args::new(specs, reads, writes));
}

/// Seconds of quantising one page of a layer.
fn quantize(bits: u32) -> f64 {
    let (d, page, p) = (D, PAGE, 1024);
    let op = Op::from(CacheQuantize { n: 1, g: G, d, page, t: page, p, bits, precise: 0 });
    let specs = op.specs();
    let mut random = Random::new(2);
    let ring: Vec<u32> = (0..specs[0].bytes() / 4).map(|_| (random.normal() as f32).to_bits()).collect();
    let mut codes = vec![0u32; (specs[2].bytes() / 4) as usize];
    parallel::inside(|| {
        let (start, mut calls) = (Instant::now(), 0);
        while start.elapsed().as_secs_f64() < SECONDS {
            let groups = [0, calls % p];
            op.cpu(Args::new(&specs, vec![&ring, &groups, &[]], vec![&mut [], &mut [], &mut codes]));
            calls += 1;
        }
        start.elapsed().as_secs_f64() / f64::from(calls)
    })
}
