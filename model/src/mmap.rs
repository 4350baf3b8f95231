//! Read-only memory mapping: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::error::{Error, Result};

/// The bytes of a file, paged in as they are touched.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps a whole regular, non-empty file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let about = file.metadata().map_err(Error::io(path, "read the size of"))?;
        if !about.is_file() {
            return Err(Error::checkpoint(path, "not a regular file; give a .safetensors file"));
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
        map.map(Self).map_err(Error::io(path, "map"))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
