//! What this CPU can do at most, measured: bytes read from memory and int8 products.
//!
//! A decode step reads every weight once and a prefill multiplies every weight with every token, so these two
//! figures are what its speed is held against.

#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod arm;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

use crate::bench::median;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Measured limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Peaks {
    /// Threads that were busy.
    pub threads: usize,
    /// Bytes read from memory in 10^9 a second, all threads together.
    pub read_gb_s: f64,
    /// Products and sums of int8 in 10^12 a second, all threads together; a multiply-add is two. 0 where no
    /// instruction is known.
    pub dot_tops: f64,
    /// The instruction that did them.
    pub dot_name: &'static str,
}

/// A loop of so many rounds that gives the operations it did, and the name of its instruction.
type Loop = (fn(usize) -> u64, &'static str);

/// Bytes that are read: several times the largest last cache. Fewer where the system has less than twice as many
/// left, for whoever is short of memory does not want to be ended for a measurement.
const BYTES: usize = 1 << 30;
/// The fewest.
const LEAST: usize = 16 << 20;
/// Elements that a task reads at a time.
const PART: usize = 1 << 16;

/// Measures for about `seconds` on the threads of the current rayon pool. Takes up to a gibibyte of memory meanwhile, at
/// most half of what the system has left.
pub fn peaks(seconds: f64) -> Peaks {
    let (dot_tops, dot_name) = dot(seconds / 2.0);
    Peaks { threads: rayon::current_num_threads(), read_gb_s: read(seconds / 2.0), dot_tops, dot_name }
}

/// The median of runs until the time is over, at least three.
fn median_of_runs(seconds: f64, mut run: impl FnMut() -> f64) -> f64 {
    let (start, limit) = (Instant::now(), Duration::from_secs_f64(seconds.max(0.0)));
    let mut rates = Vec::new();
    while rates.len() < 3 || start.elapsed() < limit {
        rates.push(run());
    }
    median(rates, f64::total_cmp)
}

fn read(seconds: f64) -> f64 {
    let left = super::available().and_then(|left| usize::try_from(left / 2).ok()).unwrap_or(BYTES);
    let bytes = left.clamp(LEAST, BYTES) / PART * PART;
    let data = vec![1u64; bytes / 8];
    median_of_runs(seconds, || {
        let start = Instant::now();
        let sum = data.par_chunks(PART).with_min_len(16).map(sum).reduce(|| 0, u64::wrapping_add);
        black_box(sum);
        bytes as f64 / start.elapsed().as_secs_f64() / 1e9
    })
}

fn sum(part: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(sum) = x86::sum(part) {
        return sum;
    }
    part.iter().fold(0, |a, &b| a.wrapping_add(b))
}

/// Runs the loop on every thread at once; gives 10^12 operations a second.
fn dot(seconds: f64) -> (f64, &'static str) {
    const ROUNDS: usize = 2_000_000;
    #[cfg(target_arch = "x86_64")]
    let found = x86::dot();
    #[cfg(target_arch = "aarch64")]
    let found = arm::dot();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found: Option<Loop> = None;
    let Some((work, name)) = found else { return (0.0, "none") };
    let rate = median_of_runs(seconds, || {
        let start = Instant::now();
        let done: u64 = rayon::broadcast(|_| work(ROUNDS)).into_iter().sum();
        done as f64 / start.elapsed().as_secs_f64() / 1e12
    });
    (rate, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_positive_and_named() {
        let found = peaks(0.0);
        assert!(found.read_gb_s > 0.0 && found.threads > 0);
        assert_eq!(found.dot_tops > 0.0, found.dot_name != "none");
    }
}
