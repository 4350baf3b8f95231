//! How a file says that rotary frequencies are stretched over longer contexts: read and written.
//!
//! Keys under the architecture's name, and what llama.cpp makes of them (`load_hparams` in `src/llama-model.cpp`,
//! `src/llama-context.cpp` and `ggml_rope_ext`):
//!
//! | key `rope.scaling.` | meaning |
//! |---|---|
//! | `type` | `none`, `linear` (also where it is absent) or `yarn` |
//! | `factor`, older `rope.scale_linear` | the factor F |
//! | `original_context_length` | yarn's first context; absent: `context_length` |
//! | `attn_factor` | a factor on cosines and sines, beside yarn's own `0.1 ln F + 1` |
//! | `yarn_beta_fast`, `yarn_beta_slow` | bounds of yarn's ramp, 32 and 1 |
//!
//! transformers' `attention_factor` (and what its `mscale` and `mscale_all_dim` give) is the whole factor on cosines
//! and sines, so it is `attn_factor · (0.1 ln F + 1)`. In the architectures that are written here llama.cpp reads
//! neither bound and always rounds the ends of the ramp: other bounds are read as the file gives them, but written
//! only on request ([`unheeded`]).
//!
//! The `llama3` rule stands in a file as its result, the divisors `rope_freqs.weight`. This program's own key
//! `tritter.rope_scaling` keeps numbers in f64: four of the `llama3` rule, or six of yarn (factor, first context,
//! both bounds, the factor on cosines and sines, and 1 where the ends of the ramp are rounded). It is believed where
//! it agrees with the keys above.

use super::config::Architecture;
use super::names::ROPE_FREQS;
use super::value::shortest;
use super::write::Entry;
use super::{Gguf, Metadata, TensorType};
use crate::config::{Config, MAX_INDEX, Rope, RopeScaling, Yarn};
use crate::error::{Error, Result};

/// Numbers of the rule in f64.
const OWN: &str = "tritter.rope_scaling";

/// The rule of a file whose sizes are those of `config`.
pub(super) fn read_scaling(gguf: &Gguf, config: &Config) -> Result<RopeScaling> {
    let keys = Keys { metadata: gguf.metadata(), architecture: Architecture::of(gguf.metadata())? };
    let m = keys.metadata;
    let kind = keys.name("type");
    let factor = match keys.number("factor", 1.0)? {
        None => keys.checked(format!("{}.rope.scale_linear", keys.architecture.name()), 1.0)?,
        given => given,
    };
    let own = gguf.numbers(OWN)?;
    let scaling = match m.text(&kind)? {
        None | Some("linear") => match factor {
            Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        },
        Some("none") => RopeScaling::None,
        Some("yarn") => RopeScaling::Yarn(keys.yarn(factor, config.max_positions, own.as_deref())?),
        Some(_) => return Err(m.error(&kind, "none, linear and yarn are supported")),
    };
    if !matches!(scaling, RopeScaling::Yarn(_)) {
        keys.only("attn_factor", &[1.0], "a factor on cosines and sines is supported with yarn alone")?;
        keys.only("yarn_ext_factor", &[0.0, -1.0], "it means something with yarn alone")?;
    }
    let ruled = by_divisors(gguf, config, own.as_deref())?;
    match (scaling, ruled) {
        (scaling, RopeScaling::None) => Ok(scaling),
        (RopeScaling::None, ruled) => Ok(ruled),
        _ => Err(m.error(&kind, "the file has rope_freqs.weight, too, and one rule over another is neither")),
    }
}

/// Metadata under `rope.scaling`.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: Architecture,
}

