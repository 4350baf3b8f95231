//! Random weights that any thread can make from any row on: every row has a generator of its own, seeded
//! by the seed, the tensor's name and the row. Equal seeds give equal weights for any number of threads
//! and any order of reading.

use crate::config::Config;
use crate::error::Result;
use crate::packed::{ZEROS, dequantise_row, row_words};
use crate::source::{Source, Stored, width};
use crate::tensor_names::{Kind, TensorSpec};
use tritter_runtime::DType;
use tritter_runtime::random::Random;

/// Standard deviation of embeddings and of dense matrices (Radford et al. 2019).
const STD: f64 = 0.02;

/// The generator of one row.
fn generator(seed: u64, spec: &TensorSpec, row: usize) -> Random {
    let name = spec.name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3) // FNV-1a
    });
    // Two steps of the generator mix what the three have in common out of neighbouring rows.
    let mut mix = Random::new(seed ^ name);
    let mut mix = Random::new(mix.bits() ^ (row as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93));
    Random::new(mix.bits())
}

/// Output projections of the residual branches are smaller by `1/sqrt(2·layers)` (Radford et al. 2019).
fn closing(config: &Config, spec: &TensorSpec) -> f64 {
    let closes = spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
    if closes { 1.0 / (2.0 * config.num_layers as f64).sqrt() } else { 1.0 }
}

/// Initial weights of training: matrices normal with standard deviation 0.02 (output projections of the
/// residual branches scaled by `1/sqrt(2·layers)`), norms 1, biases 0.
pub struct FromSeed {
    config: Config,
    seed: u64,
}

impl FromSeed {
    /// Weights for a config.
    pub fn new(config: &Config, seed: u64) -> Self {
        FromSeed { config: config.clone(), seed }
    }
}

impl Source for FromSeed {
    fn stored(&self, _spec: &TensorSpec) -> Result<Stored> {
        Ok(Stored::Floats(DType::F32))
    }

    fn floats(&self, spec: &TensorSpec, first: usize, out: &mut [f32]) -> Result<()> {
        let std = STD * closing(&self.config, spec);
        for (i, row) in out.chunks_mut(width(spec)).enumerate() {
            match spec.kind {
                Kind::Norm => row.fill(1.0),
                Kind::Bias => row.fill(0.0),
                Kind::Embedding | Kind::Linear { .. } => {
                    let mut random = generator(self.seed, spec, first + i);
                    row.fill_with(|| (std * random.normal()) as f32);
                }
            }
        }
        Ok(())
    }

    fn codes(&self, _spec: &TensorSpec, _first: usize, out: &mut [u32]) -> Result<()> {
        out.fill(ZEROS);
        Ok(())
    }
}

/// Weights of a model that was never trained, for tests and measurements: fast to make in any size, and
/// activations keep their size from layer to layer. Ternary matrices are codes, -1, 0 and 1 with equal
/// probability, and a scale of `1/sqrt(2k/3)`, so that a row of k of them has the norm 1; floats are
/// uniform with standard deviation 0.02, norms 1, biases 0.
pub struct Synthetic {
    config: Config,
    seed: u64,
    floats: DType,
    masters: bool,
}

impl Synthetic {
    /// Weights for a config. Floats are held as `floats`: f32, or bf16, to which they are rounded.
    pub fn new(config: &Config, seed: u64, floats: DType) -> Self {
        Synthetic { config: config.clone(), seed, floats, masters: false }
    }

    /// The same with masters, distributed as the other floats, in place of codes.
    pub fn with_masters(self) -> Self {
        Synthetic { masters: true, ..self }
    }

    fn scale(&self, spec: &TensorSpec) -> f32 {
        let scale = closing(&self.config, spec) / (width(spec) as f64 * 2.0 / 3.0).sqrt();
        self.rounded(scale as f32)
    }

    fn rounded(&self, value: f32) -> f32 {
        match self.floats {
            DType::Bf16 => half::bf16::from_f32(value).to_f32(),
            _ => value,
        }
    }
}

impl Source for Synthetic {
    fn stored(&self, spec: &TensorSpec) -> Result<Stored> {
        Ok(match spec.kind {
            Kind::Linear { ternary: true } if !self.masters => Stored::Ternary { scale: self.scale(spec) },
            _ => Stored::Floats(self.floats),
        })
    }

