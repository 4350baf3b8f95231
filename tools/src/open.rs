//! Opening the models that the command line names.

use crate::cli::{TableFormat, TernaryFormat, WeightArgs};
use crate::output;
use crate::plan::session::{self, May, Planned, Settings};
use anyhow::{Context, Result};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use tritter_model::generation_config::GenerationConfig;
use tritter_model::gguf::{self, Gguf};
use tritter_model::locate::{Located, locate};
use tritter_model::programs::Layout;
use tritter_model::seeded::Synthetic;
use tritter_model::source::{FromCheckpoint, Source, Stored};
use tritter_model::tensors::Checkpoint;
use tritter_model::tokenizer::Tokenizer;
use tritter_model::weights::{DenseFormat, Form, Formats, Model};
use tritter_model::{Config, config::Family};
use tritter_runtime::{DType, Device};

/// A model folder, GGUF file or preset, described but not loaded.
pub(crate) struct Opened {
    /// As named on the command line.
    pub(crate) name: String,
    /// Its folder; `None` for a file or preset.
    pub(crate) folder: Option<PathBuf>,
    /// The open file, if it is one.
    pub(crate) file: Option<Arc<Gguf>>,
    /// Its config.
    pub(crate) config: Config,
    /// How its weights are to be stored in memory.
    pub(crate) formats: WeightArgs,
}

impl Opened {
    /// Finds a model and reads its config.
    pub(crate) fn new(name: &str) -> Result<Opened> {
        let (folder, file, config) = match locate(name)? {
            Located::Folder(folder) => {
                let config = Config::load(&folder)?;
                (Some(folder), None, config)
            }
            Located::File(path) => {
                let file = Gguf::open(&path)?;
                let config = gguf::config::read_config(&file)?;
                (None, Some(Arc::new(file)), config)
            }
            Located::Preset(preset) => (None, None, preset.config(Family::Bitnet, None, None)),
        };
        Ok(Opened { name: name.into(), folder, file, config, formats: WeightArgs::default() })
    }

    /// The same with the formats that the command line asks for.
    pub(crate) fn with(self, formats: WeightArgs) -> Opened {
        Opened { formats, ..self }
    }

    /// The same with its positions extended as the command line states, for a context of so many tokens if one
    /// is asked for; a context beyond them is refused.
    pub(crate) fn reaching(mut self, context: Option<usize>) -> Result<Opened> {
        if let Some(by) = self.formats.rope {
            self.config = self.config.extended(by, context)?;
        }
        if let Some(context) = context {
            self.config.check_context(context)?;
        }
        Ok(self)
    }

    /// The folder; a preset has none.
    pub(crate) fn folder(&self) -> Result<&PathBuf> {
        self.folder.as_ref().with_context(|| match self.file {
            Some(_) => format!("`{}` is a GGUF file; `tritter convert` makes a model folder of it", self.name),
            None => {
                format!("`{}` is a preset: it has random weights and no tokenizer; name a model folder here", self.name)
            }
        })
    }

