//! Opening what the command line names: devices, models.

use crate::cli::Global;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use tritter_model::generation_config::GenerationConfig;
use tritter_model::locate::{Located, locate};
use tritter_model::source::{FromCheckpoint, FromSeed};
use tritter_model::tensors::Checkpoint;
use tritter_model::tokenizer::Tokenizer;
use tritter_model::weights::{Form, Model};
use tritter_model::{Config, config::Family};
use tritter_runtime::Device;

/// Opens the device of `--device`, sets the threads, and says what was chosen and why.
pub(crate) fn device(global: &Global) -> Result<Device> {
    if let Some(threads) = global.threads {
        if threads == 0 {
            bail!("--threads must be at least 1");
        }
        // A second call in one process keeps the first pool; commands open one device.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let cuda = (global.device == "auto" || global.device.starts_with("cuda")).then(tritter_cuda::probe);
    if let (Some(tritter_cuda::Probe::Absent { why }), true) = (&cuda, global.device.starts_with("cuda")) {
        bail!("device `{}` is not available: {why}", global.device);
    }
    if let (Some(tritter_cuda::Probe::Driver { version }), true) = (&cuda, global.device.starts_with("cuda")) {
        bail!(
            "device `{}`: a driver for CUDA {version} is there, but this build has no CUDA kernels yet; use --device wgpu",
            global.device
        );
    }
    let choice = Device::choose(&global.device)?;
    let caps = choice.device.caps();
    let software = if caps.software { ", a software adapter" } else { "" };
    eprintln!("device: {} ({}{software}): {}", caps.id, caps.name, choice.reason);
    Ok(choice.device)
}

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
