//! Scores and weighted sums over a page of keys and values that are stored as codes.
//!
//! A vector of words holds `32 / bits` codes in every lane. They come out by shifts, lowest bits first, so a vector of
//! codes has every `32 / bits`-th channel, and queries and sums lie in that order: `[vector][shift][head][lane]`. Scales
//! of keys are those of a channel for the whole page and go into the query; scales of values are those of a token and
//! go into its weight. Codes themselves are only widened.
//!
//! A row of codes that is half or a quarter of a vector shares it with the next ones.

use super::layout::Layout;
use super::simd::{Simd, Task};
use super::{SCORES, part_of};

/// Entries of the weights with scales of a head: a page's tokens times its groups of channels, and a vector more.
pub(super) const ENTRIES: usize = 256 + 16;

/// Groups of channels at most.
pub(super) const GROUPS: usize = 8;

/// `folded = query · scale` and `offsets[head] = Σ query · zero` with the parameters of a page's keys.
pub(super) struct Fold<'a> {
    pub(super) layout: &'a Layout,
    /// The block.
    pub(super) words: &'a [u32],
    pub(super) query: &'a [f32],
    pub(super) heads: usize,
    pub(super) folded: &'a mut [f32],
    pub(super) offsets: &'a mut [f32; 4],
}

impl Task for Fold<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Layout { block, tokens, places, .. } = self.layout;
        let section = &self.words[block.sections()[1]..block.sections()[2]];
        let mut sums = [s.splat(0.0); 4];
        let all = self.folded.chunks_exact_mut(self.heads * S::LANES);
        let all = all.zip(self.query.chunks_exact(self.heads * S::LANES)).zip(places.chunks_exact(S::LANES));
        for ((folded, query), places) in all {
            let places = s.words(places);
            let (scale, zero) = if block.precise {
                (s.floats(s.gather(section, places)), s.floats(s.gather(&section[1..], places)))
            } else {
                s.pair(s.gather(section, places))
            };
            for h in 0..self.heads {
                let query = s.load(&query[h * S::LANES..]);
                s.store(s.fma(query, scale, s.splat(0.0)), &mut folded[h * S::LANES..]);
                sums[h] = s.fma(query, zero, sums[h]);
            }
        }
        // Every token in a vector has a copy of the query.
        *self.offsets = s.totals(sums).map(|sum| sum / *tokens as f32);
    }
}

/// `scores[head][token] = folded[head] · codes` for tokens that cover `from..to`.
pub(super) struct Scores<'a> {
    pub(super) layout: &'a Layout,
    pub(super) words: &'a [u32],
    pub(super) folded: &'a [f32],
    pub(super) heads: usize,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) scores: &'a mut [f32],
    /// The block that is wanted next.
    pub(super) ahead: *const u32,
}

impl Task for Scores<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.layout.block.bits {
            2 => shared_scores::<S, 2>(s, &mut self),
            4 => shared_scores::<S, 4>(s, &mut self),
            _ => shared_scores::<S, 8>(s, &mut self),
        }
    }
}

#[inline(always)]
fn shared_scores<S: Simd, const BITS: usize>(s: S, t: &mut Scores<'_>) {
    match t.heads {
        1 => scores::<S, BITS, 1>(s, t),
        2 => scores::<S, BITS, 2>(s, t),
        3 if S::HEADS > 2 => scores::<S, BITS, 3>(s, t),
        4 if S::HEADS > 2 => scores::<S, BITS, 4>(s, t),
        _ => debug_assert!(false, "{} heads at once", t.heads),
    }
}