    /// The tokenizer of the folder, checked against the vocabulary.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = match &self.file {
            Some(file) => gguf::tokenizer::read_tokenizer(file)?
                .with_context(|| format!("`{}` has no tokenizer in its metadata", self.name))?,
            None => Tokenizer::load(&self.folder()?.join("tokenizer.json"))?,
        };
        tokenizer.check_vocab(&self.config)?;
        Ok(tokenizer)
    }

    /// Sampling defaults of the folder; a GGUF file has none.
    pub(crate) fn generation(&self) -> Result<GenerationConfig> {
        Ok(match &self.folder {
            Some(folder) => GenerationConfig::load(folder)?,
            None => GenerationConfig::default(),
        })
    }

    /// The weights: of the folder or file, checked against its config, or random ones of a preset.
    pub(crate) fn source(&self) -> Result<Box<dyn Source>> {
        if let Some(file) = &self.file {
            return Ok(Box::new(gguf::source::FromGguf::new(file.clone(), &self.config)?));
        }
        Ok(match &self.folder {
            Some(folder) => {
                let checkpoint = Arc::new(Checkpoint::open(folder)?);
                checkpoint.check(&self.config)?;
                Box::new(FromCheckpoint { checkpoint, quantization: self.config.quantization })
            }
            None => Box::new(Synthetic::new(&self.config, 0, DType::F32)),
        })
    }

    /// The formats to begin with: what the file has for embedding, head and dense projections, and what was
    /// asked for. `--weights auto` is 2 bits here.
    pub(crate) fn formats(&self, source: &dyn Source) -> Result<Formats> {
        let stored = |name: &str| -> Result<Option<DenseFormat>> {
            let spec = self.config.tensors().into_iter().find(|spec| spec.name == name);
            let stored = spec.map(|spec| source.stored(&spec)).transpose()?;
            Ok(stored.and_then(|stored| match stored {
                Stored::Floats(dtype) => Some(DenseFormat::floats(dtype)),
                Stored::Groups(groups) => Some(DenseFormat::groups(groups.dtype, groups.group)),
                Stored::Ternary { .. } => None,
            }))
        };
        let table = stored("model.embed_tokens.weight")?.unwrap_or(DenseFormat::F32);
        let dense = match self.config.is_ternary() {
            true => DenseFormat::F32,
            false => stored("model.layers.0.self_attn.q_proj.weight")?.unwrap_or(DenseFormat::F32),
        };
        let ternary = if self.formats.weights == TernaryFormat::T1 { DType::T1 } else { DType::T2 };
        let table = match self.formats.head {
            Some(asked) => asked.format(table),
            None => table,
        };
        Ok(Formats { ternary, table, dense, ..Formats::PLAIN })
    }

    /// Plans a session on a device; where memory is short, layers are streamed if they may be, then what is allowed
    /// is given up ([`crate::plan::session`]), and said.
    pub(crate) fn fit(
        &self,
        device: &Device,
        source: &dyn Source,
        layout: Layout,
        may: May,
        stream: bool,
    ) -> Result<Planned> {
        let formats = self.formats(source)?.on(device);
        let pack = self.formats.weights == TernaryFormat::Auto && self.config.is_ternary();
        let may = May { pack, ..may };
        session::fit_on(&self.config, device, Settings { formats, layout }, may, stream)
    }

    /// Describes the model on a device. Takes no memory there.
    pub(crate) fn describe(&self, device: &Device, source: &dyn Source, positions: usize) -> Result<Model> {
        let formats = self.formats(source)?.on(device);
        Ok(Model::with_formats(&self.config, Form::Run, formats, positions))
    }

    /// Loads the weights in running form; a preset gets random ones.
    pub(crate) fn load(&self, device: &Device, positions: usize) -> Result<Model> {
        let source = self.source()?;
        let model = self.describe(device, &*source, positions)?;
        self.fill(device, &*source, &model)?;
        Ok(model)
    }

    fn fill(&self, device: &Device, source: &dyn Source, model: &Model) -> Result<()> {
        let bar = output::progress(model.bytes(), "bytes");
        model.load_with(device, source, &|done, _| {
            bar.set_position(done);
            ControlFlow::Continue(())
        })?;
        bar.finish_and_clear();
        Ok(())
    }
}

impl TableFormat {
    /// The format in memory; groups are those of the file where it has the same integers.
    fn format(self, stored: DenseFormat) -> DenseFormat {
        const GROUP: usize = 64;
        let dtype = match self {
            TableFormat::F32 => return DenseFormat::F32,
            TableFormat::F16 => return DenseFormat::floats(DType::F16),
            TableFormat::Bf16 => return DenseFormat::floats(DType::Bf16),
            TableFormat::I8 => DType::I8,
            TableFormat::I6 => DType::I6,
            TableFormat::I4 => DType::I4,
        };
        if stored.dtype == dtype { stored } else { DenseFormat::groups(dtype, GROUP) }
    }
}
