//! Read-only memory mapping: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::error::{Error, Result};

/// The bytes of a file, paged in as they are touched, or bytes in memory that stand for a file.
#[derive(Debug)]
pub struct Map(Bytes);

#[derive(Debug)]
enum Bytes {
    File(memmap2::Mmap),
    Memory(Vec<u8>),
}

impl Map {
    /// Maps a whole regular, non-empty file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let about = file.metadata().map_err(Error::io(path, "read the size of"))?;
        if !about.is_file() {
            return Err(Error::checkpoint(path, "not a regular file; give a .safetensors or .gguf file"));
        }
        if about.len() == 0 {
            return Err(Error::checkpoint(path, "the file is empty; copy or download it again"));
        }
        // SAFETY: the mapping is private and read-only, and is only seen as
        // bytes, for which every value is valid. The remaining danger is that
        // another process shortens or rewrites the file meanwhile; this
        // project never does (files are replaced by rename, which leaves the
        // mapped one as it was), and no user space check could exclude it.
        let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) };
        map.map(|map| Map(Bytes::File(map))).map_err(Error::io(path, "map"))
    }

    /// Bytes that did not come from a file.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Map(Bytes::Memory(bytes))
    }
}

impl Map {
    /// Lets the system take back the memory of whole pages inside these bytes. What is read of them again
    /// comes from the file again, so this changes nothing but the memory in use. Without effect where the
    /// system has no such call.
    pub fn release(&self, bytes: std::ops::Range<usize>) {
        /// A multiple of every page size in use.
        const PAGE: usize = 1 << 16;
        let Bytes::File(map) = &self.0 else { return };
        let first = bytes.start.next_multiple_of(PAGE);
        let end = if bytes.end >= map.len() { map.len() } else { bytes.end / PAGE * PAGE };
        if first >= end {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: the mapping is private, and nothing ever writes to it, so there is no change of its
            // own that dropping the pages could lose; the next read maps the file's content anew.
            let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, end - first) };
            // Pages that stay are memory in use for longer, no fault.
            drop(advised);
        }
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::File(map) => map,
            Bytes::Memory(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&file, &content).unwrap();
        let map = Map::open(&file).unwrap();
        for range in [0..300_000, 10..11, 70_000..200_000, 200_000..300_000, 5..5] {
            assert_eq!(&*map, content);
            map.release(range);
        }
        assert_eq!(&*map, content);
    }

    #[test]
    fn maps_bytes_and_refuses_what_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, b"abc").unwrap();
        assert_eq!(&*Map::open(&file).unwrap(), b"abc");
        std::fs::write(&file, b"").unwrap();
        assert!(Map::open(&file).unwrap_err().to_string().contains("empty"));
        assert!(Map::open(folder.path()).is_err());
        assert!(Map::open(&folder.path().join("b")).unwrap_err().to_string().contains("open"));
    }
}
