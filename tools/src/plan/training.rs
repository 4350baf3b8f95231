//! What training takes: of all weights (QAT), or of adapters beside frozen weights (LoRA, QLoRA).

use super::ladder::{Descent, Rung, descend};
use super::parts::{self, Part};
use anyhow::Result;
use tritter_model::Config;
use tritter_model::tensor_names::TensorSpec;
use tritter_model::weights::{Form, Model};
use tritter_runtime::Device;
use tritter_runtime::budget::overhead;
use tritter_trainer::steps::{Precision, Shape, StepsPlan};

/// What is trained.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// All weights, made ternary in every forward pass (of a dense model: as they are)
    Qat,
    /// Adapters of low rank beside frozen weights in bf16: an estimate, this version does not train them
    Lora,
    /// Adapters beside frozen weights in 2 bits (ternary) or NF4 (dense): an estimate as well
    Qlora,
}

/// A training run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Training {
    pub(crate) method: Method,
    /// Rank of adapters.
    pub(crate) rank: usize,
    pub(crate) batch: usize,
    pub(crate) context: usize,
    pub(crate) recompute: bool,
    pub(crate) precision: Precision,
}

impl Training {
    /// What it takes; on a device, with the copies of operands that it has no kernels for.
    pub(crate) fn parts(&self, config: &Config, device: Option<&Device>) -> Result<Vec<Part>> {
        let Training { batch, context, recompute, precision, .. } = *self;
        let model = Model::new(config, Form::Train, context);
        let plan = StepsPlan::new(&model, Shape { batch, context, z_loss: 0.0, recompute, precision })?;
        let plan = match device {
            Some(device) => plan.on(device)?,
            None => plan,
        };
        let mut parts = match self.method {
            Method::Qat => {
                let mut parts = parts::weights(&model);
                parts.push(Part::new("gradients", plan.gradients()));
                parts.push(Part::new("optimiser moments", plan.moments()));
                parts
            }
            Method::Lora | Method::Qlora => self.adapters(config, &model),
        };
        parts.push(Part::new("activations", plan.arena()));
        parts.push(Part::new("inputs and scalars", plan.small()));
        Ok(parts)
    }

    /// Frozen weights and adapters on all projections of the layers: `B A` of rank r beside each `W [n,k]`,
    /// which is r(n + k) weights (Hu et al. 2021, section 4.1), in f32 with a gradient and two moments; and
    /// the r activations of each that the backward pass reads. The activations of the frozen part are bounded
    /// by those of full training.
    fn adapters(&self, config: &Config, model: &Model) -> Vec<Part> {
        let projections: Vec<TensorSpec> = config.tensors().into_iter().filter(is_projection).collect();
        let weights: u64 = projections.iter().map(|spec| elements(&spec.shape)).sum();
        let frozen = match (self.method, config.is_ternary()) {
            (Method::Qlora, true) => Part::new("frozen projections in 2 bits", weights.div_ceil(4)),
            (Method::Qlora, false) => Part::new("frozen projections in NF4", nf4(weights)),
            _ => Part::new("frozen projections in bf16", 2 * weights),
        };
        let others: u64 = model.parameters().iter().map(|tensor| elements(&tensor.spec().shape)).sum();
        let rank = self.rank as u64;
        let adapters = 4 * projections.iter().map(|spec| rank * spec.shape.iter().sum::<usize>() as u64).sum::<u64>();
        let tokens = (self.batch * self.context) as u64;
        vec![
            frozen,
            Part::new("frozen embedding, head and norms in bf16", 2 * others.saturating_sub(weights)),
            Part::new(format!("adapters of rank {} in f32", self.rank), adapters),
            Part::new("gradients of adapters", adapters),
            Part::new("optimiser moments of adapters", 2 * adapters),
            Part::new("activations of adapters", 4 * rank * tokens * projections.len() as u64),
        ]
    }
}

/// How the tokens of an optimiser step are cut into micro-batches, and whether the backward pass computes layers
/// again instead of keeping their activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Sequences of a micro-batch.
    pub(crate) batch: usize,
    /// Micro-batches of a step.
    pub(crate) accumulate: usize,
    pub(crate) recompute: bool,
}

/// Goes down from what is asked for, in so many micro-batches a step, as far as a budget asks for: fewer sequences a
/// micro-batch (and more of them for a step, which then sees the same tokens), then layers that are computed again.
pub(crate) fn fit(
    config: &Config,
    device: Option<&Device>,
    (asked, accumulate): (Training, usize),
    (budget, overhead): (Option<u64>, u64),
) -> Result<Descent<Cut>> {
    let mut needs = |&Cut { batch, recompute, .. }: &Cut| -> Result<u64> {
        Ok(parts::total(&Training { batch, recompute, ..asked }.parts(config, device)?) + overhead)
    };
    let Training { batch, recompute, .. } = asked;
    descend(Cut { batch, accumulate, recompute }, &rungs(), budget, &mut needs)
}

