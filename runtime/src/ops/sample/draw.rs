//! How one row is drawn: the CPU kernel and the definition in f64 below it.

use crate::cpu::math;
use std::borrow::Cow;

/// Scores never fall below this, however small the temperature.
const LEAST: f32 = -1e30;

/// Order-preserving image of a logit in u32: NaN goes to -∞ and -0 to 0.
pub(super) fn key(x: f32) -> u32 {
    let x = if x.is_nan() { f32::NEG_INFINITY } else { x + 0.0 };
    let word = x.to_bits();
    if word >> 31 == 1 { !word } else { word | 1 << 31 }
}

/// Uniform in (0, 1) from 32 random bits; small values keep all their bits.
pub(super) fn uniform(bits: u32) -> f32 {
    const SCALE: f32 = 1.0 / 4_294_967_296.0;
    bits as f32 * SCALE + 0.5 * SCALE
}

/// Gumbel noise `-ln E` with `E = -ln(1 - w)`. Small `E`, the ones that win, come from a series.
pub(super) fn gumbel(w: f32) -> f32 {
    let e = if w < 0.03125 {
        w + w * w * (0.5 + w * (1.0 / 3.0 + w * (0.25 + w * 0.2)))
    } else {
        -(1.0 - w.min(1.0 - f32::EPSILON / 2.0)).ln()
    };
    -e.ln()
}

/// The settings of a row, with what is off as `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Control {
    pub(super) temperature: Option<f32>,
    pub(super) top_k: Option<usize>,
    pub(super) top_p: Option<f32>,
    pub(super) min_p: Option<f32>,
    pub(super) penalty: Option<f32>,
}

impl Control {
    pub(super) fn new(control: &[f32], v: usize) -> Control {
        let [temperature, top_k, top_p, min_p, penalty] = [0, 1, 2, 3, 4].map(|i| control[i]);
        Control {
            temperature: (temperature > 0.0).then_some(temperature),
            top_k: (top_k >= 1.0 && top_k < v as f32).then_some(top_k as usize),
            top_p: (top_p > 0.0 && top_p < 1.0).then_some(top_p),
            min_p: (min_p > 0.0).then_some(min_p),
            penalty: (penalty > 0.0 && penalty != 1.0).then_some(penalty),
        }
    }
}

/// A finite logit of a recent id; the result is finite.
pub(super) fn penalised(x: f32, penalty: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    (if x > 0.0 { x / penalty } else { x * penalty }).clamp(-f32::MAX, f32::MAX)
}

/// A weight `e^score`, `score ≤ 0`, as a whole number.
pub(super) fn weight(score: f32) -> u32 {
    (math::exp(score).min(1.0) * 2_147_483_648.0) as u32
}

/// The largest key such that the weights of the keys from it on reach `p` of all; 0 if none does.
pub(super) fn nucleus(weighted: &[(u32, u32)], p: f32) -> u32 {
    // Weights by the upper bits of the key; then only those of one bin have to be sorted.
    const BITS: u32 = 12;
    let mut bins = vec![0u64; 1 << BITS];
    for &(key, weight) in weighted {
        bins[(key >> (32 - BITS)) as usize] += u64::from(weight);
    }
    let enough = p * bins.iter().sum::<u64>() as f32;
    let mut sum = 0;
    for (bin, of_bin) in bins.iter().enumerate().rev() {
        if ((sum + of_bin) as f32) < enough {
            sum += of_bin;
            continue;
        }
        let mut inside: Vec<(u32, u32)> =
            weighted.iter().copied().filter(|(key, _)| (key >> (32 - BITS)) as usize == bin).collect();
        inside.sort_unstable_by_key(|&(key, _)| std::cmp::Reverse(key));
        for (key, weight) in inside {
            sum += u64::from(weight);
            if sum as f32 >= enough {
                return key;
            }
        }
    }
    0
}

/// The row with its penalties.
pub(super) fn penalise<'a>(row: &'a [f32], recent: &[u32], control: Control) -> Cow<'a, [f32]> {
    let mut changed = Cow::Borrowed(row);
    let Some(penalty) = control.penalty else { return changed };
    for &id in recent {
        // From the row as it was, so that an id counts once.
        if let Some(&x) = row.get(id as usize) {
            changed.to_mut()[id as usize] = penalised(x, penalty);
        }
    }
    changed
}

