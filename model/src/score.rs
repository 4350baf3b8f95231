//! One whole forward pass without a cache: logits of every position, and what is inside.

use crate::error::{Error, Result};
use crate::forward::{self, Stream, Trace};
use crate::weights::Model;
use tritter_runtime::device::Program;
use tritter_runtime::ops::copy;
use tritter_runtime::{DType, Device, Graph, Tensor};

/// A program for sequences of one total length.
pub struct Scorer {
    device: Device,
    stream: Stream,
    logits: Tensor,
    points: Vec<(String, Tensor)>,
    program: Box<dyn Program>,
    vocab: usize,
}

impl Scorer {
    /// Compiles a pass over `m` tokens; with `inside`, named values can be read afterwards.
    pub fn new(device: &Device, model: &Model, m: usize, inside: bool) -> Result<Scorer> {
        let stream = Stream::new("score", m);
        let mut g = Graph::new("score");
        let mut trace = Trace::default();
        let x = forward::hidden(&mut g, model, &stream, None, DType::F32, &mut trace)?;
        let y = forward::logits(&mut g, model, x)?;
        let logits = Tensor::state("score.logits", [m, model.config.vocab_size], DType::F32);
        let target = g.bind(&logits);
        copy::copy_into(&mut g, y, target)?;
        let mut points = Vec::new();
        for (name, value) in trace.points.into_iter().filter(|_| inside) {
            let tensor = Tensor::state(name.clone(), g.spec(value).shape.clone(), DType::F32);
            let target = g.bind(&tensor);
            copy::copy_into(&mut g, value, target)?;
            points.push((name, tensor));
        }
        let program = device.prepare(&g)?;
        Ok(Scorer { device: device.clone(), stream, logits, points, program, vocab: model.config.vocab_size })
    }

    /// Runs `batch` sequences of equal length, laid end to end; gives logits `[M, V]`.
    pub fn run(&self, ids: &[u32], batch: usize) -> Result<Vec<f32>> {
        let m = self.stream.len();
        if ids.len() != m || batch == 0 || !m.is_multiple_of(batch) {
            return Err(Error::Context { needed: ids.len(), available: m });
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(Error::Vocabulary { id: *id, vocab: self.vocab });
        }
        let length = m / batch;
        let positions: Vec<u32> = (0..m).map(|i| (i % length) as u32).collect();
        let span: Vec<u32> = (0..m).flat_map(|i| [(i / length * length) as u32, i as u32]).collect();
        self.device.write(&self.stream.ids, ids)?;
        self.device.write(&self.stream.positions, &positions)?;
        self.device.write(&self.stream.span, &span)?;
        self.program.submit()?;
        Ok(self.device.read(&self.logits)?)
    }

    /// A value inside, after a run.
    pub fn inside(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self.points.iter().find(|(n, _)| n == name) {
            Some((_, tensor)) => Ok(Some(self.device.read(tensor)?)),
            None => Ok(None),
        }
    }
}
