//! Read-only memory mapping: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use crate::error::{Error, Result};
use tritter_runtime::stream::HostMemory;

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
        Self::of_file(&file).map_err(Error::io(path, "map"))
    }

    /// Maps a whole file that is open, and that nothing writes to any more.
    pub fn of_file(file: &File) -> std::io::Result<Self> {
        // SAFETY: the mapping is private and read-only, and is only seen as
        // bytes, for which every value is valid. The remaining danger is that
        // another process shortens or rewrites the file meanwhile; this
        // project never does (files are replaced by rename, which leaves the
        // mapped one as it was), and no user space check could exclude it.
        let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(file) };
        map.map(|map| Map(Bytes::File(map)))
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
    pub fn release(&self, bytes: Range<usize>) {
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

impl HostMemory for Map {
    fn bytes(&self) -> &[u8] {
        self
    }

    /// Reads ahead and maps the pages, so that who reads the bytes next need not wait for them.
    fn fetch(&self, range: Range<usize>) {
        /// Not above any page size in use.
        const PAGE: usize = 1 << 12;
        let Some(part) = self.get(range.clone()) else { return };
        #[cfg(unix)]
        if let Bytes::File(map) = &self.0 {
            // Without the advice the pages come when they are touched, in smaller pieces.
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
            #[cfg(target_os = "linux")]
            if map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len()).is_ok() {
                return;
            }
        }
        std::hint::black_box(part.iter().step_by(PAGE).fold(0, |all, byte| all ^ byte));
    }

    fn release(&self, range: Range<usize>) {
        Map::release(self, range);
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
        for range in [0..300_000, 10..11, 70_000..200_000, 299_999..300_000, 5..5, 0..300_001] {
            map.fetch(range.clone());
            HostMemory::release(&map, range);
        }
        assert_eq!(map.bytes(), content);
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
