//! Writing a file: header first, then tensor by tensor as a callback supplies the bytes, to a temporary
//! name that is changed at the end ([`crate::tensor_write`]). Version 3, alignment 32; the bytes depend
//! on nothing but the arguments.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use super::header::{ALIGNMENT, MAGIC};
use super::types::TensorType;
use super::value::kind;
use crate::error::{Error, Result};
use crate::tensor_write::{PendingFile, TensorSource, write_exactly, write_pending};

/// A metadata value to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A `u32`.
    U32(u32),
    /// An `f32`.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of `i32`.
    I32s(Vec<i32>),
    /// A list of `u32`.
    U32s(Vec<u32>),
    /// A list of `f32`.
    F32s(Vec<f32>),
    /// A list of `f64`.
    F64s(Vec<f64>),
}

/// Name, type and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: TensorType,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
}

impl TensorHeader {
    /// Bytes of its data; an error where the type cannot hold the shape.
    fn bytes(&self, path: &Path) -> Result<u64> {
        let width = self.shape.last().copied().unwrap_or(1);
        let rows = self.shape.iter().rev().skip(1).try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let bytes = rows.and_then(|rows| self.dtype.bytes(rows, width));
        bytes.map(|bytes| bytes as u64).ok_or_else(|| {
            let problem = format!("of shape {:?} cannot be stored as {}", self.shape, self.dtype.name());
            Error::tensor(path, &self.name, problem)
        })
    }
}

/// Writes a file up to the rename, which is the caller's to make. `source` is called once for each
/// tensor, in their order, and must write exactly the bytes that type and shape say.
pub fn prepare_gguf(
    path: &Path,
    entries: &[(String, Entry)],
    tensors: &[TensorHeader],
    source: &mut TensorSource<'_>,
) -> Result<PendingFile> {
    let (header, sizes) = header_bytes(path, entries, tensors)?;
    write_pending(path, |file| {
        file.write_all(&header).map_err(Error::io(path, "write"))?;
        for (index, (tensor, &size)) in tensors.iter().zip(&sizes).enumerate() {
            write_exactly(path, &tensor.name, size, file, &mut |out| source(index, out))?;
            let padding = padded(size) - size;
            file.write_all(&[0; ALIGNMENT][..padding as usize]).map_err(Error::io(path, "write"))?;
        }
        Ok(())
    })
}

fn padded(size: u64) -> u64 {
    size.next_multiple_of(ALIGNMENT as u64)
}

/// The header, padded, and the size of each tensor.
fn header_bytes(path: &Path, entries: &[(String, Entry)], tensors: &[TensorHeader]) -> Result<(Vec<u8>, Vec<u64>)> {
    let mut out = Vec::from(MAGIC);
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    let mut seen = HashSet::new();
    for (key, entry) in entries {
        if !seen.insert(key.as_str()) {
            return Err(Error::checkpoint(path, format!("the key `{key}` is there twice")));
        }
        text(&mut out, key);
        value(&mut out, entry);
    }
    let mut seen = HashSet::new();
    let (mut sizes, mut offset) = (Vec::with_capacity(tensors.len()), 0u64);
    for tensor in tensors {
        if !seen.insert(tensor.name.as_str()) {
            return Err(Error::tensor(path, &tensor.name, "is there twice"));
        }
        let size = tensor.bytes(path)?;
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &extent in tensor.shape.iter().rev() {
            out.extend((extent as u64).to_le_bytes());
        }
        out.extend(tensor.dtype.number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        sizes.push(size);
        offset += padded(size);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok((out, sizes))
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn value(out: &mut Vec<u8>, entry: &Entry) {
    fn list(out: &mut Vec<u8>, kind: u32, count: usize, bytes: impl IntoIterator<Item = u8>) {
        out.extend(kind::ARRAY.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
        out.extend(bytes);
    }
    fn one(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    }
    match entry {
        Entry::U32(v) => one(out, kind::U32, &v.to_le_bytes()),
        Entry::F32(v) => one(out, kind::F32, &v.to_le_bytes()),
        Entry::Bool(v) => one(out, kind::BOOL, &[u8::from(*v)]),
        Entry::Text(v) => {
            out.extend(kind::TEXT.to_le_bytes());
            text(out, v);
        }
        Entry::Texts(list_of) => {
            list(out, kind::TEXT, list_of.len(), []);
            list_of.iter().for_each(|v| text(out, v));
        }
        Entry::I32s(v) => list(out, kind::I32, v.len(), v.iter().flat_map(|v| v.to_le_bytes())),
        Entry::U32s(v) => list(out, kind::U32, v.len(), v.iter().flat_map(|v| v.to_le_bytes())),
        Entry::F32s(v) => list(out, kind::F32, v.len(), v.iter().flat_map(|v| v.to_le_bytes())),
        Entry::F64s(v) => list(out, kind::F64, v.len(), v.iter().flat_map(|v| v.to_le_bytes())),
    }
}
