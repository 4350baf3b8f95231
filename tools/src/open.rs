//! Opening the models that the command line names.

use crate::output;
use anyhow::{Context, Result};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use tritter_model::generation_config::GenerationConfig;
use tritter_model::locate::{Located, locate};
use tritter_model::seeded::Synthetic;
use tritter_model::source::{FromCheckpoint, Source};
use tritter_model::tensors::Checkpoint;
use tritter_model::tokenizer::Tokenizer;
use tritter_model::weights::{Form, Model};
use tritter_model::{Config, config::Family};
use tritter_runtime::{DType, Device};

/// A model folder or preset, described but not loaded.
pub(crate) struct Opened {
    /// As named on the command line.
    pub(crate) name: String,
    /// Its folder; `None` for a preset.
    pub(crate) folder: Option<PathBuf>,
    /// Its config.
    pub(crate) config: Config,
}

impl Opened {
    /// Finds a model and reads its config.
    pub(crate) fn new(name: &str) -> Result<Opened> {
        let (folder, config) = match locate(name)? {
            Located::Folder(folder) => {
                let config = Config::load(&folder)?;
                (Some(folder), config)
            }
            Located::Preset(preset) => (None, preset.config(Family::Bitnet, None, None)),
        };
        Ok(Opened { name: name.into(), folder, config })
    }

    /// The folder; a preset has none.
    pub(crate) fn folder(&self) -> Result<&PathBuf> {
        self.folder.as_ref().with_context(|| {
            format!("`{}` is a preset: it has random weights and no tokenizer; name a model folder here", self.name)
        })
    }

    /// The tokenizer of the folder, checked against the vocabulary.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::load(&self.folder()?.join("tokenizer.json"))?;
        tokenizer.check_vocab(&self.config)?;
        Ok(tokenizer)
    }

    /// Sampling defaults of the folder.
    pub(crate) fn generation(&self) -> Result<GenerationConfig> {
        Ok(match &self.folder {
            Some(folder) => GenerationConfig::load(folder)?,
            None => GenerationConfig::default(),
        })
    }

    /// The weights: of the folder, checked against its config, or random ones of a preset.
    pub(crate) fn source(&self) -> Result<Box<dyn Source>> {
        Ok(match &self.folder {
            Some(folder) => {
                let checkpoint = Arc::new(Checkpoint::open(folder)?);
                checkpoint.check(&self.config)?;
                Box::new(FromCheckpoint { checkpoint, quantization: self.config.quantization })
            }
            None => Box::new(Synthetic::new(&self.config, 0, DType::F32)),
        })
    }

    /// Loads the weights in running form; a preset gets random ones.
    pub(crate) fn load(&self, device: &Device, positions: usize) -> Result<Model> {
        let model = Model::new(&self.config, Form::Run, positions);
        let bar = output::progress(model.bytes(), "bytes");
        model.load_with(device, &*self.source()?, &|done, _| {
            bar.set_position(done);
            ControlFlow::Continue(())
        })?;
        bar.finish_and_clear();
        Ok(model)
    }
}
