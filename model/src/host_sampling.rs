//! Choosing the next token from a row of logits on the host.
//!
//! The order is that of transformers: repetition penalty, temperature, top-k,
//! top-p, min-p, then a draw from the softmax of what is left. Sums run in f64
//! in a fixed order, so equal logits and equal random state give equal tokens.

use crate::error::{Error, Result};

/// Random numbers by SplitMix64 (Steele, Lea and Flood 2014): the n-th value is
/// a fixed mix of `seed + n * 0x9E3779B97F4A7C15`, so two numbers are the whole
/// state and any position can be returned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random {
    /// Chosen by the user.
    pub seed: u64,
    /// Values drawn so far.
    pub drawn: u64,
}

impl Random {
    /// The beginning of the sequence of that seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        let mut z = self.seed.wrapping_add(self.drawn.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The next number in `[0, 1)`, a multiple of 2^-53.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What the choice is restricted to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the largest logit (greedy).
    pub temperature: f32,
    /// Keeps that many of the largest logits (and equals of the last); 0 is off.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens that reach this probability; 1 is off.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 is off.
    pub repeat_penalty: f32,
}

impl Sampling {
    /// The largest logit, nothing else.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0 };

    /// Checks every setting; the error names the first that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: f32, good: bool, range: &str| {
            if good && value.is_finite() {
                return Ok(());
            }
            Err(Error::Sampling(format!("{name} is {value}; give a number {range}")))
        };
        check("temperature", self.temperature, self.temperature >= 0.0, "from 0")?;
        let in_unit = |value: f32| (0.0..=1.0).contains(&value);
        check("top_p", self.top_p, in_unit(self.top_p) && self.top_p > 0.0, "above 0, up to 1")?;
        check("min_p", self.min_p, in_unit(self.min_p), "from 0 to 1")?;
        check("repeat_penalty", self.repeat_penalty, self.repeat_penalty > 0.0, "above 0")
    }
}

/// Settings with the random state and a scratch list.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// What the choice is restricted to.
    pub settings: Sampling,
    /// Where the random sequence stands.
    pub random: Random,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    /// Below the largest logit by this much, over the temperature; at most 0.
    logit: f64,
}

impl Sampler {
    /// A sampler at the beginning of the seed's sequence.
    pub fn new(settings: Sampling, seed: u64) -> Result<Self> {
        settings.validate()?;
        Ok(Self { settings, random: Random::new(seed), candidates: Vec::new() })
    }

    /// Chooses a token. `logits` (one row, `V` long) are changed by the
    /// penalty; `recent` are the ids that it applies to, each counted once.
    /// Greedy choice takes the lowest id among equals and draws nothing.
    pub fn sample(&mut self, logits: &mut [f32], recent: &[u32]) -> Result<u32> {
        self.settings.validate()?;
        if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
            let value = logits.get(at).copied().unwrap_or_default();
            return Err(Error::Sampling(format!(
                "the logit of token {at} is {value}; the weights or the arithmetic are broken"
            )));
        }
        if u32::try_from(logits.len()).is_err() || logits.is_empty() {
            return Err(Error::Sampling(format!("a row of {} logits has no token", logits.len())));
        }
        penalise(logits, recent, self.settings.repeat_penalty);
        if self.settings.temperature == 0.0 {
            return Ok(argmax(logits));
        }
        self.restrict(logits);
        Ok(self.draw())
    }

    /// Fills the candidates: in the order of ids, or of falling likelihood
    /// where top-p has to look at them in that order.
    fn restrict(&mut self, logits: &[f32]) {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.settings;
        let list = &mut self.candidates;
        list.clear();
        // The largest is taken off first, so that no temperature overflows.
        let most = logits.iter().fold(f32::MIN, |most, &logit| most.max(logit));
        let scale = |&l: &f32| (f64::from(l) - f64::from(most)) / f64::from(temperature);
        let scaled = logits.iter().map(scale);
        list.extend((0u32..).zip(scaled).map(|(id, logit)| Candidate { id, logit }));
        if top_k > 0 && top_k < list.len() {
            let (_, last, _) = list.select_nth_unstable_by(top_k - 1, falling);
            let least = last.logit;
            list.retain(|candidate| candidate.logit >= least);
            list.sort_unstable_by_key(|candidate| candidate.id);
        }
        if top_p < 1.0 {
            list.sort_unstable_by(falling);
            let kept = nucleus(list, f64::from(top_p));
            list.truncate(kept);
        }
        if min_p > 0.0 {
            list.retain(|c| c.logit.exp() >= f64::from(min_p));
        }
    }

    fn draw(&mut self) -> u32 {
        let total: f64 = self.candidates.iter().map(|c| c.logit.exp()).sum();
        let target = self.random.next_f64() * total;
        let mut sum = 0.0;
        let mut chosen = 0;
        for candidate in &self.candidates {
            let weight = candidate.logit.exp();
            if weight > 0.0 {
                chosen = candidate.id;
                sum += weight;
                if sum > target {
                    break;
                }
            }
        }
        chosen
    }
}

