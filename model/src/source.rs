//! Where weights come from: a checkpoint, or a seeded generator.

use crate::config::{Config, LinearClass, Quantization};
use crate::error::{Error, Result};
use crate::packed::words_from_bytes;
use crate::tensor_names::{Kind, TensorSpec};
use crate::tensors::Checkpoint;
use tritter_runtime::random::Random;

/// Ternary weights ready for a device.
pub struct Ternary {
    /// Codes in the runtime's layout.
    pub words: Vec<u32>,
    /// The factor that multiplies them.
    pub scale: f32,
}

/// A source of weights by Hugging Face name.
pub trait Source {
    /// Values of a float tensor, row-major.
    fn floats(&mut self, spec: &TensorSpec) -> Result<Vec<f32>>;

    /// A ternary matrix, if the source holds it as one.
    fn ternary(&mut self, spec: &TensorSpec) -> Result<Option<Ternary>>;
}

/// Weights of a checkpoint.
pub struct FromCheckpoint<'a> {
    /// The open files.
    pub checkpoint: &'a Checkpoint,
    /// How ternary matrices are stored there.
    pub quantization: Quantization,
}

impl Source for FromCheckpoint<'_> {
    fn floats(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        self.checkpoint.f32(&spec.name, &spec.shape)
    }

    fn ternary(&mut self, spec: &TensorSpec) -> Result<Option<Ternary>> {
        let (Quantization::Offline { linear_class }, Kind::Linear { ternary: true }) = (self.quantization, spec.kind)
        else {
            return Ok(None);
        };
        let (out, inner) = (spec.shape[0], spec.shape[1]);
        let bytes = self.checkpoint.u8(&spec.name, &[out / 4, inner])?;
        let path = self.checkpoint.path();
        let fault = |problem: &str| Error::tensor(path, &spec.name, problem);
        let words = words_from_bytes(bytes, out, inner)
            .ok_or_else(|| fault("holds the code 3, which no ternary weight has; the file is damaged"))?;
        let name = format!("{}_scale", spec.name);
        let stored = self.checkpoint.f32(&name, &[1])?[0];
        if !(stored.is_finite() && stored > 0.0) {
            let problem = format!("is {stored}, a scale must be a positive number; the file is damaged");
            return Err(Error::tensor(path, &name, problem));
        }
        let scale = match linear_class {
            LinearClass::AutoBitLinear => stored,
            LinearClass::BitLinear => 1.0 / stored,
        };
        Ok(Some(Ternary { words, scale }))
    }
}

/// Random weights: matrices normal with standard deviation 0.02 (output projections of the residual
/// branches scaled by `1/sqrt(2·layers)`, Radford et al. 2019), norms 1, biases 0.
pub struct FromSeed {
    random: Random,
    residual: f64,
}

impl FromSeed {
    /// Weights for a config; equal seeds give equal weights.
    pub fn new(config: &Config, seed: u64) -> Self {
        FromSeed { random: Random::new(seed), residual: 1.0 / (2.0 * config.num_layers as f64).sqrt() }
    }
}

impl Source for FromSeed {
    fn floats(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let n = spec.shape.iter().product();
        let closing = spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
        let std = if closing { 0.02 * self.residual } else { 0.02 };
        Ok(match spec.kind {
            Kind::Norm => vec![1.0; n],
            Kind::Bias => vec![0.0; n],
            Kind::Embedding | Kind::Linear { .. } => (0..n).map(|_| (std * self.random.normal()) as f32).collect(),
        })
    }

    fn ternary(&mut self, _spec: &TensorSpec) -> Result<Option<Ternary>> {
        Ok(None)
    }
}