/// As [`fit`] for a device, with what is given up said on standard error; refuses what does not fit.
pub(crate) fn fit_on(
    config: &Config,
    device: &Device,
    asked: Cut,
    (context, precision): (usize, Precision),
) -> Result<Cut> {
    let Cut { batch, accumulate, recompute } = asked;
    // What is wrong with the settings is said by the run itself.
    if batch == 0 || context == 0 || context > config.max_positions {
        return Ok(asked);
    }
    let training = Training { method: Method::Qat, rank: 1, batch, context, recompute, precision };
    let room = (device.budget(), overhead(device.caps()));
    let descent = fit(config, Some(device), (training, accumulate), room)?;
    if !descent.taken.is_empty() || !descent.fits {
        device.backend().trim();
    }
    for said in &descent.taken {
        eprintln!("memory: {said}");
    }
    let cut = descent.settings;
    if descent.fits {
        return Ok(cut);
    }
    Err(tritter_runtime::Error::DoesNotFit {
        what: format!("training with micro-batches of {} times {context} tokens", cut.batch),
        device: device.label(),
        needed: descent.needed,
        available: device.budget().unwrap_or(0),
        advice: "use a larger --memory-limit, a smaller --context or --preset, or --precision bf16".into(),
    }
    .into())
}

fn rungs() -> Vec<Rung<'static, Cut>> {
    vec![
        Box::new(|now: &Cut| {
            // The smallest factor keeps micro-batches as large as can be.
            let factor = (2..=now.batch).find(|&factor| now.batch.is_multiple_of(factor))?;
            let (batch, accumulate) = (now.batch / factor, now.accumulate.checked_mul(factor)?);
            Some((
                Cut { batch, accumulate, ..*now },
                format!("micro-batches of {batch}, {accumulate} of them for a step"),
            ))
        }),
        Box::new(|now: &Cut| {
            let again = Cut { recompute: true, ..*now };
            (!now.recompute).then(|| (again, "layers are computed again in the backward pass".into()))
        }),
    ]
}

/// Matrices of layers.
fn is_projection(spec: &TensorSpec) -> bool {
    spec.name.contains(".layers.") && spec.shape.len() == 2
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&extent| extent as u64).product()
}

/// Bytes of weights in NF4 with double quantisation: 4 bits each, 8 for the scale of 64, and 32 for the scale
/// of 256 of these (Dettmers et al. 2023, section 3).
fn nf4(weights: u64) -> u64 {
    weights.div_ceil(2) + weights.div_ceil(64) + 4 * weights.div_ceil(64 * 256)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use tritter_model::config::Family;
    use tritter_model::presets::preset;

    fn training(method: Method) -> Training {
        Training { method, rank: 16, batch: 1, context: 64, recompute: true, precision: Precision::F32 }
    }

    fn named(parts: &[Part], words: &str) -> u64 {
        parts.iter().find(|part| part.name.contains(words)).unwrap_or_else(|| panic!("no {words}: {parts:?}")).bytes
    }

    #[test]
    fn training_all_weights_keeps_four_numbers_of_each() {
        let config = preset("test").unwrap().config(Family::Bitnet, Some(512), None);
        let parts = training(Method::Qat).parts(&config, None).unwrap();
        let gradients = named(&parts, "gradients");
        assert_eq!(gradients, 4 * config.parameters().total());
        assert_eq!(named(&parts, "moments"), 2 * gradients);
        assert!(named(&parts, "activations") > 0);
    }

    #[test]
    fn adapters_are_counted_by_rank_and_shape() {
        let config = preset("test").unwrap().config(Family::Bitnet, Some(512), None);
        // Four layers of q and o [256,256], k and v [128,256], gate and up [512,256], down [256,512].
        let sums = 4 * (2 * 512 + 2 * 384 + 3 * 768);
        let parts = training(Method::Lora).parts(&config, None).unwrap();
        assert_eq!(named(&parts, "adapters of rank 16"), 4 * 16 * sums);
        assert_eq!(named(&parts, "activations of adapters"), 4 * 16 * 64 * 28);
        assert_eq!(named(&parts, "projections in bf16"), 2 * config.parameters().ternary);
        let packed = training(Method::Qlora).parts(&config, None).unwrap();
        assert_eq!(named(&packed, "in 2 bits"), config.parameters().ternary / 4);
        let full = parts::total(&training(Method::Qat).parts(&config, None).unwrap());
        assert!(parts::total(&packed) < parts::total(&parts) && parts::total(&parts) < full);
    }

    #[test]
    fn short_memory_takes_smaller_micro_batches_of_the_same_step_and_then_computes_again() {
        let config = preset("test").unwrap().config(Family::Bitnet, Some(512), None);
        let asked = Cut { batch: 6, accumulate: 2, recompute: false };
        let device = tritter_runtime::cpu::open();
        let needs = |batch, recompute| {
            let training = Training { batch, recompute, ..training(Method::Qat) };
            parts::total(&training.parts(&config, Some(&device)).unwrap()) + overhead(device.caps())
        };
        let fitted = |budget| fit_on(&config, &device.clone().with_budget(budget), asked, (64, Precision::F32));
        assert_eq!(fitted(needs(6, false)).unwrap(), asked);
        let half = Cut { batch: 3, accumulate: 4, recompute: false };
        assert_eq!(fitted(needs(3, false)).unwrap(), half);
        let least = Cut { batch: 1, accumulate: 12, recompute: true };
        assert_eq!(fitted(needs(1, true)).unwrap(), least);
        let refused = fitted(needs(1, true) - 1).unwrap_err().to_string();
        assert!(refused.contains("micro-batches of 1 times 64") && refused.contains("--context"), "{refused}");
    }

    #[test]
    fn nf4_takes_a_little_more_than_four_bits() {
        let bits = 8.0 * nf4(1 << 30) as f64 / (1u64 << 30) as f64;
        assert!((4.126..4.128).contains(&bits), "{bits}");
    }
}
