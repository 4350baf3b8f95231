//! Opening the models that the command line names.

use anyhow::{Context, Result};
use std::path::PathBuf;
use tritter_model::generation_config::GenerationConfig;
use tritter_model::locate::{Located, locate};
use tritter_model::source::{FromCheckpoint, FromSeed};
use tritter_model::tensors::Checkpoint;
use tritter_model::tokenizer::Tokenizer;
use tritter_model::weights::{Form, Model};
use tritter_model::{Config, config::Family};
use tritter_runtime::Device;

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

    /// Loads the weights in running form; a preset gets random ones.
    pub(crate) fn load(&self, device: &Device, positions: usize) -> Result<Model> {
        let model = Model::new(&self.config, Form::Run, positions);
        match &self.folder {
            Some(folder) => {
                let checkpoint = Checkpoint::open(folder)?;
                checkpoint.check(&self.config)?;
                let quantization = self.config.quantization;
                model.load(device, &mut FromCheckpoint { checkpoint: &checkpoint, quantization })?;
            }
            None => model.load(device, &mut FromSeed::new(&self.config, 0))?,
        }
        Ok(model)
    }
}