    fn floats(&self, spec: &TensorSpec, first: usize, out: &mut [f32]) -> Result<()> {
        let k = width(spec);
        // Uniform in ±√3 σ, from 16 bits.
        let step = (2.0 * 3f64.sqrt() * STD * closing(&self.config, spec) / 65_536.0) as f32;
        let mut words = vec![0; row_words(k)];
        for (i, row) in out.chunks_mut(k).enumerate() {
            match spec.kind {
                Kind::Norm => row.fill(1.0),
                Kind::Bias => row.fill(0.0),
                Kind::Linear { ternary: true } if !self.masters => {
                    self.codes(spec, first + i, &mut words)?;
                    dequantise_row(&words, self.scale(spec), row);
                }
                Kind::Embedding | Kind::Linear { .. } => {
                    let mut random = generator(self.seed, spec, first + i);
                    for four in row.chunks_mut(4) {
                        let bits = random.bits();
                        for (place, value) in four.iter_mut().enumerate() {
                            let uniform = (bits >> (16 * place)) as u16;
                            *value = self.rounded((f32::from(uniform) - 32_767.5) * step);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn codes(&self, spec: &TensorSpec, first: usize, out: &mut [u32]) -> Result<()> {
        let k = width(spec);
        for (i, words) in out.chunks_mut(row_words(k)).enumerate() {
            let mut random = generator(self.seed, spec, first + i);
            words.fill_with(|| sixteen(random.bits()));
            if let (Some(last), rest @ 1..) = (words.last_mut(), k % 16) {
                let kept = (1u32 << (2 * rest)) - 1;
                *last = *last & kept | ZEROS & !kept;
            }
        }
        Ok(())
    }
}

/// 16 codes, 0, 1 and 2 with equal probability: the first digits to the base 3 of a number in `[0, 1)`
/// of 64 bits, a digit by multiplication. Each digit's bias is below `3^16 / 2^64`.
fn sixteen(bits: u64) -> u32 {
    let mut rest = bits;
    let mut word = 0;
    for place in 0..16 {
        let product = u128::from(rest) * 3;
        word |= ((product >> 64) as u32) << (2 * place);
        rest = product as u64;
    }
    word
}

/// Codes and scale are checked by tests of the rows that use them; this one is about their distribution.
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Family;
    use crate::presets::preset;
    use crate::source::rows;

    fn spec(kind: Kind) -> TensorSpec {
        TensorSpec { name: "model.layers.0.self_attn.q_proj.weight".into(), shape: vec![64, 250], kind }
    }

    #[test]
    fn any_part_of_a_tensor_is_the_same_as_in_the_whole() {
        let config = preset("test").unwrap().config(Family::Bitnet, None, None);
        let sources: [&dyn Source; 3] = [
            &FromSeed::new(&config, 9),
            &Synthetic::new(&config, 9, DType::F32),
            &Synthetic::new(&config, 9, DType::Bf16),
        ];
        for source in sources {
            for kind in [Kind::Linear { ternary: true }, Kind::Embedding] {
                let spec = spec(kind);
                let (mut whole, mut part) = (vec![0.0; 64 * 250], vec![0.0; 5 * 250]);
                source.floats(&spec, 0, &mut whole).unwrap();
                source.floats(&spec, 17, &mut part).unwrap();
                assert_eq!(part, whole[17 * 250..22 * 250]);
                assert_ne!(whole[..250], whole[250..500]);
            }
        }
    }

    #[test]
    fn codes_are_uniform_and_rows_have_the_norm_one() {
        let config = preset("test").unwrap().config(Family::Bitnet, None, None);
        let (source, spec) = (Synthetic::new(&config, 1, DType::F32), spec(Kind::Linear { ternary: true }));
        let mut values = vec![0.0; rows(&spec) * width(&spec)];
        source.floats(&spec, 0, &mut values).unwrap();
        for sign in [-1.0, 0.0, 1.0] {
            let share =
                values.iter().filter(|v| v.partial_cmp(&&0.0) == sign.partial_cmp(&0.0)).count() as f64 / 16_000.0;
            assert!((share - 1.0 / 3.0).abs() < 0.02, "{sign}: {share}");
        }
        let norm: f32 = values.iter().map(|v| v * v).sum::<f32>() / 64.0;
        assert!((norm - 1.0).abs() < 0.03, "{norm}");
        let mut words = vec![0; 64 * row_words(250)];
        source.codes(&spec, 0, &mut words).unwrap();
        assert!(!tritter_runtime::layout::has_code_three(&words));
        assert!(words.chunks(row_words(250)).all(|row| row[15] >> 20 == ZEROS >> 20));
    }
}