#[inline(always)]
fn scores<S: Simd, const BITS: usize, const H: usize>(s: S, t: &mut Scores<'_>) {
    let Layout { block, vectors, tokens, .. } = t.layout;
    let (step, vectors, tokens) = (t.layout.step(), *vectors, *tokens);
    let group = 4 * tokens;
    // Lines of the next block that are fetched beside four vectors of this one.
    let lines = block.words().div_ceil(16).div_ceil((t.to - t.from).div_ceil(group).max(1));
    let mut ahead = t.ahead;
    let mut first = t.from / group * group;
    while first < t.to {
        for _ in 0..lines {
            s.fetch(ahead.cast(), true);
            ahead = ahead.wrapping_add(16);
        }
        let mut sums = [[s.splat(0.0); 4]; H];
        for p in 0..vectors {
            let at = |j: usize| (first / tokens + j) * step + p * S::LANES;
            let mut words = [
                s.words(&t.words[at(0)..]),
                s.words(&t.words[at(1)..]),
                s.words(&t.words[at(2)..]),
                s.words(&t.words[at(3)..]),
            ];
            let size = 32 / BITS * H * S::LANES;
            for query in t.folded[p * size..(p + 1) * size].chunks_exact(H * S::LANES) {
                let mut codes = [s.splat(0.0); 4];
                for (code, words) in codes.iter_mut().zip(&mut words) {
                    *code = s.code::<BITS>(*words);
                    *words = s.next::<BITS>(*words);
                }
                for (h, sums) in sums.iter_mut().enumerate() {
                    let query = s.load(&query[h * S::LANES..]);
                    for (sum, &code) in sums.iter_mut().zip(&codes) {
                        *sum = s.fma(query, code, *sum);
                    }
                }
            }
        }
        for (h, &sums) in sums.iter().enumerate() {
            let scores = &mut t.scores[h * SCORES + first..][..group];
            if tokens == 1 {
                scores.copy_from_slice(&s.totals(sums));
            } else {
                by_token(&s.quarters(sums), S::LANES / 4 / tokens, tokens, scores);
            }
        }
        first += group;
    }
}

/// Sums of the quarters of a vector that belong to a token.
#[inline(always)]
fn by_token(quarters: &[[f32; 4]; 4], each: usize, tokens: usize, scores: &mut [f32]) {
    for token in 0..tokens {
        for j in 0..4 {
            let mut sum = quarters[token * each][j];
            for quarter in &quarters[token * each + 1..(token + 1) * each] {
                sum += quarter[j];
            }
            scores[j * tokens + token] = sum;
        }
    }
}

/// `spread[head][token, group] = weight · scale` and `zeros[head][group] += Σ weight · zero` with the parameters of a
/// page's values, for the tokens `from..to`; other entries become 0.
pub(super) struct Spread<'a> {
    pub(super) layout: &'a Layout,
    pub(super) words: &'a [u32],
    pub(super) weights: &'a [f32],
    pub(super) heads: usize,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) spread: &'a mut [f32],
    pub(super) zeros: &'a mut [f32],
}

impl Task for Spread<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let block = self.layout.block;
        if self.to - self.from == block.page && S::LANES.is_multiple_of(block.groups()) {
            self.whole(s);
        } else {
            self.part();
        }
    }
}

impl Spread<'_> {
    /// Some of the tokens; parameters of the others are not looked at.
    fn part(&mut self) {
        let (block, groups) = (self.layout.block, self.layout.block.groups());
        for h in 0..self.heads {
            let spread = &mut self.spread[h * ENTRIES..][..block.page * groups];
            spread.fill(0.0);
            for token in self.from..self.to {
                let weight = self.weights[h * SCORES + token];
                for group in 0..groups {
                    let p = block.value_parameters(self.words, token, group);
                    spread[token * groups + group] = weight * p.scale;
                    self.zeros[h * GROUPS + group] += weight * p.zero;
                }
            }
        }
    }

    #[inline(always)]
    fn whole<S: Simd>(&mut self, s: S) {
        let (block, groups) = (self.layout.block, self.layout.block.groups());
        let section = &self.words[block.sections()[3]..block.sections()[4]];
        let (mut lanes, mut tokens) = ([0u32; 16], [0u32; 16]);
        for (l, (lane, token)) in lanes.iter_mut().zip(&mut tokens).enumerate() {
            (*lane, *token) = (2 * l as u32, (l / groups) as u32);
        }
        let (token, even) = (s.words(&tokens), s.words(&lanes));
        let mut sums = [s.splat(0.0); 4];
        let mut first = 0;
        while first < block.page * groups {
            let (scale, zero) = if block.precise {
                let section = &section[2 * first..];
                (s.floats(s.gather(section, even)), s.floats(s.gather(&section[1..], even)))
            } else {
                s.pair(s.words(&section[first..]))
            };
            for (h, sum) in sums.iter_mut().enumerate().take(self.heads) {
                let weight = s.pick(s.load(&self.weights[h * SCORES + first / groups..]), token);
                s.store(s.fma(weight, scale, s.splat(0.0)), &mut self.spread[h * ENTRIES + first..]);
                *sum = s.fma(weight, zero, *sum);
            }
            first += S::LANES;
        }
        for (h, &sum) in sums.iter().enumerate().take(self.heads) {
            let mut lanes = [0f32; 16];
            s.store(sum, &mut lanes);
            for (l, sum) in lanes.iter().enumerate() {
                self.zeros[h * GROUPS + l % groups] += sum;
            }
        }
    }
}

