//! Frequencies of the rotary embedding and the ways to stretch them over longer contexts: what a config
//! asks for, and what a command line states on top of it.
//!
//! With plain frequencies `w_i = theta^(-2i/d)` (Su et al. 2021) of a head of `d` elements:
//!
//! - `linear` (Chen et al. 2023, position interpolation): `w_i / F`;
//! - `dynamic` as transformers has it: plain up to the model's positions; beyond them the base would follow
//!   the length of the text, for which a cache of turned keys has no place, so that is refused;
//! - `yarn` (Peng et al. 2023, sections 3.2 to 3.4): [`Yarn`];
//! - `llama3` (Llama 3.1): [`rope::llama3`].

use std::f64::consts::TAU;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::config::{Config, MAX_INDEX};
use crate::error::{Error, Result};
use crate::json_fields::Fields;
use tritter_runtime::ops::rope;

/// Rotary position embedding, half-split pairs `(i, i + d/2)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base: `inv_freq_i = theta^(-2i/d)`.
    pub theta: f64,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Change of the rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided.
    Linear {
        /// Divisor, at least 1.
        factor: f64,
    },
    /// Frequencies as they are up to the model's positions, which is as far as it is taken here.
    Dynamic {
        /// What transformers would stretch by beyond them.
        factor: f64,
    },
    /// Slow frequencies divided, fast ones kept, and a factor on cosines and sines.
    Yarn(Yarn),
    /// The `llama3` rule: low frequencies divided, middle ones blended.
    Llama3 {
        /// Divisor of the low frequencies, at least 1.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context of the first training, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// YaRN (Peng et al. 2023): pairs that turn more than `beta_fast` times within the original context keep their
/// frequency, those that turn less than `beta_slow` times are divided by `factor`, with a ramp over the
/// indices between the two (equations 17 and 18).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Divisor of the slow frequencies, at least 1.
    pub factor: f64,
    /// Context of the first training, in tokens.
    pub original_max_position_embeddings: usize,
    /// Turns from which a frequency stays.
    pub beta_fast: f64,
    /// Turns up to which it is divided whole.
    pub beta_slow: f64,
    /// Factor on cosines and sines of queries and keys alike (its square is `1/t` of equation 21).
    pub attention_factor: f64,
    /// Whether the ends of the ramp are whole indices.
    pub truncate: bool,
}

