//! Masters made ternary on the host (absmean, Ma et al. 2024, equations 1 to 3), by rows and in threads.
//!
//! Scale and codes are bit for bit those of the runtime's `reduce` and `ternarize` on the CPU device,
//! whatever device the model is loaded to: a model loaded from masters is the same everywhere. A GPU adds
//! the magnitudes up in another order when it trains, so its scale may differ in the last bits; then a code
//! may differ whose weight lies within about 1e-7 of half the scale.

use crate::error::{Error, Result};
use crate::packed::row_words;
use crate::source::{Source, Stored, rows, width};
use crate::tensor_names::TensorSpec;
use rayon::prelude::*;
use std::path::Path;
use tritter_runtime::ops::{reduce, ternarize};

/// Least scale, so that a matrix of zeros has one (as in [`crate::forward`]).
const FLOOR: f64 = 1e-5_f32 as f64;

/// A matrix as ternary codes and a scale, whether it is stored so or as masters.
pub struct Codes<'a> {
    source: &'a dyn Source,
    spec: &'a TensorSpec,
    masters: bool,
    /// The factor that multiplies the codes.
    pub scale: f32,
}

impl<'a> Codes<'a> {
    /// Finds the scale; for masters this reads them all.
    pub fn new(source: &'a dyn Source, spec: &'a TensorSpec) -> Result<Self> {
        let (masters, scale) = match source.stored(spec)? {
            Stored::Ternary { scale } => (false, scale),
            Stored::Floats(_) | Stored::Groups(_) => (true, abs_mean(source, spec)?),
        };
        Ok(Codes { source, spec, masters, scale })
    }

    /// Codes of whole rows from row `first`, as many as `out` takes.
    pub fn read(&self, first: usize, out: &mut [u32]) -> Result<()> {
        if !self.masters {
            return self.source.codes(self.spec, first, out);
        }
        let k = width(self.spec);
        let words = row_words(k);
        let mut values = vec![0.0; out.len() / words.max(1) * k];
        self.source.floats(self.spec, first, &mut values)?;
        for (row, out) in values.chunks(k).zip(out.chunks_mut(words)) {
            ternarize::pack_row(row, 1.0 / self.scale, out);
        }
        Ok(())
    }
}

/// `max(mean|w|, 1e-5)` of a matrix of masters.
pub fn abs_mean(source: &dyn Source, spec: &TensorSpec) -> Result<f32> {
    let (n, k) = (rows(spec), width(spec));
    let block = reduce::block_elements(n, k);
    let magnitudes = |x: &[f32]| reduce::sum_of(x.len(), |i| x[i].abs());
    let sums: Vec<f64> = if block.is_multiple_of(k) {
        let most = block / k;
        let blocks = (0..n.div_ceil(most)).into_par_iter().map(|b| {
            let first = b * most;
            let mut x = vec![0.0; most.min(n - first) * k];
            source.floats(spec, first, &mut x)?;
            Ok(magnitudes(&x))
        });
        blocks.collect::<Result<_>>()?
    } else {
        let mut x = vec![0.0; n * k];
        source.floats(spec, 0, &mut x)?;
        x.chunks(block).map(magnitudes).collect()
    };
    let sum = match sums[..] {
        [one] => one,
        // Sums of several blocks are stored in f32 before they are added up.
        _ => reduce::sum_of(sums.len(), |i| sums[i] as f32),
    };
    let mean = f64::from(1.0 / (n * k) as f32) * sum;
    let scale = if mean < FLOOR { FLOOR as f32 } else { mean as f32 };
    if scale.is_finite() { Ok(scale) } else { Err(not_finite(source, spec)) }
}

/// The error about the first value that is not finite.
fn not_finite(source: &dyn Source, spec: &TensorSpec) -> Error {
    let k = width(spec);
    let mut row = vec![0.0; k];
    for first in 0..rows(spec) {
        if let Err(fault) = source.floats(spec, first, &mut row).and_then(|()| finite(spec, first * k, &row)) {
            return fault;
        }
    }
    Error::tensor(Path::new("weights"), &spec.name, "has values so large that their mean is not finite")
}

/// Refuses weights that are not finite: they would turn every output into NaN. `first` is the place of
/// the first of them in the tensor.
pub fn finite(spec: &TensorSpec, first: usize, values: &[f32]) -> Result<()> {
    const EXPONENT: u32 = 0x7F80_0000;
    let bad = |v: f32| v.to_bits() & EXPONENT == EXPONENT;
    // Without a way out of the loop it runs in vectors.
    if !values.iter().fold(false, |seen, &v| seen | bad(v)) {
        return Ok(());
    }
    let at = values.iter().position(|&v| bad(v)).unwrap_or_default();
    let problem =
        format!("holds {} at element {}; the checkpoint is damaged or its training failed", values[at], first + at);
    Err(Error::tensor(Path::new("weights"), &spec.name, problem))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Family;
    use crate::forward::abs_mean as recorded_mean;
    use crate::presets::preset;
    use crate::seeded::FromSeed;
    use crate::tensor_names::Kind;
    use tritter_runtime::{DType, Graph, Tensor};

    /// The two ops on the CPU device.
    fn on_the_device(values: &[f32], shape: &[usize]) -> (f32, Vec<u32>) {
        let device = tritter_runtime::cpu::open();
        let master = Tensor::input("master", shape.to_vec(), DType::F32);
        let codes = Tensor::state("codes", shape.to_vec(), DType::T2);
        let scale = Tensor::state("scale", [1], DType::F32);
        let mut g = Graph::new("ternarise");
        let (w, t, s) = (g.bind(&master), g.bind(&codes), g.bind(&scale));
        let mean = recorded_mean(&mut g, w).unwrap();
        tritter_runtime::ops::copy::copy_into(&mut g, mean, s).unwrap();
        g.record(ternarize::Ternarize { n: shape[0] as u32, k: shape[1] as u32 }, &[w, s, t]).unwrap();
        let program = device.prepare(&g).unwrap();
        device.write(&master, values).unwrap();
        program.submit().unwrap();
        (device.read::<f32>(&scale).unwrap()[0], device.read(&codes).unwrap())
    }

    #[test]
    fn scale_and_codes_are_those_of_the_cpu_device() {
        let config = preset("test").unwrap().config(Family::Bitnet, None, None);
        for shape in [[1, 1], [3, 7], [40, 100], [255, 33], [257, 65], [300, 1031], [1024, 16]] {
            let source = FromSeed::new(&config, 3);
            let spec = TensorSpec { name: "w".into(), shape: shape.to_vec(), kind: Kind::Linear { ternary: true } };
            let mut values = vec![0.0; shape[0] * shape[1]];
            source.floats(&spec, 0, &mut values).unwrap();
            let (scale, expected) = on_the_device(&values, &shape);
            let codes = Codes::new(&source, &spec).unwrap();
            assert_eq!(codes.scale.to_bits(), scale.to_bits(), "{shape:?}");
            let mut words = vec![0; expected.len()];
            codes.read(0, &mut words).unwrap();
            assert_eq!(words, expected, "{shape:?}");
        }
    }
}
