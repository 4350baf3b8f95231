//! Ready cubins of one architecture in one file.
//!
//! Layout, numbers little endian: magic (8 bytes), architecture (u32), compiler (text), entries (u32);
//! for each entry its name (text), source hash (u64), cubin length (u32), checksum of the cubin (u64)
//! and deflated bytes (u32 length, bytes). A text is a u32 length and UTF-8. Nothing in it depends on
//! when or where it was made, so equal inputs give equal files.

use super::arch::Arch;
use super::source;
use super::wire::{Reader, checksum, put_text, put_u32};
use std::sync::OnceLock;

const MAGIC: &[u8; 8] = b"TRITCUB1";

/// No cubin is larger; a header that says otherwise is damaged.
const LARGEST: usize = 64 << 20;

/// The cubins of one architecture.
#[derive(Clone, Debug)]
pub struct Archive {
    /// Architecture of all entries.
    pub arch: Arch,
    /// What compiled them, e.g. `NVRTC 12.9`.
    pub compiler: String,
    entries: Vec<Packed<'static>>,
}

/// One entry, still deflated.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// Name of the source file, without `.cu`.
    pub name: &'a str,
    /// Hash of the sources that it was made of.
    pub hash: u64,
    length: usize,
    checksum: u64,
    deflated: &'a [u8],
}

impl Archive {
    /// Those in the executable. A damaged one is left out with a note in the log.
    pub fn embedded() -> &'static [Archive] {
        static ALL: OnceLock<Vec<Archive>> = OnceLock::new();
        ALL.get_or_init(|| {
            let read = |bytes: &&'static [u8]| {
                Archive::parse(bytes).inspect_err(|why| tracing::warn!("ready cubins are unusable: {why}")).ok()
            };
            source::archives().iter().filter_map(read).collect()
        })
    }

    /// Reads an archive; its cubins stay deflated.
    pub fn parse(bytes: &'static [u8]) -> Result<Archive, String> {
        Archive::read(bytes).ok_or_else(|| "the archive is damaged".into())
    }

    fn read(bytes: &'static [u8]) -> Option<Archive> {
        let mut rest = Reader(bytes);
        if rest.take(8)? != MAGIC {
            return None;
        }
        let arch = Arch::from_number(rest.u32()?);
        let compiler = rest.text()?.to_string();
        let count = rest.u32()?;
        // Not `with_capacity`: the count is not to be trusted.
        let mut entries = Vec::new();
        for _ in 0..count {
            let (name, hash) = (rest.text()?, rest.u64()?);
            let (length, checksum) = (rest.u32()? as usize, rest.u64()?);
            let deflated = rest.u32()? as usize;
            let deflated = rest.take(deflated)?;
            if length > LARGEST {
                return None;
            }
            entries.push(Packed { name, hash, length, checksum, deflated });
        }
        rest.0.is_empty().then_some(Archive { arch, compiler, entries })
    }

    /// All entries, in the order of the file.
    pub fn entries(&self) -> &[Packed<'static>] {
        &self.entries
    }

    /// The cubin of a file, if it was made of exactly these sources.
    pub fn find(&self, name: &str, hash: u64) -> Option<&Packed<'static>> {
        self.entries.iter().find(|entry| entry.name == name && entry.hash == hash)
    }

    /// The bytes of an archive of `(name, source hash, cubin)`.
    pub fn write(arch: Arch, compiler: &str, cubins: &[(&str, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put_u32(&mut bytes, arch.number() as usize);
        put_text(&mut bytes, compiler);
        put_u32(&mut bytes, cubins.len());
        for (name, hash, cubin) in cubins {
            let deflated = miniz_oxide::deflate::compress_to_vec(cubin, 9);
            put_text(&mut bytes, name);
            bytes.extend_from_slice(&hash.to_le_bytes());
            put_u32(&mut bytes, cubin.len());
            bytes.extend_from_slice(&checksum(cubin).to_le_bytes());
            put_u32(&mut bytes, deflated.len());
            bytes.extend_from_slice(&deflated);
        }
        bytes
    }
}

impl Packed<'_> {
    /// The cubin.
    pub fn unpack(&self) -> Result<Vec<u8>, String> {
        let damaged = || format!("the ready cubin of `{}` is damaged", self.name);
        let cubin = miniz_oxide::inflate::decompress_to_vec_with_limit(self.deflated, self.length);
        let cubin = cubin.map_err(|_| damaged())?;
        if cubin.len() == self.length && checksum(&cubin) == self.checksum { Ok(cubin) } else { Err(damaged()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Long enough that the header is a small part.
    fn cubin() -> Vec<u8> {
        (0..5000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
    }

    fn written() -> Vec<u8> {
        Archive::write(Arch::new(9, 0), "NVRTC 12.9", &[("add", 1, &cubin()), ("rms_norm", 2, b"small")])
    }

    fn parse(bytes: Vec<u8>) -> Result<Archive, String> {
        Archive::parse(Vec::leak(bytes))
    }

    #[test]
    fn what_was_written_is_read() {
        let archive = parse(written()).unwrap();
        assert_eq!((archive.arch, archive.compiler.as_str()), (Arch::new(9, 0), "NVRTC 12.9"));
        assert_eq!(archive.entries().len(), 2);
        assert_eq!(archive.find("add", 1).unwrap().unpack().unwrap(), cubin());
        assert_eq!(archive.find("rms_norm", 2).unwrap().unpack().unwrap(), b"small");
        assert!(written().len() < cubin().len());
    }

    #[test]
    fn an_entry_of_other_sources_is_not_found() {
        let archive = parse(written()).unwrap();
        assert!(archive.find("add", 2).is_none());
        assert!(archive.find("copy", 1).is_none());
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let bytes = written();
        for end in 0..bytes.len() {
            assert!(parse(bytes[..end].to_vec()).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x11;
            // The archive is refused, or an entry is missing or refused; what is given is right.
            let Ok(archive) = parse(bytes) else { continue };
            let found = |name, hash| archive.find(name, hash).and_then(|entry| entry.unpack().ok());
            assert!(found("add", 1).is_none_or(|given| given == cubin()), "flipped at {at}");
            assert!(found("rms_norm", 2).is_none_or(|given| given == b"small"), "flipped at {at}");
        }
    }

    #[test]
    fn the_embedded_archives_are_whole() {
        for archive in Archive::embedded() {
            for entry in archive.entries() {
                assert!(entry.unpack().unwrap().starts_with(b"\x7fELF"), "{} {}", archive.arch, entry.name);
            }
        }
        assert_eq!(Archive::embedded().len(), source::archives().len());
    }
}