impl Keys<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}.rope.scaling.{name}", self.architecture.name())
    }

    /// A finite number of `least` at least and above zero.
    fn number(&self, name: &str, least: f64) -> Result<Option<f64>> {
        self.checked(self.name(name), least)
    }

    fn checked(&self, key: String, least: f64) -> Result<Option<f64>> {
        let number = self.metadata.number(&key)?;
        if number.is_some_and(|n| !(n.is_finite() && n > 0.0 && n >= least)) {
            let wanted = if least > 0.0 { format!("{least} or more") } else { "above zero".into() };
            return Err(self.metadata.error(&key, &format!("it should be a finite number, {wanted}")));
        }
        Ok(number)
    }

    /// Refuses a number that is there and is none of these.
    fn only(&self, name: &str, allowed: &[f64], problem: &str) -> Result<()> {
        let key = self.name(name);
        match self.metadata.number(&key)? {
            Some(number) if !allowed.contains(&number) => Err(self.metadata.error(&key, problem)),
            _ => Ok(()),
        }
    }

    fn yarn(&self, factor: Option<f64>, positions: usize, own: Option<&[f64]>) -> Result<Yarn> {
        let (m, key) = (self.metadata, |name| self.name(name));
        let factor = factor.ok_or_else(|| m.error(&key("factor"), "yarn needs it"))?;
        let original = m.size(&key("original_context_length"))?.unwrap_or(positions);
        if original == 0 || original > MAX_INDEX {
            let problem = format!("it should be a length from 1 to {MAX_INDEX}");
            return Err(m.error(&key("original_context_length"), &problem));
        }
        let usual = Yarn::new(factor, original);
        let yarn = Yarn {
            beta_fast: self.number("yarn_beta_fast", 0.0)?.unwrap_or(usual.beta_fast),
            beta_slow: self.number("yarn_beta_slow", 0.0)?.unwrap_or(usual.beta_slow),
            attention_factor: self.number("attn_factor", 0.0)?.unwrap_or(1.0) * usual.attention_factor,
            ..usual
        };
        if yarn.beta_fast <= yarn.beta_slow {
            let problem = format!("it must be above yarn_beta_slow ({})", yarn.beta_slow);
            return Err(m.error(&key("yarn_beta_fast"), &problem));
        }
        self.only("yarn_ext_factor", &[1.0, -1.0], "only the whole rule, 1, is supported")?;
        self.only("yarn_log_multiplier", &[0.0], "no architecture that is read here has it")?;
        // Some write transformers' attention_factor so, and some what is put beside yarn's own.
        if m.number(&key("yarn_attn_factor"))?.is_some_and(|n| !near(n, yarn.attention_factor)) {
            let problem = "programs differ in what it means; give attn_factor, which stands beside 0.1 ln F + 1";
            return Err(m.error(&key("yarn_attn_factor"), problem));
        }
        Ok(own.and_then(exact).filter(|own| agree(own, &yarn)).unwrap_or(yarn))
    }
}

/// Yarn of this program's own key.
fn exact(own: &[f64]) -> Option<Yarn> {
    let &[factor, original, beta_fast, beta_slow, attention_factor, truncate] = own else { return None };
    let usual = Yarn::new(factor, original as usize);
    Some(Yarn { beta_fast, beta_slow, attention_factor, truncate: truncate != 0.0, ..usual })
}

/// Whether two differ by no more than rounding to f32.
fn agree(a: &Yarn, b: &Yarn) -> bool {
    a.original_max_position_embeddings == b.original_max_position_embeddings
        && near(a.factor, b.factor)
        && near(a.beta_fast, b.beta_fast)
        && near(a.beta_slow, b.beta_slow)
        && near(a.attention_factor, b.attention_factor)
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

/// The rule behind `rope_freqs.weight`, which must be `llama3`.
fn by_divisors(gguf: &Gguf, config: &Config, own: Option<&[f64]>) -> Result<RopeScaling> {
    if !gguf.contains(ROPE_FREQS) {
        return Ok(RopeScaling::None);
    }
    let info = gguf.tensor(ROPE_FREQS)?;
    let fail = |problem: &str| Err(Error::tensor(gguf.path(), ROPE_FREQS, problem));
    if info.dtype != TensorType::F32 || info.width() != config.head_dim / 2 || info.rows() != 1 {
        return fail("should be f32, one for each pair of a head");
    }
    let mut divisors = vec![0.0; info.width()];
    super::floats::decode_row(info.dtype, gguf.bytes(info)?, &mut divisors);
    if divisors.iter().all(|&f| f == 1.0) {
        return Ok(RopeScaling::None);
    }
    match candidates(own, &divisors).find(|scaling| explains(config, *scaling, &divisors)) {
        Some(scaling) => Ok(scaling),
        None => fail("is not what the llama3 rule gives; other rules are not supported"),
    }
}

/// What the divisors may come from: the file's own word, else Llama 3's bounds 1 and 4 with any power of
/// two as the first context. The largest divisor is the rule's factor.
fn candidates(own: Option<&[f64]>, divisors: &[f32]) -> impl Iterator<Item = RopeScaling> {
    let largest = divisors.iter().copied().fold(1.0, f32::max);
    let own = match own {
        Some(&[factor, low, high, original]) => Some((factor, low, high, original)),
        _ => None,
    };
    let usual = (4..=24).map(move |power| (shortest(largest), 1.0, 4.0, f64::from(1 << power)));
    own.into_iter().chain(usual).map(|(factor, low_freq_factor, high_freq_factor, original)| RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original as usize,
    })
}

