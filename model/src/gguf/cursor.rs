//! Reading little-endian fields from bytes that are not trusted: every length is held against what
//! is left before anything is taken or allocated.

use std::path::Path;

use crate::error::{Error, Result};

/// A place in a file's bytes.
pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at byte `at`.
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8], at: usize) -> Self {
        Cursor { path, bytes, at: at.min(bytes.len()) }
    }

    /// Bytes before the cursor.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error about what stands here.
    pub(crate) fn fault(&self, what: &str, problem: &str) -> Error {
        Error::checkpoint(self.path, format!("`{}` {problem} (at byte {})", shown(what), self.at))
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            let problem = format!("takes {count} bytes but {} are left; the file is cut short", self.left());
            return Err(self.fault(what, &problem));
        };
        self.at += count;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut field = [0; N];
        field.copy_from_slice(self.take(N, what)?);
        Ok(field)
    }

    /// A `u32`.
    pub(crate) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A `u64`.
    pub(crate) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `least` bytes each; refused where the file cannot hold so many.
    pub(crate) fn count(&self, what: &str, count: u64, least: usize) -> Result<usize> {
        let most = self.left() / least.max(1);
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self
                .fault(what, &format!("claims {count} entries, the file can hold {most}; it is damaged or cut short"))),
        }
    }

    /// A text: its length in eight bytes, then UTF-8.
    pub(crate) fn text(&mut self, what: &str) -> Result<&'a str> {
        let length = self.u64(what)?;
        let length = self.count(what, length, 1)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| self.fault(what, "holds a text that is not UTF-8; the file is damaged"))
    }
}

/// A name from a file, cut where a message would drown in it.
fn shown(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}
