//! GGUF files: models in one file, as llama.cpp and bitnet.cpp read them.
//!
//! [`Gguf`] opens a file by memory mapping and checks its whole header; tensors are decoded row by
//! row when they are asked for. What the metadata mean is in [`config`], `rope` and [`tokenizer`], names
//! and row orders in [`names`], bit orders in [`floats`] and [`codes`]. [`source`] makes an open file
//! a source of weights, [`write`](mod@write) writes one, [`export`] and [`import`] go between these
//! files and Hugging Face folders.

mod cursor;
mod header;
mod pre;
mod rope;
mod value;

pub mod codes;
pub mod config;
pub mod export;
pub mod floats;
pub mod import;
pub mod matrix;
pub mod names;
pub mod source;
pub mod tokenizer;
pub mod types;
pub mod write;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::mmap::Map;
pub use header::TensorInfo;
pub use types::TensorType;
pub use value::{Metadata, Value};

/// An open file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Map,
    header: header::Header,
}

impl Gguf {
    /// Opens a file and checks its header; no tensor is read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(path, Map::open(path)?)
    }

    /// As [`Gguf::open`] for bytes in memory; errors call them `gguf`.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::of(value::no_path(), Map::from_bytes(bytes))
    }

    fn of(path: &Path, map: Map) -> Result<Self> {
        let header = header::read_header(path, &map)?;
        Ok(Gguf { path: path.to_path_buf(), map, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// Its tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.header.tensors.values()
    }

    /// Whether a tensor of that name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// Bytes of all tensors together.
    pub fn data_bytes(&self) -> u64 {
        self.tensors().map(|t| (t.end - t.start) as u64).sum()
    }

    /// A tensor's description.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || Error::tensor(&self.path, name, "is missing; the file is of another model");
        self.header.tensors.get(name).ok_or_else(missing)
    }

    /// A tensor's stored bytes.
    pub fn bytes(&self, tensor: &TensorInfo) -> Result<&[u8]> {
        let outside = || Error::tensor(&self.path, &tensor.name, "lies outside the file");
        self.map.get(tensor.start..tensor.end).ok_or_else(outside)
    }

    /// Says that the bytes of these rows will not be read soon (see [`Map::release`]).
    pub(crate) fn release(&self, tensor: &TensorInfo, rows: std::ops::Range<usize>) {
        let row = (tensor.end - tensor.start) / tensor.rows().max(1);
        self.map.release(tensor.start + rows.start * row..tensor.start + rows.end * row);
    }

    /// The whole file.
    pub(crate) fn file(&self) -> &[u8] {
        &self.map
    }

    /// A list of texts of the metadata.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.metadata().texts(key, self.file())
    }

    /// A list of numbers of the metadata.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.metadata().numbers(key, self.file())
    }
}

/// A file of `tests/fixtures/gguf`.
#[cfg(test)]
#[allow(clippy::panic)]
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
