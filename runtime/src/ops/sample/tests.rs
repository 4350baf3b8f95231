//! What the harness over all rows cannot see: the distribution of draws.

use super::*;

/// Counts of `n` draws with seeds `1..=n`.
fn counts(logits: &[f32], temperature: f32, top_k: f32, n: u32) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for seed in 1..=n {
        counts[draw(logits, temperature, top_k, |j| bits(seed, 3, 1, j)) as usize] += 1.0;
    }
    counts
}

/// `Σ (found - expected)² / expected` against the softmax over the kept indices.
fn chi_square(found: &[f64], logits: &[f32], temperature: f32, kept: &[usize]) -> f64 {
    let n: f64 = found.iter().sum();
    let weight = |j: &usize| f64::from(logits[*j] / temperature).exp();
    let total: f64 = kept.iter().map(weight).sum();
    let term = |j: &usize| {
        let expected = n * weight(j) / total;
        (found[*j] - expected).powi(2) / expected
    };
    kept.iter().map(term).sum()
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, -1.0, 0.5, 2.0, -0.5, 1.5, 0.25];
    for temperature in [0.7, 1.0, 2.0] {
        let found = counts(&logits, temperature, 0.0, 40_000);
        let chi = chi_square(&found, &logits, temperature, &[0, 1, 2, 3, 4, 5, 6, 7]);
        // 99.9 % quantile with 7 degrees of freedom; a constant or biased hash gives thousands.
        assert!(chi < 24.3, "{chi} at {temperature}: {found:?}");
    }
}

#[test]
fn steps_and_rows_draw_as_seeds_do() {
    let logits = [0.0f32; 16];
    for word in 0..3 {
        let mut found = vec![0.0; 16];
        for i in 0..40_000 {
            let mut at = [5, 6, 7];
            at[word] = i;
            found[draw(&logits, 1.0, 0.0, |j| bits(at[0], at[1], at[2], j)) as usize] += 1.0;
        }
        let all: Vec<usize> = (0..16).collect();
        let chi = chi_square(&found, &logits, 1.0, &all);
        // 99.9 % quantile with 15 degrees of freedom.
        assert!(chi < 37.7, "{chi} over word {word}: {found:?}");
    }
}

#[test]
fn consecutive_draws_are_independent() {
    let logits = [0.0f32; 4];
    let token = |step| draw(&logits, 1.0, 0.0, |j| bits(9, step, 0, j)) as usize;
    let mut found = vec![0.0; 16];
    for step in 0..40_000 {
        found[4 * token(step) + token(step + 1)] += 1.0;
    }
    let all: Vec<usize> = (0..16).collect();
    let chi = chi_square(&found, &[0.0; 16], 1.0, &all);
    assert!(chi < 37.7, "{chi}: {found:?}");
}

#[test]
fn the_top_k_are_kept_and_nothing_else() {
    let logits = [0.1, 0.9, -3.0, 0.5, 0.7, f32::NAN, 0.3, f32::NEG_INFINITY];
    for (top_k, kept) in [(1.0, vec![1]), (2.0, vec![1, 4]), (3.0, vec![1, 3, 4]), (6.0, vec![0, 1, 2, 3, 4, 6])] {
        let found = counts(&logits, 1.0, top_k, 20_000);
        let drawn: Vec<usize> = (0..8).filter(|&j| found[j] > 0.0).collect();
        assert_eq!(drawn, kept, "top {top_k}");
        assert!(chi_square(&found, &logits, 1.0, &kept) < 20.6, "top {top_k}: {found:?}");
    }
    let tied = [1.0, 2.0, 1.0, 0.0, 1.0];
    let found = counts(&tied, 1.0, 2.0, 5_000);
    let drawn: Vec<usize> = (0..5).filter(|&j| found[j] > 0.0).collect();
    assert_eq!(drawn, [0, 1, 2, 4], "all that equal the second largest stay");
}

#[test]
fn noise_is_finite_and_ordered_at_both_ends() {
    let noise = |bits| gumbel(uniform(bits));
    assert!(noise(0) > 22.0 && noise(0) < 23.0);
    assert!(noise(u32::MAX).is_finite() && noise(u32::MAX) < -2.5);
    let edge = (0.03125 * 4_294_967_296.0) as u32;
    assert!((noise(edge - 1) - noise(edge)).abs() < 1e-5, "both formulas meet");
    // What lets a draw pass over an element: noise stays below -ln w.
    let bits = (0..32).flat_map(|shift| [1u32 << shift, u32::MAX >> shift, 0x9E37_79B9 >> shift]);
    assert!(bits.into_iter().all(|bits| noise(bits) < -uniform(bits).ln() + 1e-4));
}

#[test]
fn keys_keep_the_order_of_floats() {
    let ordered = [f32::NEG_INFINITY, -1e30, -1.0, -1e-40, 0.0, 1e-40, 1.0, 1e30, f32::INFINITY];
    assert!(ordered.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
    assert_eq!(key(-0.0), key(0.0));
    assert_eq!(key(f32::NAN), key(f32::NEG_INFINITY));
}