fn explains(config: &Config, scaling: RopeScaling, divisors: &[f32]) -> bool {
    let mut scaled = config.clone();
    scaled.rope.scaling = scaling;
    let expected = rope_divisors(&scaled);
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b.abs();
    scaled.validate().is_ok() && expected.len() == divisors.len() && divisors.iter().zip(&expected).all(near)
}

/// By how much each rotary frequency of a config is divided, `[d/2]`.
pub(super) fn rope_divisors(config: &Config) -> Vec<f32> {
    let plain = Rope { scaling: RopeScaling::None, ..config.rope };
    let pairs = plain.frequencies(config.head_dim).into_iter().zip(config.rope.frequencies(config.head_dim));
    pairs.map(|(plain, scaled)| (plain / scaled) as f32).collect()
}

/// What of a rule llama.cpp does not look at in the architectures that are written here, if anything: with such a
/// file it would turn keys otherwise.
pub(super) fn unheeded(scaling: RopeScaling) -> Option<String> {
    let RopeScaling::Yarn(yarn) = scaling else { return None };
    let usual = Yarn::new(yarn.factor, yarn.original_max_position_embeddings);
    if (yarn.beta_fast, yarn.beta_slow) != (usual.beta_fast, usual.beta_slow) {
        return Some(format!("yarn's beta_fast {} and beta_slow {} (not 32 and 1)", yarn.beta_fast, yarn.beta_slow));
    }
    (!yarn.truncate).then(|| "yarn's `truncate: false`".to_owned())
}

/// The metadata of a rule.
pub(super) fn entries(scaling: RopeScaling, architecture: Architecture) -> Vec<(String, Entry)> {
    let key = |name: &str| format!("{}.rope.scaling.{name}", architecture.name());
    let (kind, f32) = (|name: &str| (key("type"), Entry::Text(name.into())), |n: f64| Entry::F32(n as f32));
    match scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } => Vec::new(),
        RopeScaling::Linear { factor } => vec![kind("linear"), (key("factor"), f32(factor))],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = original_max_position_embeddings as f64;
            vec![(OWN.into(), Entry::F64s(vec![factor, low_freq_factor, high_freq_factor, original]))]
        }
        RopeScaling::Yarn(yarn) => {
            let Yarn { factor, beta_fast, beta_slow, attention_factor, truncate, .. } = yarn;
            let original = yarn.original_max_position_embeddings;
            let beside = attention_factor / Yarn::new(factor, original).attention_factor;
            let truncate = f64::from(u8::from(truncate));
            let own = vec![factor, original as f64, beta_fast, beta_slow, attention_factor, truncate];
            vec![
                kind("yarn"),
                (key("factor"), f32(factor)),
                (key("original_context_length"), Entry::U32(original as u32)),
                (key("attn_factor"), f32(beside)),
                (key("yarn_beta_fast"), f32(beta_fast)),
                (key("yarn_beta_slow"), f32(beta_slow)),
                (OWN.into(), Entry::F64s(own)),
            ]
        }
    }
}

#[cfg(test)]
#[path = "rope_test.rs"]
mod tests;
