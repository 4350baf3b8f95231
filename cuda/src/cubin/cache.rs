//! Compiled kernels kept between starts, in the user's cache folder (`tritter/cubin`).
//!
//! Only a help: whatever goes wrong is logged and the kernel is compiled again. An entry is a file
//! named after its key. It begins with the key, so that it answers for nothing else, and a checksum
//! tells damage. Files are written beside their place and renamed, so that readers and other processes
//! see whole entries or none. After each write the folder is swept: the oldest entries go until at
//! most [`Cache::LARGEST`] bytes are left, room for the kernels of several versions and cards.

use super::arch::Arch;
use super::wire::{Fnv, Reader, checksum, put_text, put_u32};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use std::{fs, io};

const MAGIC: &[u8; 8] = b"TRITKEY1";

/// Ends the names of entries.
const EXTENSION: &str = "cubin";

/// Ends the names of entries that are being written.
const PART: &str = "part";

/// No entry is larger; what is, is not ours.
const LARGEST_ENTRY: u64 = 64 << 20;

/// A file that was being written this long ago was left behind by a process that died.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What an entry was made of and for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    /// Name of the source file, without `.cu`.
    pub name: &'a str,
    /// [`super::Source::hash`].
    pub hash: u64,
    /// Architecture of the card.
    pub arch: Arch,
    /// The compiler with its version. `None` takes what any compiler made, for when none is at hand.
    pub compiler: Option<&'a str>,
}

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    limit: u64,
}

impl Cache {
    /// Bytes that are kept.
    pub const LARGEST: u64 = 128 << 20;

    /// The cache of this user; `None` without a cache folder.
    pub fn of_user() -> Option<Cache> {
        Some(Cache::at(folder(|name| std::env::var_os(name))?, Cache::LARGEST))
    }

    /// A cache in a folder, of about `limit` bytes. The folder is made when something is put there.
    pub fn at(folder: PathBuf, limit: u64) -> Cache {
        Cache { folder, limit }
    }

    /// The kept image of a key.
    pub fn get(&self, key: &Key<'_>) -> Option<Vec<u8>> {
        let paths = match key.compiler {
            Some(compiler) => vec![self.path(key, compiler)],
            None => self.of_any_compiler(key),
        };
        paths.iter().find_map(|path| match read(path, key) {
            Ok(image) => Some(image),
            Err(why) => {
                tracing::debug!("no kernels from {}: {why}", path.display());
                None
            }
        })
    }

    /// Keeps an image that a compiler made. An entry that was there is replaced.
    pub fn put(&self, key: &Key<'_>, image: &[u8]) {
        let Some(compiler) = key.compiler else { return };
        let path = self.path(key, compiler);
        match self.write(&path, &encode(key, compiler, image)) {
            Ok(()) => self.sweep(&path),
            Err(why) => tracing::debug!("kernels not kept in {}: {why}", path.display()),
        }
    }

    fn path(&self, key: &Key<'_>, compiler: &str) -> PathBuf {
        let compiler = checksum(compiler.as_bytes());
        self.folder.join(format!("{}{compiler:016x}.{EXTENSION}", key.stem()))
    }

    /// Entries that may answer, the newest first.
    fn of_any_compiler(&self, key: &Key<'_>) -> Vec<PathBuf> {
        let stem = key.stem();
        let ours = |name: &str| name.starts_with(&stem) && name.ends_with(EXTENSION);
        let mut found: Vec<_> = self
            .entries()
            .into_iter()
            .filter(|e| e.path.file_name().and_then(|n| n.to_str()).is_some_and(ours))
            .collect();
        found.sort_by_key(|entry| std::cmp::Reverse(entry.written));
        found.into_iter().map(|entry| entry.path).collect()
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&self.folder)?;
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let beside = path.with_extension(format!("{}-{count}.{PART}", std::process::id()));
        let written = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
        written.inspect_err(|_| drop(fs::remove_file(&beside)))
    }

    /// Removes the oldest entries above the limit, never `newest`, and what dead processes left.
    fn sweep(&self, newest: &Path) {
        let mut entries = self.entries();
        entries.sort_by_key(|entry| entry.written);
        let is = |entry: &Entry, end| entry.path.extension().is_some_and(|e| e == end);
        let abandoned = |entry: &Entry| entry.written.elapsed().is_ok_and(|age| age > ABANDONED);
        for entry in entries.iter().filter(|e| is(e, PART) && abandoned(e)) {
            let _ = fs::remove_file(&entry.path);
        }
        entries.retain(|entry| is(entry, EXTENSION));
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        for entry in entries.iter().filter(|entry| entry.path != newest) {
            if total <= self.limit {
                break;
            }
            if fs::remove_file(&entry.path).is_ok() {
                total -= entry.bytes;
            }
        }
    }

    fn entries(&self) -> Vec<Entry> {
        let Ok(files) = fs::read_dir(&self.folder) else { return Vec::new() };
        let entry = |file: fs::DirEntry| {
            let about = file.metadata().ok().filter(fs::Metadata::is_file)?;
            let written = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some(Entry { path: file.path(), bytes: about.len(), written })
        };
        files.flatten().filter_map(entry).collect()
    }
}

/// A file of the folder.
struct Entry {
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
}

impl Key<'_> {
    /// Begins the names of the entries of all compilers.
    fn stem(&self) -> String {
        format!("{}-{}-{:016x}-", self.name, self.arch, self.hash)
    }

    fn takes(&self, found: &Key<'_>) -> bool {
        let compiler = self.compiler.is_none() || self.compiler == found.compiler;
        compiler && Key { compiler: None, ..*self } == Key { compiler: None, ..*found }
    }
}

/// The user's folder for this cache, from environment variables; as for the pipelines of wgpu.
fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let variable = |name: &str| variable(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || variable("HOME").map(|home| home.join(".cache"));
    let base = if cfg!(windows) { variable("LOCALAPPDATA") } else { variable("XDG_CACHE_HOME").or_else(home) };
    Some(base?.join("tritter").join("cubin"))
}

/// Magic, name, architecture, source hash, compiler, checksum of all before it and the image; the image.
fn encode(key: &Key<'_>, compiler: &str, image: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    put_text(&mut bytes, key.name);
    put_u32(&mut bytes, key.arch.number() as usize);
    bytes.extend_from_slice(&key.hash.to_le_bytes());
    put_text(&mut bytes, compiler);
    let sum = Fnv::new().with(&bytes).with(image).value();
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(image);
    bytes
}

/// Key and image of an entry, if it is whole.
fn decode(bytes: &[u8]) -> Option<(Key<'_>, &[u8])> {
    let mut rest = Reader(bytes);
    if rest.take(8)? != MAGIC {
        return None;
    }
    let (name, arch) = (rest.text()?, Arch::from_number(rest.u32()?));
    let (hash, compiler) = (rest.u64()?, Some(rest.text()?));
    let head = bytes.len() - rest.0.len();
    let sum = rest.u64()?;
    let whole = sum == Fnv::new().with(&bytes[..head]).with(rest.0).value();
    whole.then_some((Key { name, hash, arch, compiler }, rest.0))
}

fn read(path: &Path, key: &Key<'_>) -> io::Result<Vec<u8>> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    if fs::metadata(path)?.len() > LARGEST_ENTRY {
        return Err(wrong("too large"));
    }
    let bytes = fs::read(path)?;
    let (found, image) = decode(&bytes).ok_or_else(|| wrong("damaged"))?;
    if key.takes(&found) { Ok(image.to_vec()) } else { Err(wrong("made for something else")) }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
