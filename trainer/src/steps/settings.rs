//! What training programs are recorded for, and what an update is given.

use serde::{Deserialize, Serialize};
use tritter_runtime::DType;

/// What the programs are for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Sequences in a micro-step.
    pub batch: usize,
    /// Tokens in a sequence.
    pub context: usize,
    /// Weight of `log²Z` in the loss.
    pub z_loss: f32,
    /// Keep only the residual stream between layers and compute the rest again.
    pub recompute: bool,
    /// Dtype of activations and their gradients.
    pub precision: Precision,
}

/// Dtype of activations and of their gradients in training. Master weights, their gradients, the
/// optimiser's moments, norm weights, scales, softmax and loss are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// bf16 activations, f32 master weights (Micikevicius et al. 2018; Kalamkar et al. 2019).
    Bf16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.dtype().name())
    }
}

impl Precision {
    /// The dtype of activations.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

impl Shape {
    /// Tokens in a micro-step.
    pub fn tokens(&self) -> usize {
        self.batch * self.context
    }
}

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Number of this update, from 1, for the bias corrections.
    pub t: u64,
    /// Gradients with a larger global norm are scaled to it; 0 does not clip.
    pub max_norm: f32,
    /// Norm weights and biases decay too.
    pub decay_all: bool,
}

impl Hyper {
    pub(super) fn words(&self, decay: bool) -> [f32; 8] {
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(self.t as f64)) as f32;
        let decay = if decay { self.weight_decay } else { 0.0 };
        let (c1, c2) = (correction(self.beta1), correction(self.beta2));
        [self.lr, self.beta1, self.beta2, self.eps, decay, c1, c2, self.max_norm]
    }
}
