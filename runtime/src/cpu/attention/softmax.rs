//! Online softmax over one run of keys after the other.

use super::simd::{Simd, Task};
use super::{Path, SCORES};
use crate::cpu::math::exp;
use crate::ops::attention::NOTHING;

/// What the scores of a query have come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    /// The largest score.
    pub(crate) most: f32,
    /// Sum of `exp(score − most)`.
    pub(crate) total: f32,
}

impl Sum {
    /// No score yet.
    pub(crate) const NOTHING: Sum = Sum { most: NOTHING, total: 0.0 };
}

/// Turns scores into weights `exp(scale · score − most)`, with `most` and `total` brought up to date; gives the factor for
/// what was summed before.
pub(crate) fn online(scores: &mut [f32], scale: f32, sum: &mut Sum) -> f32 {
    Path::best().run(Online { scores, scale, sum })
}

struct Online<'a> {
    scores: &'a mut [f32],
    scale: f32,
    sum: &'a mut Sum,
}

impl Task for Online<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f32 {
        for score in self.scores.iter_mut() {
            *score *= self.scale;
        }
        weights(self.scores, 0.0, self.sum)
    }
}

/// Turns the scores `from..to` of each head, after adding its offset, into weights `exp(score − most)`, with `most` and
/// `total` brought up to date; gives the factor for what was summed before.
pub(super) struct Softmax<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) offsets: &'a [f32],
    pub(super) sums: &'a mut [Sum],
}

impl Task for Softmax<'_> {
    type Out = [f32; 4];

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> [f32; 4] {
        let mut factors = [1.0; 4];
        for (h, (sum, &offset)) in self.sums.iter_mut().zip(self.offsets).enumerate().take(4) {
            factors[h] = weights(&mut self.scores[h * SCORES..][self.from..self.to], offset, sum);
        }
        factors
    }
}

#[inline(always)]
fn weights(scores: &mut [f32], offset: f32, sum: &mut Sum) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = scores.as_chunks_mut::<16>();
    for chunk in whole.iter() {
        for (lane, &s) in lanes.iter_mut().zip(chunk) {
            *lane = if s > *lane { s } else { *lane };
        }
    }
    for (lane, &s) in lanes.iter_mut().zip(rest.iter()) {
        *lane = if s > *lane { s } else { *lane };
    }
    let mut most = f32::NEG_INFINITY;
    for lane in lanes {
        most = most.max(lane);
    }
    let most = sum.most.max(most + offset);
    let shift = offset - most;
    let mut lanes = [0f32; 16];
    for chunk in whole {
        for (lane, s) in lanes.iter_mut().zip(chunk) {
            *s = exp(*s + shift);
            *lane += *s;
        }
    }
    for (lane, s) in lanes.iter_mut().zip(rest) {
        *s = exp(*s + shift);
        *lane += *s;
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    let factor = exp(sum.most - most);
    *sum = Sum { most, total: sum.total * factor + lanes[0] };
    factor
}
