//! Copies of fixtures with one value altered.

use serde_json::Value;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A fixture in a temporary folder, beside its base model if it has one.
pub(crate) struct Copy {
    root: TempDir,
    folder: PathBuf,
    /// Folder of the weights.
    base: PathBuf,
}

impl Copy {
    pub(crate) fn new(fixture: &Path, base: Option<&Path>) -> io::Result<Copy> {
        let root = tempfile::tempdir()?;
        let folder = copy_into(root.path(), fixture)?;
        let base = base.map_or(Ok(folder.clone()), |base| copy_into(root.path(), base))?;
        Ok(Copy { root, folder, base })
    }

    pub(crate) fn folder(&self) -> &Path {
        debug_assert!(self.folder.starts_with(self.root.path()));
        &self.folder
    }

    /// Alters the last element of a tensor.
    pub(crate) fn alter(&self, file: &str, tensor: &str) -> io::Result<()> {
        let path = self.folder.join(file);
        let mut bytes = std::fs::read(&path)?;
        let (dtype, range) = locate(&bytes, tensor)?;
        alter_element(&mut bytes[range], &dtype, usize::MAX)?;
        std::fs::write(path, bytes)
    }

    /// Alters the first element of a weight; of an embedding the first of a row that the input uses.
    pub(crate) fn alter_weight(&self, tensor: &str) -> io::Result<()> {
        let path = self.base.join("model.safetensors");
        let mut bytes = std::fs::read(&path)?;
        let (dtype, range) = locate(&bytes, tensor)?;
        let mut element = 0;
        if tensor == "model.embed_tokens.weight" {
            let golden = std::fs::read(self.base.join("golden.safetensors"))?;
            let (_, ids) = locate(&golden, "input_ids")?;
            let width = header(&bytes)?.0[tensor]["shape"][1].as_u64().unwrap_or(1) as usize;
            element = usize::from(golden[ids.start]) * width;
        }
        alter_element(&mut bytes[range], &dtype, element)?;
        std::fs::write(path, bytes)
    }

    /// Overwrites the first byte of a tensor.
    pub(crate) fn overwrite(&self, file: &str, tensor: &str, byte: u8) -> io::Result<()> {
        let path = self.folder.join(file);
        let mut bytes = std::fs::read(&path)?;
        let (_, range) = locate(&bytes, tensor)?;
        bytes[range.start] = byte;
        std::fs::write(path, bytes)
    }

    /// Gives a tensor another name of the same length.
    pub(crate) fn rename(&self, file: &str, tensor: &str, name: &str) -> io::Result<()> {
        let path = self.folder.join(file);
        let mut bytes = std::fs::read(&path)?;
        let (from, to) = (format!("\"{tensor}\""), format!("\"{name}\""));
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
        let at = at.ok_or_else(|| io::Error::other(format!("{tensor} is not in {file}")))?;
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(path, bytes)
    }

    pub(crate) fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) -> io::Result<()> {
        let path = self.folder.join(file);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        edit(&mut json);
        std::fs::write(path, json.to_string())
    }
}

/// Names of a file's tensors.
pub(crate) fn tensors(path: &Path) -> io::Result<Vec<String>> {
    let (header, _) = header(&std::fs::read(path)?)?;
    let names = header.as_object().into_iter().flat_map(|map| map.keys());
    Ok(names.filter(|name| *name != "__metadata__").cloned().collect())
}

/// Names of tensors that are results, not inputs.
pub(crate) fn expected_tensors(path: &Path) -> io::Result<Vec<String>> {
    let inputs = ["input_ids", "labels", "prefill_ids", "decode_ids", "gen_prompt", "untuned_input_ids"];
    // Queries, keys and values of single operations stand alone or behind the name of a case.
    let operand =
        |name: &str| ["q", "k", "v", "doc_ids"].contains(&name.rsplit_once('.').map_or(name, |(_, last)| last));
    let input = |name: &str| {
        inputs.contains(&name)
            || name.starts_with("lin0.") && name.ends_with(".x")
            || operand(name) && !name.contains("rope")
    };
    Ok(tensors(path)?.into_iter().filter(|name| !input(name)).collect())
}

fn copy_into(root: &Path, fixture: &Path) -> io::Result<PathBuf> {
    let folder = root.join(fixture.file_name().unwrap_or_default());
    std::fs::create_dir(&folder)?;
    for entry in std::fs::read_dir(fixture)? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    Ok(folder)
}

/// Header of a safetensors file and where the data begin.
fn header(bytes: &[u8]) -> io::Result<(Value, usize)> {
    let length = u64::from_le_bytes(bytes[..8].try_into().map_err(io::Error::other)?) as usize;
    Ok((serde_json::from_slice(&bytes[8..8 + length])?, 8 + length))
}

/// Dtype and bytes of a tensor.
fn locate(bytes: &[u8], tensor: &str) -> io::Result<(String, Range<usize>)> {
    let (header, start) = header(bytes)?;
    let missing = || io::Error::other(format!("no tensor {tensor}"));
    let info = header.get(tensor).ok_or_else(missing)?;
    let offset = |i: usize| info["data_offsets"][i].as_u64().map(|at| start + at as usize).ok_or_else(missing);
    let dtype = info["dtype"].as_str().ok_or_else(missing)?;
    Ok((dtype.to_owned(), offset(0)?..offset(1)?))
}

/// Alters one element, the last if there are fewer: floats by 1 across zero (so that a ternary code
/// made of one changes too), codes and ids to another of their kind.
fn alter_element(data: &mut [u8], dtype: &str, element: usize) -> io::Result<()> {
    let size = match dtype {
        "U8" | "I8" => 1,
        "BF16" => 2,
        "F32" => 4,
        "I64" | "F64" => 8,
        other => return Err(io::Error::other(format!("dtype {other}"))),
    };
    let at = element.min(data.len() / size - 1) * size;
    let bytes = &mut data[at..at + size];
    match dtype {
        "F32" => {
            let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            bytes.copy_from_slice(&across_zero(value).to_le_bytes());
        }
        "F64" => {
            let value = bytes.try_into().map_or(0.0, f64::from_le_bytes);
            let altered = if value > 0.0 { value - 1.0 } else { value + 1.0 };
            bytes.copy_from_slice(&altered.to_le_bytes());
        }
        // The upper half of an f32.
        "BF16" => {
            let value = f32::from_le_bytes([0, 0, bytes[0], bytes[1]]);
            bytes.copy_from_slice(&across_zero(value).to_le_bytes()[2..]);
        }
        // The first of four ternary codes becomes another one, never 3.
        "U8" => bytes[0] = (bytes[0] & !3) | ((bytes[0] + 1) % 4 % 3),
        // A code or a token id.
        _ => bytes[0] ^= 1,
    }
    Ok(())
}

fn across_zero(value: f32) -> f32 {
    if value > 0.0 { value - 1.0 } else { value + 1.0 }
}