/// Falling logits, rising ids among equals: a total order, so sorting is stable
/// whatever the algorithm.
fn falling(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// How many of the sorted candidates are needed to reach the probability `p`.
fn nucleus(sorted: &[Candidate], p: f64) -> usize {
    let total: f64 = sorted.iter().map(|c| c.logit.exp()).sum();
    let mut sum = 0.0;
    for (count, candidate) in (1..).zip(sorted) {
        sum += candidate.logit.exp();
        if sum >= p * total {
            return count;
        }
    }
    sorted.len()
}

fn penalise(logits: &mut [f32], recent: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen: Vec<u32> = recent.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            let changed = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit = changed.clamp(-f32::MAX, f32::MAX);
        }
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0u32, f32::NEG_INFINITY);
    for (id, &logit) in (0u32..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

    /// How often each id comes in 20,000 draws.
    fn shares(settings: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(settings, 11).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(&mut logits.to_vec(), &[]).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn logs(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + 3.0).collect()
    }

    #[track_caller]
    fn close(found: &[f64], expected: &[f64]) {
        // Four standard deviations of a share of 20,000 draws are below 0.015.
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 0.015, "{found:?} {expected:?}");
            assert!(*b > 0.0 || *a == 0.0, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn splitmix_gives_its_published_values() {
        let mut random = Random::new(1_234_567);
        let expected = [6457827717110365317u64, 3203168211198807973, 9817491932198370423];
        assert_eq!([random.next_u64(), random.next_u64(), random.next_u64()], expected);
        let mut later = Random { drawn: 2, ..Random::new(1_234_567) };
        assert_eq!(later.next_u64(), expected[2]);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.next_f64())));
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_draws_nothing() {
        let mut sampler = Sampler::new(Sampling::GREEDY, 1).unwrap();
        assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0, -1.0], &[]).unwrap(), 1);
        assert_eq!(sampler.sample(&mut [-f32::MAX; 2], &[]).unwrap(), 0);
        assert_eq!(sampler.random.drawn, 0);
    }

    #[test]
    fn shares_follow_the_softmax() {
        let logits = logs(&[0.1, 0.2, 0.3, 0.4]);
        close(&shares(PLAIN, &logits), &[0.1, 0.2, 0.3, 0.4]);
        let cold = Sampling { temperature: 0.5, ..PLAIN };
        close(&shares(cold, &logits), &[1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]);
        let frozen = Sampling { temperature: 1e-40, ..PLAIN };
        close(&shares(frozen, &logits), &[0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn restrictions_keep_what_they_say() {
        let logits = logs(&[0.1, 0.2, 0.3, 0.4]);
        let two = [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0];
        close(&shares(Sampling { top_k: 2, ..PLAIN }, &logits), &two);
        close(&shares(Sampling { top_k: 9, ..PLAIN }, &logits), &[0.1, 0.2, 0.3, 0.4]);
        close(&shares(Sampling { top_p: 0.6, ..PLAIN }, &logits), &two);
        close(&shares(Sampling { top_p: 0.01, ..PLAIN }, &logits), &[0.0, 0.0, 0.0, 1.0]);
        close(&shares(Sampling { min_p: 0.6, ..PLAIN }, &logits), &two);
        close(&shares(Sampling { min_p: 1.0, ..PLAIN }, &logits), &[0.0, 0.0, 0.0, 1.0]);
        // top-p counts within what top-k left: 0.4 of 0.7 reaches 0.5.
        let both = Sampling { top_k: 2, top_p: 0.5, ..PLAIN };
        close(&shares(both, &logits), &[0.0, 0.0, 0.0, 1.0]);
        // Equals of the last kept logit stay, as in transformers.
        close(&shares(Sampling { top_k: 1, ..PLAIN }, &[2.0, 2.0, 0.0]), &[0.5, 0.5, 0.0]);
    }

    #[test]
    fn the_penalty_counts_a_token_once() {
        let settings = Sampling { repeat_penalty: 2.0, ..Sampling::GREEDY };
        let mut sampler = Sampler::new(settings, 0).unwrap();
        let mut logits = [4.0, 3.0, -1.0];
        assert_eq!(sampler.sample(&mut logits, &[0, 0, 2, 99]).unwrap(), 1);
        assert_eq!(logits, [2.0, 3.0, -2.0]);
    }

    #[test]
    fn equal_seeds_give_equal_tokens() {
        let run = |seed| {
            let mut sampler = Sampler::new(Sampling { top_p: 0.9, ..PLAIN }, seed).unwrap();
            (0..64)
                .map(|i| {
                    let mut row: Vec<f32> = (0..50).map(|j| ((i * j) % 7) as f32).collect();
                    sampler.sample(&mut row, &[]).unwrap()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn broken_logits_and_settings_are_errors() {
        let mut sampler = Sampler::new(PLAIN, 0).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let message = sampler.sample(&mut [0.0, bad], &[]).unwrap_err().to_string();
            assert!(message.contains("token 1"), "{message}");
        }
        assert!(sampler.sample(&mut [], &[]).is_err());
        for (bad, name) in [
            (Sampling { temperature: -1.0, ..PLAIN }, "temperature"),
            (Sampling { temperature: f32::NAN, ..PLAIN }, "temperature"),
            (Sampling { top_p: 0.0, ..PLAIN }, "top_p"),
            (Sampling { min_p: 1.5, ..PLAIN }, "min_p"),
            (Sampling { repeat_penalty: 0.0, ..PLAIN }, "repeat_penalty"),
        ] {
            assert!(Sampler::new(bad, 0).unwrap_err().to_string().contains(name));
        }
    }
}
