//! The one error type of this crate: every message names what was wrong, where
//! (file, field or tensor) and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error, as a callback that streams tensor bytes may return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong with configs, checkpoints, tokenizers and sampling.
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
    /// A file that should be JSON is not.
    #[error("{}: not valid JSON ({source}); the file is damaged or of another kind", path.display())]
    Json {
        /// File concerned.
        path: PathBuf,
        /// Position and nature of the fault.
        source: serde_json::Error,
    },
    /// A field of a JSON file is missing, of the wrong type or impossible.
    #[error("{}: `{field}` is {value}: {problem}", path.display())]
    Field {
        /// File concerned (`config` where a config did not come from a file).
        path: PathBuf,
        /// Field, dotted where nested.
        field: String,
        /// Value found, as JSON, or `missing`.
        value: String,
        /// Why it cannot be used and what to do.
        problem: String,
    },
    /// A checkpoint file or folder as a whole cannot be used.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// File or folder concerned.
        path: PathBuf,
        /// Why it cannot be used and what to do.
        problem: String,
    },
    /// One tensor of a checkpoint cannot be used or written.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    Tensor {
        /// File or folder concerned.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Why it cannot be used and what to do.
        problem: String,
    },
    /// The callback that supplies a tensor's bytes failed.
    #[error("{}: tensor `{tensor}` could not be produced: {source}", path.display())]
    Source {
        /// File being written.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The callback's error.
        source: BoxError,
    },
    /// A tokenizer cannot be loaded, trained, used or stored.
    #[error("{}: {problem}", path.display())]
    Tokenizer {
        /// File concerned (`tokenizer` where it did not come from a file).
        path: PathBuf,
        /// Why and what to do.
        problem: String,
    },
    /// A `MODEL` argument names nothing that exists here.
    #[error("{0}")]
    NotFound(String),
    /// More positions are asked for than there are.
    #[error("{needed} positions are needed but only {available} are there; use a longer --context or less text")]
    Context {
        /// Positions needed.
        needed: usize,
        /// Positions available.
        available: usize,
    },
    /// The pool of pages is used up.
    #[error(
        "the cache has no free page for sequence {sequence}: all {pages} are held; fewer sequences, a smaller cache type or more pages would help"
    )]
    Pages {
        /// The sequence that cannot go on.
        sequence: usize,
        /// Pages of the pool.
        pages: usize,
    },
    /// A context beyond the positions that the model was made for.
    #[error(
        "a context of {context} tokens: the model has positions 1 to {available} (max_position_embeddings in \
         config.json); use one within them, or state how to extend it (--rope linear:F, theta:X or yarn:F)"
    )]
    Positions {
        /// Positions asked for.
        context: usize,
        /// Positions that it has.
        available: usize,
    },
    /// A token id that the model does not have.
    #[error("token id {id} is outside the vocabulary of {vocab}; the tokenizer belongs to another model")]
    Vocabulary {
        /// The id.
        id: u32,
        /// Size of the model's vocabulary.
        vocab: usize,
    },
    /// A session is asked for what it was not planned for.
    #[error("session: {0}")]
    Session(String),
    /// Recording, planning or running.
    #[error(transparent)]
    Runtime(#[from] tritter_runtime::Error),
    /// A long operation ended early because its caller asked for that.
    #[error("stopped before it was done")]
    Stopped,
    /// Logits or sampling settings cannot be sampled from.
    #[error("sampling: {0}")]
    Sampling(String),
}

impl Error {
    /// An [`Error::Io`] maker for `map_err`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    pub(crate) fn field(
        path: &Path,
        field: impl Into<String>,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> Self {
        Self::Field { path: path.to_path_buf(), field: field.into(), value: value.to_string(), problem: problem.into() }
    }

    pub(crate) fn checkpoint(path: &Path, problem: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), problem: problem.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_path_buf(), tensor: tensor.to_owned(), problem: problem.into() }
    }

    pub(crate) fn tokenizer(path: &Path, problem: impl Into<String>) -> Self {
        Self::Tokenizer { path: path.to_path_buf(), problem: problem.into() }
    }
}

/// Reads and parses a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}
