//! Putting weights onto a device, one tensor at a time.

use crate::error::{Error, Result};
use crate::forward::abs_mean;
use crate::source::{Source, Ternary};
use crate::tensor_names::TensorSpec;
use crate::weights::{Linear, Matrix, Model};
use std::collections::HashMap;
use std::path::Path;
use tritter_runtime::ops::{copy, ternarize::Ternarize};
use tritter_runtime::{DType, Device, Graph, Tensor};

impl Model {
    /// Allocates all weights on a device and fills them. Masters of a model in running form are
    /// ternarised by the device's own kernels, one matrix in f32 at a time.
    pub fn load(&self, device: &Device, source: &mut dyn Source) -> Result<()> {
        device.check_budget("the weights", self.bytes(), "choose a smaller model or another device")?;
        let tensors: HashMap<String, Tensor> = self.tensors().into_iter().map(|t| (t.name().to_string(), t)).collect();
        let scales: HashMap<&str, (&Tensor, &Tensor)> = self.ternary_matrices().collect();
        let stage = Stage { device };
        for spec in self.config.tensors() {
            if let Some((codes, scale)) = scales.get(spec.name.as_str()) {
                match source.ternary(&spec)? {
                    Some(packed) => stage.write_packed(codes, scale, &packed)?,
                    None => stage.ternarize(codes, scale, &finite(&spec, source.floats(&spec)?)?)?,
                }
            } else if let Some(tensor) = tensors.get(&spec.name) {
                device.allocate(tensor)?;
                device.write(tensor, &finite(&spec, source.floats(&spec)?)?)?;
            }
        }
        for (tensor, values) in
            [(&self.rope.coarse, &self.rope.values.coarse), (&self.rope.fine, &self.rope.values.fine)]
        {
            device.allocate(tensor)?;
            device.write(tensor, values)?;
        }
        Ok(device.backend().wait()?)
    }

    /// Ternary matrices in running form: name, codes, scale.
    pub fn ternary_matrices(&self) -> impl Iterator<Item = (&str, (&Tensor, &Tensor))> {
        let linears = self.layers.iter().flat_map(|layer| layer.linears());
        linears.filter_map(|Linear { matrix, .. }| match matrix {
            Matrix::Ternary { codes, scale } => Some((codes.name(), (codes, scale))),
            _ => None,
        })
    }
}

/// Refuses weights that are not finite: they would turn every output into NaN.
fn finite(spec: &TensorSpec, values: Vec<f32>) -> Result<Vec<f32>> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(at) => {
            let problem =
                format!("holds {} at element {at}; the checkpoint is damaged or its training failed", values[at]);
            Err(Error::tensor(Path::new("weights"), &spec.name, problem))
        }
    }
}

struct Stage<'a> {
    device: &'a Device,
}

impl Stage<'_> {
    fn write_packed(&self, codes: &Tensor, scale: &Tensor, packed: &Ternary) -> Result<()> {
        self.device.allocate(codes)?;
        self.device.allocate(scale)?;
        self.device.write(codes, &packed.words)?;
        Ok(self.device.write(scale, &[packed.scale])?)
    }

    fn ternarize(&self, codes: &Tensor, scale: &Tensor, values: &[f32]) -> Result<()> {
        let shape = codes.spec().shape.clone();
        let master = &Tensor::input("master", shape.clone(), DType::F32);
        let mut g = Graph::new(format!("ternarise {}", codes.name()));
        let (w, t, s) = (g.bind(master), g.bind(codes), g.bind(scale));
        let mean = abs_mean(&mut g, w)?;
        copy::copy_into(&mut g, mean, s)?;
        g.record(Ternarize { n: shape[0] as u32, k: shape[1] as u32 }, &[w, s, t])?;
        let program = self.device.prepare(&g)?;
        self.device.write(master, values)?;
        program.submit()?;
        Ok(self.device.backend().wait()?)
    }
}