impl Yarn {
    /// The paper's settings for a factor: 32 and 1 turns, `0.1 ln F + 1` (equation 22).
    pub fn new(factor: f64, original_max_position_embeddings: usize) -> Yarn {
        Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: magnitude(factor, 1.0),
            truncate: true,
        }
    }

    fn frequencies(&self, plain: &[f64], theta: f64) -> Vec<f64> {
        let d = 2.0 * plain.len() as f64;
        // The index whose pair turns so often within the original context: w · original = TAU · turns.
        let original = self.original_max_position_embeddings as f64;
        let index = |turns: f64| d * (original / (TAU * turns)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (index(self.beta_fast), index(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        let stretch = |(i, &w): (usize, &f64)| {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            w / self.factor * divided + w * (1.0 - divided)
        };
        plain.iter().enumerate().map(stretch).collect()
    }
}

/// transformers' `get_mscale`: `0.1 · weight · ln F + 1`.
fn magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

impl Rope {
    /// `d/2` frequencies for heads of `d` elements.
    pub fn frequencies(&self, d: usize) -> Vec<f64> {
        let plain = rope::inverse_frequencies(self.theta, d);
        match self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => plain,
            RopeScaling::Linear { factor } => plain.iter().map(|w| w / factor).collect(),
            RopeScaling::Yarn(yarn) => yarn.frequencies(&plain, self.theta),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                rope::llama3(&plain, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings as f64)
            }
        }
    }

    /// Factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            _ => 1.0,
        }
    }

    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling`, of a model of `positions` positions.
    pub(crate) fn from_json(fields: &Fields<'_>, default_theta: f64, positions: usize) -> Result<Self> {
        let theta = fields.number("rope_theta")?;
        let (theta, scaling) = match fields.object("rope_parameters")? {
            Some(inner) => (inner.number("rope_theta")?.or(theta), Some(inner)),
            None => (theta, fields.object("rope_scaling")?),
        };
        let scaling = match scaling {
            Some(inner) => read_scaling(&inner, positions)?,
            None => RopeScaling::None,
        };
        Ok(Rope { theta: theta.unwrap_or(default_theta), scaling })
    }

    /// `rope_parameters`.
    pub(crate) fn to_json(self) -> Value {
        let mut json = match self.scaling {
            RopeScaling::None => json!({ "rope_type": "default" }),
            RopeScaling::Linear { factor } => json!({ "factor": factor, "rope_type": "linear" }),
            RopeScaling::Dynamic { factor } => json!({ "factor": factor, "rope_type": "dynamic" }),
            RopeScaling::Yarn(yarn) => json!({
                "attention_factor": yarn.attention_factor,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_max_position_embeddings,
                "rope_type": "yarn",
                "truncate": yarn.truncate,
            }),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                json!({
                    "factor": factor,
                    "high_freq_factor": high_freq_factor,
                    "low_freq_factor": low_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                    "rope_type": "llama3",
                })
            }
        };
        json["rope_theta"] = json!(self.theta);
        json
    }

    /// Checks all numbers; errors name `file` and the field.
    pub(crate) fn validate(&self, file: &Path) -> Result<()> {
        let number = |field: &str, value: f64, least: f64| {
            if value.is_finite() && value > 0.0 && value >= least {
                return Ok(());
            }
            let problem = if least > 0.0 { format!("give a finite number of {least} at least") } else { ABOVE.into() };
            Err(Error::field(file, field, value, problem))
        };
        let ordered = |field: &str, high: f64, other: &str, low: f64| match high > low {
            true => Ok(()),
            false => Err(Error::field(file, field, high, format!("it must be above {other} ({low})"))),
        };
        let original = |length: usize| {
            if length > 0 && length <= MAX_INDEX {
                return Ok(());
            }
            let field = "rope_parameters.original_max_position_embeddings";
            Err(Error::field(file, field, length, format!("give a length from 1 to {MAX_INDEX}")))
        };
        number("rope_theta", self.theta, 0.0)?;
        let factor = "rope_parameters.factor";
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor: by } | RopeScaling::Dynamic { factor: by } => number(factor, by, 1.0),
            RopeScaling::Yarn(yarn) => {
                if self.theta <= 1.0 {
                    return Err(Error::field(file, "rope_theta", self.theta, "yarn needs a base above 1"));
                }
                number(factor, yarn.factor, 1.0)?;
                number("rope_parameters.beta_slow", yarn.beta_slow, 0.0)?;
                number("rope_parameters.beta_fast", yarn.beta_fast, 0.0)?;
                number("rope_parameters.attention_factor", yarn.attention_factor, 0.0)?;
                ordered("rope_parameters.beta_fast", yarn.beta_fast, "beta_slow", yarn.beta_slow)?;
                original(yarn.original_max_position_embeddings)
            }
            RopeScaling::Llama3 { factor: by, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                number(factor, by, 0.0)?;
                number("rope_parameters.low_freq_factor", low_freq_factor, 0.0)?;
                number("rope_parameters.high_freq_factor", high_freq_factor, 0.0)?;
                let field = "rope_parameters.high_freq_factor";
                ordered(field, high_freq_factor, "low_freq_factor", low_freq_factor)?;
                original(original_max_position_embeddings)
            }
        }
    }
}

const ABOVE: &str = "give a finite number above zero";

fn read_scaling(fields: &Fields<'_>, positions: usize) -> Result<RopeScaling> {
    if fields.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
        return Err(fields.error("partial_rotary_factor", "only whole heads can be rotated"));
    }
    let key = if fields.has("rope_type") { "rope_type" } else { "type" };
    match fields.text(key)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: fields.required_number("factor")? }),
        Some("dynamic") => Ok(RopeScaling::Dynamic { factor: fields.required_number("factor")? }),
        Some("yarn") => Ok(RopeScaling::Yarn(read_yarn(fields, positions)?)),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: fields.required_number("factor")?,
            low_freq_factor: fields.required_number("low_freq_factor")?,
            high_freq_factor: fields.required_number("high_freq_factor")?,
            original_max_position_embeddings: fields.required_size("original_max_position_embeddings")?,
        }),
        Some(_) => Err(fields.error(key, "default, linear, dynamic, yarn and llama3 are supported")),
    }
}

/// As transformers fills in what is absent: the original context is the model's, the factor what the positions
/// are of it, and the factor on cosines follows from both `mscale` or from the factor.
fn read_yarn(fields: &Fields<'_>, positions: usize) -> Result<Yarn> {
    let original = fields.size("original_max_position_embeddings")?.unwrap_or(positions);
    let factor = match fields.number("factor")? {
        Some(factor) => factor,
        None => positions as f64 / original.max(1) as f64,
    };
    let paper = Yarn::new(factor, original);
    let weights = (fields.number("mscale")?, fields.number("mscale_all_dim")?);
    let attention_factor = match (fields.number("attention_factor")?, weights) {
        (Some(given), _) => given,
        (None, (Some(one), Some(all))) if one != 0.0 && all != 0.0 => magnitude(factor, one) / magnitude(factor, all),
        _ => paper.attention_factor,
    };
    Ok(Yarn {
        beta_fast: fields.number("beta_fast")?.unwrap_or(paper.beta_fast),
        beta_slow: fields.number("beta_slow")?.unwrap_or(paper.beta_slow),
        attention_factor,
        truncate: fields.flag("truncate")?.unwrap_or(paper.truncate),
        ..paper
    })
}

/// A longer context than the model was made for, as stated on the command line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeExtension {
    /// `linear:F`: positions divided by F.
    Linear(f64),
    /// `theta:X`: another base. It says nothing of how far the model then reaches.
    Theta(f64),
    /// `yarn:F`: YaRN with the paper's settings.
    Yarn(f64),
}

impl FromStr for RopeExtension {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no rope extension; give linear:F, theta:X or yarn:F, e.g. yarn:4");
        let (kind, number) = text.split_once(':').ok_or_else(wrong)?;
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let least = if kind == "theta" { "above" } else { "of at least" };
        if !number.is_finite() || number < 1.0 || kind == "theta" && number == 1.0 {
            return Err(format!("`{text}`: give a finite number {least} 1"));
        }
        match kind {
            "linear" => Ok(Self::Linear(number)),
            "theta" => Ok(Self::Theta(number)),
            "yarn" => Ok(Self::Yarn(number)),
            _ => Err(wrong()),
        }
    }
}

impl Config {
    /// The same model with its context extended: `linear` and `yarn` multiply its positions by their factor;
    /// `theta` gives it as many as are asked for, if those are more. Refused where the config stretches its
    /// frequencies by another rule, for one over the other is neither.
    pub fn extended(&self, by: RopeExtension, context: Option<usize>) -> Result<Config> {
        let mut config = self.clone();
        let (scaling, original, factor) = match (by, self.rope.scaling) {
            (RopeExtension::Theta(theta), scaling) => {
                config.rope = Rope { theta, scaling };
                config.max_positions = self.max_positions.max(context.unwrap_or(0));
                config.validate()?;
                return Ok(config);
            }
            (RopeExtension::Linear(factor), RopeScaling::None | RopeScaling::Dynamic { .. })
            | (RopeExtension::Linear(factor), RopeScaling::Linear { .. }) => {
                (RopeScaling::Linear { factor }, self.max_positions, factor)
            }
            (RopeExtension::Yarn(factor), RopeScaling::None | RopeScaling::Dynamic { .. }) => {
                (RopeScaling::Yarn(Yarn::new(factor, self.max_positions)), self.max_positions, factor)
            }
            (RopeExtension::Yarn(factor), RopeScaling::Yarn(own)) => {
                let original = own.original_max_position_embeddings;
                (RopeScaling::Yarn(Yarn::new(factor, original)), original, factor)
            }
            (RopeExtension::Linear(_) | RopeExtension::Yarn(_), own) => {
                let kind = own.name();
                let problem = format!(
                    "the model's own frequencies follow `{kind}`, and an extension of another kind cannot be put \
                     over it; state {kind}:F where there is such an extension, or theta:X, which keeps the rule"
                );
                return Err(Error::field(Path::new("config"), "rope_parameters.rope_type", kind, problem));
            }
        };
        config.rope.scaling = scaling;
        config.max_positions = ((original as f64 * factor) as usize).min(MAX_INDEX);
        config.validate()?;
        Ok(config)
    }

    /// Refuses a context beyond the model's positions, and says what to state to have it all the same.
    pub fn check_context(&self, context: usize) -> Result<()> {
        let available = self.max_positions;
        if context > 0 && context <= available {
            return Ok(());
        }
        Err(Error::Positions { context, available })
    }
}

impl RopeScaling {
    /// `rope_type` of transformers.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Yarn(_) => "yarn",
            Self::Llama3 { .. } => "llama3",
        }
    }
}

#[cfg(test)]
#[path = "rope_scaling_test.rs"]
mod tests;
