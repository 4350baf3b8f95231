//! What a run is made of.

use crate::error::{Error, Result};
use crate::schedule::Rates;
use crate::steps::Precision;
use serde::{Deserialize, Serialize};

/// What a run is made of. All but `steps`, `checkpoint_every` and `evaluate_every` must be the
/// same when it is resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Optimiser steps in all.
    pub steps: u64,
    /// Sequences in a micro-batch.
    pub batch: usize,
    /// Micro-batches in a step.
    pub accumulate: usize,
    /// Tokens in a sequence.
    pub context: usize,
    /// Learning rate and weight decay by step.
    pub rates: Rates,
    /// Largest gradient norm; 0 does not clip.
    pub clip: f64,
    /// Weight of `log²Z` in the loss.
    pub z_loss: f64,
    /// Seed of weights and batches.
    pub seed: u64,
    /// Steps between checkpoints; 0 saves at the end only.
    pub checkpoint_every: u64,
    /// Steps between evaluations; 0 evaluates at the end only.
    pub evaluate_every: u64,
    /// Compute layers again in the backward pass.
    pub recompute: bool,
    /// Dtype of activations; runs of versions that did not know it were f32.
    #[serde(default)]
    pub precision: Precision,
    /// Adam's decay rates and epsilon.
    pub adam: (f64, f64, f64),
}

impl Settings {
    /// Names of the settings that differ from another run's and may not.
    pub(super) fn conflicts(&self, other: &Settings) -> Vec<&'static str> {
        let pairs = [
            ("batch", self.batch == other.batch),
            ("accumulate", self.accumulate == other.accumulate),
            ("context", self.context == other.context),
            ("clip", self.clip == other.clip),
            ("z_loss", self.z_loss == other.z_loss),
            ("seed", self.seed == other.seed),
            ("adam", self.adam == other.adam),
            ("precision", self.precision == other.precision),
            ("lr", self.rates.peak == other.rates.peak),
            ("schedule", self.rates.schedule == other.rates.schedule),
            ("weight_decay", self.rates.weight_decay == other.rates.weight_decay),
            ("warmup", self.rates.warmup == other.rates.warmup),
        ];
        pairs.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("batch", self.batch), ("context", self.context), ("accumulate", self.accumulate)] {
            if value == 0 {
                return Err(Error::setting(name, value, "must be at least 1"));
            }
        }
        self.rates.check()
    }
}
