//! The one error type of this crate: what went wrong, where, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// File or folder concerned.
        path: PathBuf,
        /// What was being done, as a verb ("open", "write").
        action: &'static str,
        /// The system's own error.
        source: io::Error,
    },
    /// Training data that cannot be used.
    #[error("{place}: {problem}")]
    Data {
        /// File, `file:line`, or what stands for the data as a whole.
        place: String,
        /// Why it cannot be used and what to do.
        problem: String,
    },
    /// A setting is impossible.
    #[error("`{name}` is {value}: {problem}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Value given.
        value: String,
        /// Why it cannot be used and what to do.
        problem: String,
    },
    /// The folder for a new run already holds something.
    #[error("{} already holds `{found}`: resume that run, or give a folder of its own to the new one", path.display())]
    Occupied {
        /// Folder.
        path: PathBuf,
        /// File found there.
        found: String,
    },
    /// There is no run to resume.
    #[error("{}: no run to resume: {why}", path.display())]
    NoRun {
        /// Folder or file.
        path: PathBuf,
        /// What is missing or damaged.
        why: String,
    },
    /// Training does not go on.
    #[error(
        "{skipped} updates in a row were skipped up to step {step} because loss or gradient was not finite; {last}: resume with a smaller --lr or other data"
    )]
    Diverged {
        /// Steps done.
        step: u64,
        /// Updates skipped.
        skipped: u64,
        /// What is kept.
        last: String,
    },
    /// A fault of this program.
    #[error("internal error: {0}; please report it")]
    Internal(String),
    /// Model, tokenizer or checkpoint.
    #[error(transparent)]
    Model(#[from] tritter_model::Error),
    /// Recording, planning or running.
    #[error(transparent)]
    Runtime(#[from] tritter_runtime::Error),
}

impl Error {
    /// An [`Error::Io`].
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Error {
        Error::Io { path: path.to_path_buf(), action, source }
    }

    /// An [`Error::Data`].
    pub(crate) fn data(place: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Data { place: place.into(), problem: problem.into() }
    }

    /// An [`Error::Setting`].
    pub(crate) fn setting(name: &'static str, value: impl ToString, problem: impl Into<String>) -> Error {
        Error::Setting { name, value: value.to_string(), problem: problem.into() }
    }
}
