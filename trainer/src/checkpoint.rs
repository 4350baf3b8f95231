//! The folder of a run: always a loadable model, and what is needed to go on.
//!
//! Order of writing: `config.json` and the tokenizer come first. A checkpoint of step N
//! makes `state-N.safetensors` (moments and progress) durable, then renames
//! `model.safetensors`, whose metadata carries N, into place: that is the commit point.
//! Older states go afterwards. So at any moment the model in the folder has the state of
//! its own step beside it, whatever was interrupted.

use crate::error::{Error, Result};
use crate::steps::Parameter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tritter_model::save::{prepare_masters, write_config};
use tritter_model::tensor_write::{TensorHeader, prepare_safetensors, sync_folder, write_atomic};
use tritter_model::tensors::{Checkpoint, Dtype, SINGLE_FILE};
use tritter_model::tokenizer::Tokenizer;
use tritter_model::weights::Model;
use tritter_model::{Config, generation_config::GenerationConfig};
use tritter_runtime::{Device, Tensor};

/// Metadata key of `model.safetensors` that carries the step.
pub const STEP_KEY: &str = "tritter.step";
const PROGRESS_KEY: &str = "tritter.progress";

/// A run's folder.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A folder for a new run; refuses one that already holds a model or a run. The folder is made
    /// when the run starts, so that a wrong setting leaves nothing behind.
    pub fn create(path: &Path) -> Result<RunFolder> {
        let folder = RunFolder { path: path.to_path_buf() };
        for name in [SINGLE_FILE, "config.json", "model.safetensors.index.json"] {
            if path.join(name).exists() {
                return Err(Error::Occupied { path: path.to_path_buf(), found: name.into() });
            }
        }
        if let Some(step) = folder.states()?.first() {
            return Err(Error::Occupied { path: path.to_path_buf(), found: state_name(*step) });
        }
        Ok(folder)
    }

    /// The folder of a run that is to go on. Where nothing is committed (the run was stopped before its
    /// first checkpoint, perhaps before the folder was made), it starts from the beginning.
    pub fn open(path: &Path) -> Result<RunFolder> {
        if path.exists() && !path.is_dir() {
            return Err(Error::NoRun { path: path.to_path_buf(), why: "it is a file, not a folder".into() });
        }
        Ok(RunFolder { path: path.to_path_buf() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what a model folder has beside weights.
    pub fn describe(&self, config: &Config, tokenizer: &Tokenizer) -> Result<()> {
        std::fs::create_dir_all(&self.path).map_err(|source| Error::io(&self.path, "create", source))?;
        tokenizer.save_folder(&self.path)?;
        let generation =
            GenerationConfig { eos_token_ids: config.eos_token_ids.clone(), ..GenerationConfig::default() };
        let json = generation.to_json(config.bos_token_id, config.pad_token_id);
        write_atomic(&self.path.join("generation_config.json"), format!("{json:#}\n").as_bytes())?;
        Ok(write_config(&self.path, config)?)
    }

    /// The step that the folder's model is committed at; `None` if nothing is committed yet.
    pub fn committed(&self) -> Result<Option<u64>> {
        let path = self.path.join(SINGLE_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let model = Checkpoint::open_file(&path)?;
        let step = model.metadata().get(STEP_KEY).and_then(|s| s.parse().ok());
        let why = || format!("`{SINGLE_FILE}` carries no `{STEP_KEY}`: it was not written by `tritter train`");
        step.map(Some).ok_or_else(|| Error::NoRun { path: self.path.clone(), why: why() })
    }

    /// Progress of the committed step; `None` if nothing is committed yet.
    pub fn progress<P: for<'de> Deserialize<'de>>(&self) -> Result<Option<P>> {
        let Some(step) = self.committed()? else { return Ok(None) };
        Ok(Some(self.progress_of(&self.open_state(step)?)?))
    }

    /// Refuses to go on with another model than the folder's.
    pub fn check_config(&self, config: &Config) -> Result<()> {
        let (found, wanted) = (Config::load(&self.path)?.to_json(), config.to_json());
        let (Some(found), Some(wanted)) = (found.as_object(), wanted.as_object()) else { return Ok(()) };
        match wanted.iter().find(|(key, value)| found.get(*key) != Some(value)) {
            None => Ok(()),
            Some((key, value)) => {
                let had = found.get(key).map_or("nothing".into(), ToString::to_string);
                let why = format!(
                    "its config.json has `{key}` {had}, the command line asks for {value}; give the same --preset, --arch and --tokenizer"
                );
                Err(Error::NoRun { path: self.path.clone(), why })
            }
        }
    }

    /// Commits a checkpoint of a step.
    pub fn save<P: Serialize>(
        &self,
        step: u64,
        progress: &P,
        model: &Model,
        parameters: &[Parameter],
        device: &Device,
    ) -> Result<()> {
        let progress = serde_json::to_string(progress).map_err(|e| Error::Internal(e.to_string()))?;
        let metadata = BTreeMap::from([(PROGRESS_KEY.to_string(), progress), (STEP_KEY.to_string(), step.to_string())]);
        let moments: Vec<&Tensor> = parameters.iter().flat_map(|p| [&p.first, &p.second]).collect();
        let header =
            |t: &&Tensor| TensorHeader { name: t.name().to_string(), dtype: Dtype::F32, shape: t.spec().shape.clone() };
        let headers: Vec<_> = moments.iter().map(header).collect();
        let state = self.path.join(state_name(step));
        prepare_safetensors(&state, &headers, &metadata, &mut |i, file| {
            device.read_in_pieces(moments[i], &mut |piece| Ok(file.write_all(piece)?))
        })?
        .commit()?;
        let metadata = BTreeMap::from([(STEP_KEY.to_string(), step.to_string())]);
        prepare_masters(&self.path, model, device, &metadata)?.commit()?;
        self.clean(step)
    }

    /// Removes states of other steps and files that an interrupted write left.
    fn clean(&self, keep: u64) -> Result<()> {
        for step in self.states()?.into_iter().filter(|&s| s != keep) {
            let path = self.path.join(state_name(step));
            std::fs::remove_file(&path).map_err(|source| Error::io(&path, "remove", source))?;
        }
        for entry in std::fs::read_dir(&self.path).map_err(|source| Error::io(&self.path, "list", source))?.flatten() {
            if entry.file_name().to_str().is_some_and(|n| n.starts_with(".state-") && n.ends_with(".tmp")) {
                // Left by a write that was interrupted; a later one of that step would replace it.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(sync_folder(&self.path)?)
    }

    fn open_state(&self, step: u64) -> Result<Checkpoint> {
        let path = self.path.join(state_name(step));
        if !path.exists() {
            let why = format!("the model is of step {step} but `{}` is missing", state_name(step));
            return Err(Error::NoRun { path: self.path.clone(), why });
        }
        Ok(Checkpoint::open_file(&path)?)
    }

    fn progress_of<P: for<'de> Deserialize<'de>>(&self, state: &Checkpoint) -> Result<P> {
        let damaged = |why: String| Error::NoRun { path: state.path().to_path_buf(), why };
        let progress = state.metadata().get(PROGRESS_KEY).ok_or_else(|| damaged("it carries no progress".into()))?;
        serde_json::from_str(progress).map_err(|e| damaged(format!("its progress cannot be read ({e})")))
    }

    /// Reads the state of a committed step into the parameters' moments; gives the progress.
    pub fn load_state<P: for<'de> Deserialize<'de>>(
        &self,
        step: u64,
        parameters: &[Parameter],
        device: &Device,
    ) -> Result<P> {
        let state = self.open_state(step)?;
        for tensor in parameters.iter().flat_map(|p| [&p.first, &p.second]) {
            let values = state.f32(tensor.name(), &tensor.spec().shape)?;
            device.write(tensor, &values)?;
        }
        self.progress_of(&state)
    }

    /// Steps of the state files in the folder, ascending.
    fn states(&self) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Ok(steps) };
        for entry in entries {
            let entry = entry.map_err(|source| Error::io(&self.path, "list", source))?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|n| n.strip_prefix("state-")?.strip_suffix(".safetensors"));
            steps.extend(number.and_then(|n| n.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }
}

fn state_name(step: u64) -> String {
    format!("state-{step}.safetensors")
}