/// `out[head] += Σ spread[head][token, group] · codes` over tokens that cover `from..to`.
pub(super) struct Weigh<'a> {
    pub(super) layout: &'a Layout,
    pub(super) words: &'a [u32],
    pub(super) spread: &'a [f32],
    pub(super) heads: usize,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) out: &'a mut [f32],
}

impl Task for Weigh<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.layout.block.bits {
            2 => shared_weigh::<S, 2>(s, &mut self),
            4 => shared_weigh::<S, 4>(s, &mut self),
            _ => shared_weigh::<S, 8>(s, &mut self),
        }
    }
}

#[inline(always)]
fn shared_weigh<S: Simd, const BITS: usize>(s: S, t: &mut Weigh<'_>) {
    match t.heads {
        1 => weigh::<S, BITS, 1>(s, t),
        2 => weigh::<S, BITS, 2>(s, t),
        3 if S::HEADS > 2 => weigh::<S, BITS, 3>(s, t),
        4 if S::HEADS > 2 => weigh::<S, BITS, 4>(s, t),
        _ => debug_assert!(false, "{} heads at once", t.heads),
    }
}

#[inline(always)]
fn weigh<S: Simd, const BITS: usize, const H: usize>(s: S, t: &mut Weigh<'_>) {
    for p in 0..t.layout.vectors {
        let entries = &t.layout.entries[p * S::LANES..][..S::LANES];
        let single = entries.iter().all(|&e| e == entries[0]);
        for quarter in 0..32 / BITS / 4 {
            if single {
                block::<S, BITS, H, true>(s, t, p, quarter);
            } else {
                block::<S, BITS, H, false>(s, t, p, quarter);
            }
        }
    }
}

/// Four shifts of one vector of all tokens; `SINGLE`: all of its lanes have one weight.
#[inline(always)]
fn block<S: Simd, const BITS: usize, const H: usize, const SINGLE: bool>(
    s: S,
    t: &mut Weigh<'_>,
    p: usize,
    quarter: usize,
) {
    let (layout, step) = (t.layout, t.layout.step());
    let section = &t.words[layout.block.sections()[2]..];
    let entries = &layout.entries[p * S::LANES..][..S::LANES];
    let (lanes, entry) = (s.words(entries), entries[0] as usize);
    let each = layout.tokens * layout.block.groups();
    let out = part_of(t.out, (p * 32 / BITS + 4 * quarter) * H * S::LANES, 4 * H * S::LANES);
    let mut sums = [[s.splat(0.0); H]; 4];
    for (i, sums) in sums.iter_mut().enumerate() {
        for (h, sum) in sums.iter_mut().enumerate() {
            *sum = s.load(&out[(i * H + h) * S::LANES..]);
        }
    }
    for n in t.from / layout.tokens..t.to.div_ceil(layout.tokens) {
        let mut words = s.down(s.words(&section[n * step + p * S::LANES..]), 4 * BITS * quarter);
        let mut weights = [s.splat(0.0); H];
        for (h, weight) in weights.iter_mut().enumerate() {
            let spread = &t.spread[h * ENTRIES + n * each..];
            *weight = if SINGLE { s.splat(spread[entry]) } else { s.pick(s.load(spread), lanes) };
        }
        for sums in &mut sums {
            let code = s.code::<BITS>(words);
            words = s.next::<BITS>(words);
            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                *sum = s.fma(weight, code, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (h, &sum) in sums.iter().enumerate() {
            s.store(sum, &mut out[(i * H + h) * S::LANES..]);
        }
    }
}
