//! Learning rate and weight decay of every step.
//!
//! All schedules begin with a linear warm-up. The two-stage schedule is the one of 1.58-bit
//! training (Ma et al. 2024, "The Era of 1-bit LLMs: Training Tips, Code and FAQ"): a high rate
//! in the first half, dropped at the midpoint, and no weight decay in the second half.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the rate goes after the warm-up. All values are fractions of the peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays at the peak.
    Constant,
    /// Half a cosine from the peak to the floor (Loshchilov and Hutter 2017).
    Cosine {
        /// Where it ends.
        floor: f64,
    },
    /// Linear from the peak to `end` at the midpoint of the run, then linear from `second` to
    /// `floor`; the weight decay is 0 from the midpoint on.
    TwoStage {
        /// Where the first stage ends.
        end: f64,
        /// Where the second stage begins.
        second: f64,
        /// Where the second stage ends.
        floor: f64,
    },
}

impl Schedule {
    /// Two stages on lines that both lead to 0 at the end of the run, the second one with two
    /// thirds of the first one's peak (such as 1.2e-3 and 8e-4).
    pub const TWO_STAGE: Schedule = Schedule::TwoStage { end: 0.5, second: 1.0 / 3.0, floor: 0.0 };
}

/// Learning rate and weight decay over a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// How the rate goes after the warm-up.
    pub schedule: Schedule,
    /// Highest learning rate.
    pub peak: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps of the whole run, warm-up included.
    pub steps: u64,
}

impl Rates {
    /// Refuses what cannot be meant, naming the setting.
    pub fn check(&self) -> Result<()> {
        let fraction = |name, value: f64| match value {
            0.0..=1.0 => Ok(()),
            _ => Err(Error::setting(name, value, "it is a fraction of the peak; give 0 to 1")),
        };
        if !(self.peak > 0.0 && self.peak.is_finite()) {
            return Err(Error::setting("learning rate", self.peak, "give a number above 0, such as 1e-3"));
        }
        if !(self.weight_decay >= 0.0 && self.peak * self.weight_decay < 1.0) {
            return Err(Error::setting("weight decay", self.weight_decay, "give 0 or more, such as 0.1"));
        }
        if self.steps == 0 || self.warmup > self.steps {
            let problem = format!("it cannot be longer than the run of {} steps", self.steps);
            return Err(Error::setting("warm-up", self.warmup, problem));
        }
        match self.schedule {
            Schedule::Constant => Ok(()),
            Schedule::Cosine { floor } => fraction("floor", floor),
            Schedule::TwoStage { end, second, floor } => {
                if self.warmup >= self.midpoint() {
                    let problem =
                        format!("it must end before the second stage, which begins at step {}", self.midpoint());
                    return Err(Error::setting("warm-up", self.warmup, problem));
                }
                fraction("end", end).and(fraction("second", second)).and(fraction("floor", floor))
            }
        }
    }

    fn midpoint(&self) -> u64 {
        self.steps.div_ceil(2)
    }

    /// Learning rate and weight decay of a step; the first step is 0. After the last step both
    /// stay as they ended.
    pub fn at(&self, step: u64) -> (f64, f64) {
        if step < self.warmup {
            return (self.peak * (step + 1) as f64 / self.warmup as f64, self.weight_decay);
        }
        // 0 at the first step of a stretch, 1 at its end, which is the first step after it.
        let along = |first: u64, end: u64| {
            (step.saturating_sub(first) as f64 / end.saturating_sub(first).max(1) as f64).min(1.0)
        };
        let line = |from: f64, to: f64, t: f64| from + (to - from) * t;
        let (scale, decay) = match self.schedule {
            Schedule::Constant => (1.0, 1.0),
            Schedule::Cosine { floor } => {
                let t = along(self.warmup, self.steps);
                (floor + (1.0 - floor) * 0.5 * (1.0 + (PI * t).cos()), 1.0)
            }
            Schedule::TwoStage { end, .. } if step < self.midpoint() => {
                (line(1.0, end, along(self.warmup, self.midpoint())), 1.0)
            }
            Schedule::TwoStage { second, floor, .. } => (line(second, floor, along(self.midpoint(), self.steps)), 0.0),
        };
        (self.peak * scale, self.weight_decay * decay)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rates(schedule: Schedule) -> Rates {
        Rates { schedule, peak: 2e-3, weight_decay: 0.1, warmup: 10, steps: 110 }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn every_schedule_warms_up_linearly_to_the_peak() {
        for schedule in [Schedule::Constant, Schedule::Cosine { floor: 0.1 }, Schedule::TWO_STAGE] {
            let rates = rates(schedule);
            rates.check().unwrap();
            assert!(close(rates.at(0).0, 2e-4) && close(rates.at(4).0, 1e-3) && close(rates.at(9).0, 2e-3));
            assert!(close(rates.at(10).0, 2e-3), "the step after the warm-up is at the peak");
            assert!(close(rates.at(5).1, 0.1));
        }
    }

    #[test]
    fn constant_stays() {
        assert_eq!(rates(Schedule::Constant).at(1_000_000), (2e-3, 0.1));
        let none = Rates { warmup: 0, ..rates(Schedule::Constant) };
        assert_eq!(none.at(0), (2e-3, 0.1));
    }

    #[test]
    fn cosine_goes_from_the_peak_to_the_floor() {
        let rates = rates(Schedule::Cosine { floor: 0.1 });
        assert!(close(rates.at(60).0, 2e-3 * 0.55), "half-way between peak and floor");
        assert!(close(rates.at(110).0, 2e-4) && close(rates.at(500).0, 2e-4));
        assert!((10..109).all(|step| rates.at(step + 1).0 < rates.at(step).0));
        assert_eq!(rates.at(109).1, 0.1);
    }

    #[test]
    fn two_stages_drop_at_the_midpoint_and_stop_decaying_weights() {
        let rates = rates(Schedule::TwoStage { end: 0.5, second: 0.25, floor: 0.05 });
        let (before, after) = (rates.at(54), rates.at(55));
        assert!(before.0 > 1e-3 && before.0 < 1.03e-3, "{before:?}");
        assert!(close(after.0, 5e-4), "{after:?}");
        assert_eq!((before.1, after.1), (0.1, 0.0));
        assert!(close(rates.at(110).0, 1e-4) && close(rates.at(500).0, 1e-4));
        assert!((10..109).all(|step| rates.at(step + 1).0 < rates.at(step).0));
    }

    #[test]
    fn impossible_settings_are_named() {
        let of = |change: fn(&mut Rates)| {
            let mut rates = rates(Schedule::TWO_STAGE);
            change(&mut rates);
            rates.check().unwrap_err().to_string()
        };
        assert!(of(|r| r.peak = f64::NAN).contains("learning rate"));
        assert!(of(|r| r.weight_decay = -0.1).contains("weight decay"));
        assert!(of(|r| r.warmup = 111).contains("110 steps"));
        assert!(of(|r| r.warmup = 55).contains("step 55"));
        assert!(of(|r| r.schedule = Schedule::Cosine { floor: 1.5 }).contains("floor"));
    }

    #[test]
    fn rates_survive_json() {
        let rates = rates(Schedule::TWO_STAGE);
        let text = serde_json::to_string(&rates).unwrap();
        assert!(text.contains("two_stage"), "{text}");
        assert_eq!(serde_json::from_str::<Rates>(&text).unwrap(), rates);
    }
}
