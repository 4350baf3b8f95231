//! What the harness over all rows cannot see: the distribution of draws.

use super::draw::{Control, draw, gumbel, key, largest, least_key, nucleus, penalise, uniform, weight};
use super::*;
use crate::check::values;
use crate::op::{Op, Size};

const PLAIN: Control = Control { temperature: Some(1.0), top_k: None, top_p: None, min_p: None, penalty: None };

/// Counts of `n` draws with seeds `1..=n`.
fn counts(logits: &[f32], control: Control, n: u32) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for seed in 1..=n {
        counts[draw(logits, &[], control, |j| bits(seed, 3, j)) as usize] += 1.0;
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
        let found = counts(&logits, Control { temperature: Some(temperature), ..PLAIN }, 40_000);
        let chi = chi_square(&found, &logits, temperature, &[0, 1, 2, 3, 4, 5, 6, 7]);
        // 99.9 % quantile with 7 degrees of freedom; a constant or biased hash gives thousands.
        assert!(chi < 24.3, "{chi} at {temperature}: {found:?}");
    }
}

#[test]
fn steps_draw_as_seeds_do() {
    let logits = [0.0f32; 16];
    for word in 0..2 {
        let mut found = vec![0.0; 16];
        for i in 0..40_000 {
            let mut at = [5, 6];
            at[word] = i;
            found[draw(&logits, &[], PLAIN, |j| bits(at[0], at[1], j)) as usize] += 1.0;
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
    let token = |step| draw(&logits, &[], PLAIN, |j| bits(9, step, j)) as usize;
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
    for (top_k, kept) in [(1, vec![1]), (2, vec![1, 4]), (3, vec![1, 3, 4]), (6, vec![0, 1, 2, 3, 4, 6])] {
        let found = counts(&logits, Control { top_k: Some(top_k), ..PLAIN }, 20_000);
        let drawn: Vec<usize> = (0..8).filter(|&j| found[j] > 0.0).collect();
        assert_eq!(drawn, kept, "top {top_k}");
        assert!(chi_square(&found, &logits, 1.0, &kept) < 20.6, "top {top_k}: {found:?}");
    }
    let tied = [1.0, 2.0, 1.0, 0.0, 1.0];
    let found = counts(&tied, Control { top_k: Some(2), ..PLAIN }, 5_000);
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

#[test]
fn the_nucleus_and_the_likely_are_kept_and_nothing_else() {
    let logits = [0.1f32, 0.2, 0.3, 0.4].map(|p| p.ln() + 3.0);
    let with = |top_p, min_p, top_k| Control { top_p, min_p, top_k, ..PLAIN };
    for (control, kept) in [
        (with(Some(0.6), None, None), vec![2, 3]),
        (with(Some(0.95), None, None), vec![0, 1, 2, 3]),
        (with(Some(0.01), None, None), vec![3]),
        (with(None, Some(0.6), None), vec![2, 3]),
        (with(None, Some(1.0), None), vec![3]),
        // 0.4 of 0.7 reaches 0.5.
        (with(Some(0.5), None, Some(2)), vec![3]),
        (with(Some(0.85), Some(0.6), Some(3)), vec![2, 3]),
    ] {
        let found = counts(&logits, control, 20_000);
        let drawn: Vec<usize> = (0..4).filter(|&j| found[j] > 0.0).collect();
        assert_eq!(drawn, kept, "{control:?}");
        assert!(chi_square(&found, &logits, 1.0, &kept) < 20.6, "{control:?}: {found:?}");
    }
}

#[test]
fn a_nucleus_does_not_depend_on_order_and_is_the_least_that_suffices() {
    let mut random = crate::random::Random::new(77);
    let mut weighted: Vec<(u32, u32)> = (0..3000)
        .map(|_| {
            let x = -(random.uniform() * 30.0) as f32;
            (key(x), weight(x))
        })
        .collect();
    for p in [1e-6f32, 0.1, 0.5, 0.9, 0.999, 1.0 - f32::EPSILON] {
        let least = nucleus(&weighted, p);
        weighted.reverse();
        weighted.rotate_left(1234);
        assert_eq!(nucleus(&weighted, p), least, "{p}");
        let sum = |from: &dyn Fn(u32) -> bool| {
            weighted.iter().filter(|(key, _)| from(*key)).map(|&(_, w)| u64::from(w)).sum::<u64>() as f32
        };
        let enough = p * sum(&|_| true);
        assert!(sum(&|key| key >= least) >= enough && sum(&|key| key > least) < enough, "{p}");
    }
}

#[test]
fn rows_draw_the_same_alone_and_among_others() {
    let cases = cases::cases(Size::Ragged);
    let mixed = cases.iter().find(|c| c.label.contains("rows of their own")).unwrap();
    let t = values(mixed, 1);
    let v = 67;
    for i in 0..5 {
        let mut x: Vec<RefTensor> = (mixed.specs().into_iter().zip(&t))
            .map(|(mut spec, values)| {
                let width = values.len() / 5;
                spec.shape[0] = 1;
                RefTensor::new(spec, values[i * width..(i + 1) * width].to_vec())
            })
            .collect();
        Sample { m: 1, v, r: 5 }.reference(&mut x);
        let mut all: Vec<RefTensor> =
            mixed.specs().into_iter().zip(&t).map(|(spec, values)| RefTensor::new(spec, values.clone())).collect();
        Sample { m: 5, v, r: 5 }.reference(&mut all);
        assert_eq!(x[4].data[0], all[4].data[i], "row {i}");
    }
}

/// Devices differ in the last places of exponentials, so no case may hang on them.
#[test]
fn cases_stay_away_from_the_borders_of_the_nucleus() {
    for case in [Size::Small, Size::Ragged].into_iter().flat_map(cases::cases) {
        let t = values(&case, 1);
        let Op::Sample(op) = case.op else { continue };
        let (v, r) = (op.v as usize, op.r as usize);
        for i in 0..op.m as usize {
            let floats = |t: &[f64]| t.iter().map(|&x| x as f32).collect::<Vec<f32>>();
            let control = Control::new(&floats(&t[1][i * CONTROL..(i + 1) * CONTROL]), v);
            let recent: Vec<u32> = t[3][i * r..(i + 1) * r].iter().map(|&x| x as u32).collect();
            let row = floats(&t[0][i * v..(i + 1) * v]);
            let row = penalise(&row, &recent, control);
            let (_, max) = largest(&row);
            let Some(temperature) = control.temperature.filter(|_| max.is_finite()) else { continue };
            let likely = |by: f32| {
                let least = control.min_p.unwrap_or(0.0) * by;
                row.iter().filter(|&&x| ((x - max) / temperature).exp() >= least).count()
            };
            let nucleus = |by: f32| {
                let control = Control { top_p: control.top_p.map(|p| p * by), ..control };
                least_key(&row, max, temperature, control)
            };
            let (less, more) = (1.0 - 1e-6, 1.0 + 1e-6);
            assert_eq!(nucleus(less), nucleus(more), "`{}`, row {i}", case.label);
            assert!(control.min_p == Some(1.0) || likely(less) == likely(more), "`{}`, row {i}", case.label);
        }
    }
}