/// Index and value of the largest logit.
pub(super) fn largest(row: &[f32]) -> (u32, f32) {
    let mut best = (0, key(row[0]));
    for (j, &x) in row.iter().enumerate() {
        if key(x) > best.1 {
            best = (j, key(x));
        }
    }
    (best.0 as u32, row[best.0])
}

fn scaled(x: f32, max: f32, temperature: f32) -> f32 {
    ((x - max) / temperature).max(LEAST)
}

/// The least key that top-k and top-p leave.
pub(super) fn least_key(row: &[f32], max: f32, temperature: f32, control: Control) -> u32 {
    let mut least = key(f32::NEG_INFINITY) + 1;
    if let Some(k) = control.top_k {
        let mut keys: Vec<u32> = row.iter().map(|&x| key(x)).collect();
        least = least.max(*keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1);
    }
    if let Some(p) = control.top_p {
        let kept = row.iter().filter(|&&x| key(x) >= least);
        let weighted: Vec<_> = kept.map(|&x| (key(x), weight(scaled(x, max, temperature)))).collect();
        least = least.max(nucleus(&weighted, p));
    }
    least
}

pub(super) fn draw(row: &[f32], recent: &[u32], control: Control, noise: impl Fn(u32) -> u32) -> u32 {
    let row = penalise(row, recent, control);
    let (greedy, max) = largest(&row);
    let Some(temperature) = control.temperature.filter(|_| max.is_finite()) else { return greedy };
    let least = least_key(&row, max, temperature, control);
    let mut best = (greedy, f32::NEG_INFINITY);
    for (j, &x) in row.iter().enumerate() {
        if key(x) < least {
            continue;
        }
        let score = scaled(x, max, temperature);
        if control.min_p.is_some_and(|p| math::exp(score) < p && x < max) {
            continue;
        }
        let w = uniform(noise(j as u32));
        // Noise is below -ln w. Where that cannot reach the best so far, spare the logarithms.
        if w > 1.001 * math::exp(score - best.1) {
            continue;
        }
        let score = score + gumbel(w);
        if score > best.1 {
            best = (j as u32, score);
        }
    }
    best.0
}

/// The definition, of one row.
pub(super) fn reference(row: &[f64], recent: &[f64], control: &[f64], noise: impl Fn(u32) -> u32) -> usize {
    let [temperature, top_k, top_p, min_p, penalty] = [0, 1, 2, 3, 4].map(|i| control[i]);
    let mut row: Vec<f64> = row.iter().map(|&x| if x.is_nan() { f64::NEG_INFINITY } else { x }).collect();
    for (j, x) in row.iter_mut().enumerate() {
        if penalty > 0.0 && x.is_finite() && recent.contains(&(j as f64)) {
            *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
        }
    }
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let first = |wanted: f64, of: &[f64]| of.iter().position(|&x| x == wanted).unwrap_or(0);
    if temperature == 0.0 || max.is_infinite() {
        return first(max, &row);
    }
    let weight = |x: f64| ((x - max) / temperature).exp();
    let mut sorted = row.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    if top_k >= 1.0 && top_k < row.len() as f64 {
        let least = sorted[top_k as usize - 1];
        sorted.retain(|&x| x >= least);
    }
    let mut least = *sorted.last().unwrap_or(&max);
    if top_p > 0.0 && top_p < 1.0 {
        let enough = top_p * sorted.iter().map(|&x| weight(x)).sum::<f64>();
        let mut sum = 0.0;
        let reached = |&&x: &&f64| {
            sum += weight(x);
            sum >= enough
        };
        least = *sorted.iter().find(reached).unwrap_or(&least);
    }
    let score = |(j, &x): (usize, &f64)| {
        let w = (f64::from(noise(j as u32)) + 0.5) / 4_294_967_296.0;
        let kept = x >= least && (weight(x) >= min_p || x == max);
        if kept { x / temperature - (-(-w).ln_1p()).ln() } else { f64::NEG_INFINITY }
    };
    let scores: Vec<f64> = row.iter().enumerate().map(score).collect();
    first(scores.iter().copied().fold(f64::NEG_INFINITY, f64::max), &scores)
}
