//! The header of a GGUF file, distrusted: counts and lengths are held against the file before
//! anything is allocated, and every tensor must lie where the format says.
//!
//! Layout (`docs/gguf.md` of ggml): magic `GGUF`, version, number of tensors, number of metadata
//! entries; the entries; name, extents, type and offset of each tensor; padding to `general.alignment`
//! (32 where absent); the data, each tensor padded to the alignment. Versions 2 and 3 differ in
//! nothing that a little-endian file shows. As in ggml's own reader, tensors must follow each other
//! without a gap, which is also what tells the two group sizes of type 42 apart.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::cursor::Cursor;
use super::types::{TensorType, foreign_name, known_names};
use super::value::{Metadata, read_value};
use crate::error::{Error, Result};

/// The first four bytes of every file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The alignment of data where the file does not say.
pub(crate) const ALIGNMENT: usize = 32;
/// The key that gives another one.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
/// A length field, a type and a value of one byte.
const LEAST_ENTRY: usize = 8 + 4 + 1;
/// A name of one letter, no extents, type and offset.
const LEAST_TENSOR: usize = 8 + 1 + 4 + 4 + 8;
/// Extents that a tensor may have (`GGML_MAX_DIMS`).
const MOST_EXTENTS: u32 = 4;
/// Larger alignments are taken for damage.
const MOST_ALIGNMENT: usize = 1 << 20;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Extents, slowest first (the file has them fastest first).
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: TensorType,
    /// First byte in the file.
    pub(crate) start: usize,
    /// Byte after the last.
    pub(crate) end: usize,
}

impl TensorInfo {
    /// Elements of a row, the fastest extent.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows: the product of the other extents.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
}

/// What a header says, checked.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

/// Reads and checks the header of a file whose bytes are `file`.
pub(crate) fn read_header(path: &Path, file: &[u8]) -> Result<Header> {
    let mut cursor = Cursor::new(path, file, 0);
    let (tensor_count, entry_count) = read_counts(path, &mut cursor)?;
    let metadata = read_metadata(path, &mut cursor, entry_count)?;
    let alignment = alignment(&metadata)?;
    let count = cursor.count("number of tensors", tensor_count, LEAST_TENSOR)?;
    let mut drafts = Vec::with_capacity(count);
    let mut seen = HashSet::with_capacity(count);
    for _ in 0..count {
        let draft = read_tensor(path, &mut cursor)?;
        if !seen.insert(draft.name) {
            return Err(Error::tensor(path, draft.name, "is there twice; the file is damaged"));
        }
        drafts.push(draft);
    }
    let start = cursor.position().checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let tensors = place(path, drafts, start, file.len(), alignment)?;
    Ok(Header { metadata, tensors })
}

fn read_counts(path: &Path, cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let fail = |problem: String| Err(Error::checkpoint(path, problem));
    if cursor.array::<4>("magic")? != MAGIC {
        return fail("does not begin with `GGUF`; it is no GGUF file".to_owned());
    }
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => {}
        1 => return fail("is of version 1, which nobody writes any more; convert the model again".to_owned()),
        _ if version.swap_bytes() <= 3 => return fail("is big-endian; only little-endian files are read".to_owned()),
        _ => return fail(format!("is of version {version}; 2 and 3 are known")),
    }
    Ok((cursor.u64("number of tensors")?, cursor.u64("number of entries")?))
}

fn read_metadata(path: &Path, cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata> {
    let count = cursor.count("number of entries", count, LEAST_ENTRY)?;
    let mut values = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.text("a key")?;
        if key.is_empty() || key.len() > usize::from(u16::MAX) {
            return Err(cursor.fault("a key", "is empty or longer than 65535 bytes; the file is damaged"));
        }
        let number = cursor.u32(key)?;
        let value = read_value(cursor, number, key)?;
        if values.insert(key.to_owned(), value).is_some() {
            return Err(cursor.fault(key, "is there twice; the file is damaged"));
        }
    }
    Ok(Metadata { path: path.to_path_buf(), values })
}

fn alignment(metadata: &Metadata) -> Result<usize> {
    let alignment = metadata.size(ALIGNMENT_KEY)?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MOST_ALIGNMENT {
        return Err(metadata.error(ALIGNMENT_KEY, "it should be a power of two, at most 2^20"));
    }
    Ok(alignment)
}

/// A tensor as the header describes it.
struct Draft<'a> {
    name: &'a str,
    shape: Vec<usize>,
    dtype: TensorType,
    offset: u64,
}

