//! The header of a safetensors file, distrusted: its length is bounded by the
//! file before anything is parsed, and each tensor's shape, dtype and offsets
//! are checked against each other and against the file.
//!
//! Layout: `u64` little-endian header length, JSON header, data. The
//! `safetensors` crate checks that the data ranges follow each other without
//! gap or overlap.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, Result};

/// Bytes of the length field before the header.
const LENGTH_BYTES: usize = 8;
/// The crate's own limit, kept here too.
const MAX_HEADER: u64 = 100_000_000;

/// What a header says, checked.
#[derive(Debug)]
pub(crate) struct Header {
    /// Free-form strings of `__metadata__`.
    pub(crate) metadata: HashMap<String, String>,
    /// Tensors in the order of their data; offsets count from `data_start`.
    pub(crate) tensors: Vec<(String, TensorInfo)>,
    /// Where the data begin in the file.
    pub(crate) data_start: usize,
}

/// Reads and checks the header of a file whose bytes are `file`.
pub(crate) fn read_header(path: &Path, file: &[u8]) -> Result<Header> {
    let fail = |problem: String| Error::checkpoint(path, problem);
    let (text, data_start) = header_text(path, file)?;
    let raw: RawHeader = serde_json::from_slice(text)
        .map_err(|error| fail(format!("the safetensors header is not valid ({error}); the file is damaged")))?;
    let mut tensors = raw.tensors;
    let data_len = file.len() - data_start;
    for (name, info) in &tensors {
        check_tensor(path, name, info, data_len)?;
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let checked = Metadata::new(raw.metadata, tensors.clone())
        .map_err(|error| fail(format!("{error}; data ranges overlap or leave a gap, the file is damaged")))?;
    if checked.data_len() != data_len {
        return Err(fail(format!(
            "the header accounts for {} bytes of data but the file holds {data_len}; \
             it is cut short or damaged",
            checked.data_len()
        )));
    }
    let metadata = checked.metadata().clone().unwrap_or_default();
    Ok(Header { metadata, tensors, data_start })
}

fn header_text<'a>(path: &Path, file: &'a [u8]) -> Result<(&'a [u8], usize)> {
    let fail = |problem: String| Error::checkpoint(path, problem);
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(fail(format!("{} bytes are too few for a safetensors file", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(fail(format!(
            "the header claims {length} bytes, the limit is {MAX_HEADER}; not a safetensors file"
        )));
    }
    let text = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let text = text.ok_or_else(|| {
        fail(format!("the header claims {length} bytes but only {} follow; the file is cut short", rest.len()))
    })?;
    Ok((text, LENGTH_BYTES + text.len()))
}

fn check_tensor(path: &Path, name: &str, info: &TensorInfo, data_len: usize) -> Result<()> {
    let (start, end) = info.data_offsets;
    if start > end || end > data_len {
        let problem = format!("lies at bytes {start} to {end} of {data_len}; the file is cut short or damaged");
        return Err(Error::tensor(path, name, problem));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
    if bits != (end - start).checked_mul(8) {
        let problem = format!(
            "of shape {:?} and dtype {} does not take the {} bytes that the header gives it; \
             the file is damaged",
            info.shape,
            info.dtype,
            end - start
        );
        return Err(Error::tensor(path, name, problem));
    }
    Ok(())
}

/// The header in file order; a map type would swallow a repeated name.
struct RawHeader {
    metadata: Option<HashMap<String, String>>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader { metadata: None, tensors: Vec::new() };
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{name}` is there twice")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
            } else {
                let info = map.next_value().map_err(|error| A::Error::custom(format!("tensor `{name}`: {error}")))?;
                header.tensors.push((name, info));
            }
        }
        Ok(header)
    }
}
