//! Loops that do nothing but load, or nothing but multiply.

use super::Loop;
use std::arch::x86_64::*;
use std::hint::black_box;

/// Accumulators: enough that none waits for its own last sum.
const CHAINS: usize = 12;

/// Sum of a part by the widest loads there are.
pub(super) fn sum(part: &[u64]) -> Option<u64> {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature is there.
        return Some(unsafe { sum512(part) });
    }
    // SAFETY: the feature is there.
    is_x86_feature_detected!("avx2").then(|| unsafe { sum256(part) })
}

#[target_feature(enable = "avx512f")]
fn sum512(part: &[u64]) -> u64 {
    let (whole, rest) = part.as_chunks::<32>();
    let mut acc = [_mm512_setzero_si512(); 4];
    for block in whole {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the block has 32 words.
            *acc = _mm512_add_epi64(*acc, unsafe { _mm512_loadu_si512(block.as_ptr().add(8 * i).cast()) });
        }
    }
    let all = _mm512_add_epi64(_mm512_add_epi64(acc[0], acc[1]), _mm512_add_epi64(acc[2], acc[3]));
    rest.iter().fold(_mm512_reduce_add_epi64(all) as u64, |a, &b| a.wrapping_add(b))
}

#[target_feature(enable = "avx2")]
fn sum256(part: &[u64]) -> u64 {
    let (whole, rest) = part.as_chunks::<16>();
    let mut acc = [_mm256_setzero_si256(); 4];
    for block in whole {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the block has 16 words.
            *acc = _mm256_add_epi64(*acc, unsafe { _mm256_loadu_si256(block.as_ptr().add(4 * i).cast()) });
        }
    }
    let mut lanes = [0u64; 4];
    let all = _mm256_add_epi64(_mm256_add_epi64(acc[0], acc[1]), _mm256_add_epi64(acc[2], acc[3]));
    // SAFETY: the array has the vector's 32 bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), all) };
    rest.iter().chain(&lanes).fold(0, |a, &b| a.wrapping_add(b))
}

/// The best int8 instruction: a loop of so many rounds that gives the operations it did, and its name.
pub(super) fn dot() -> Option<Loop> {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the features are there.
        return Some((|rounds| unsafe { vnni(rounds) }, "vpdpbusd, 64 bytes"));
    }
    // SAFETY: the feature is there.
    is_x86_feature_detected!("avx2").then_some((|rounds| unsafe { maddubs(rounds) }, "vpmaddubsw, 32 bytes"))
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni(rounds: usize) -> u64 {
    let (a, b) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(3)));
    let mut acc = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = _mm512_dpbusd_epi32(*acc, a, b);
        }
    }
    black_box(acc);
    (rounds * CHAINS * 128) as u64
}

#[target_feature(enable = "avx2")]
fn maddubs(rounds: usize) -> u64 {
    let (a, b) = (black_box(_mm256_set1_epi8(1)), black_box(_mm256_set1_epi8(3)));
    let mut acc = [_mm256_setzero_si256(); CHAINS];
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(a, black_box(b)));
        }
    }
    black_box(acc);
    (rounds * CHAINS * 64) as u64
}