fn read_tensor<'a>(path: &Path, cursor: &mut Cursor<'a>) -> Result<Draft<'a>> {
    let name = cursor.text("name of a tensor")?;
    if name.is_empty() {
        return Err(cursor.fault("name of a tensor", "is empty; the file is damaged"));
    }
    let fail = |problem: String| Error::tensor(path, name, problem);
    let extents = cursor.u32(name)?;
    if extents > MOST_EXTENTS {
        return Err(fail(format!("has {extents} extents, at most {MOST_EXTENTS} are known; the file is damaged")));
    }
    let mut shape = Vec::with_capacity(extents as usize);
    for _ in 0..extents {
        let extent = usize::try_from(cursor.u64(name)?).ok().filter(|&n| n > 0);
        shape.push(extent.ok_or_else(|| fail("has an extent that is zero or absurd; the file is damaged".to_owned()))?);
    }
    shape.reverse();
    let number = cursor.u32(name)?;
    let dtype = TensorType::from_number(number).ok_or_else(|| {
        let (foreign, known) = (foreign_name(number), known_names());
        fail(format!("is of type {number}{foreign}, which is not read; {known} are"))
    })?;
    Ok(Draft { name, shape, dtype, offset: cursor.u64(name)? })
}

/// Finds and checks the place of every tensor.
fn place(
    path: &Path,
    mut drafts: Vec<Draft<'_>>,
    data: usize,
    file: usize,
    alignment: usize,
) -> Result<BTreeMap<String, TensorInfo>> {
    drafts.sort_by_key(|draft| draft.offset);
    let mut tensors = BTreeMap::new();
    let mut expected = 0u64;
    let end = file.saturating_sub(data).checked_next_multiple_of(alignment).unwrap_or(file) as u64;
    let after = |i: usize| drafts.get(i + 1).map_or(end, |next| next.offset);
    let groups = drafts.iter().enumerate().find_map(|(i, draft)| groups_of(draft, after(i), alignment));
    for draft in drafts {
        let Draft { name, shape, dtype, offset } = draft;
        let fail = |problem: String| Err(Error::tensor(path, name, problem));
        let dtype = match dtype {
            TensorType::Q2_0 => groups.unwrap_or(dtype),
            _ => dtype,
        };
        if offset % alignment as u64 != 0 {
            return fail(format!("begins at {offset}, not a multiple of {alignment}; the file is damaged"));
        }
        if offset < expected {
            return fail(format!("begins at {offset} and overlaps the one before, which ends at {expected}"));
        }
        if offset > expected {
            return fail(format!(
                "begins at {offset} but the one before ends at {expected}: the file is damaged, or written with \
                 another group size"
            ));
        }
        let Some(bytes) = size(&shape, dtype) else {
            let (block, _) = dtype.block();
            return fail(format!(
                "of shape {shape:?} is no {}: rows must be multiples of {block} and the size must not overflow; \
                 the file is damaged, or written with another group size",
                dtype.name()
            ));
        };
        let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(bytes)).filter(|&end| end <= file);
        let (Some(start), Some(end)) = (start, end) else {
            return fail(format!("takes {bytes} bytes from {offset} on, beyond the end; the file is cut short"));
        };
        expected = (end - data).next_multiple_of(alignment) as u64;
        tensors.insert(name.to_owned(), TensorInfo { name: name.to_owned(), shape, dtype, start, end });
    }
    let end = data as u64 + expected;
    if file as u64 > end && !tensors.is_empty() {
        let problem = format!(
            "has {} bytes more than its tensors take; it is damaged, or written with another group size",
            file as u64 - end
        );
        return Err(Error::checkpoint(path, problem));
    }
    Ok(tensors)
}

fn size(shape: &[usize], dtype: TensorType) -> Option<usize> {
    let width = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().rev().skip(1).try_fold(1usize, |n, &extent| n.checked_mul(extent))?;
    dtype.bytes(rows, width)
}

/// Which groups a tensor of type 42 has, by where it ends; `None` where that says nothing.
fn groups_of(draft: &Draft<'_>, end: u64, alignment: usize) -> Option<TensorType> {
    if draft.dtype != TensorType::Q2_0 {
        return None;
    }
    let taken = end.checked_sub(draft.offset)?;
    let padded =
        |dtype: TensorType| size(&draft.shape, dtype)?.checked_next_multiple_of(alignment).map(|bytes| bytes as u64);
    let (small, large) = (padded(TensorType::Q2_0), padded(TensorType::Q2_0G128));
    match (small == Some(taken), large == Some(taken)) {
        (true, false) => Some(TensorType::Q2_0),
        (false, true) => Some(TensorType::Q2_0G128),
        _ => None,
    }
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
