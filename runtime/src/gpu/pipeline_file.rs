//! Compiled pipelines kept between starts, in the user's cache folder.
//!
//! Only a help: whatever goes wrong with the file is logged and forgotten. The file is
//! an FNV-1a checksum (8 bytes, little endian) and what the driver gave.

use super::Options;
use super::trusted;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A file larger than this is not ours.
const LARGEST: u64 = 256 << 20;

pub(super) struct PipelineFile {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    /// Pipelines at the last save.
    saved: AtomicUsize,
}

impl PipelineFile {
    /// The cache of an adapter; `None` where the backend has none or the user has no cache folder.
    pub(super) fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, options: &Options) -> Option<PipelineFile> {
        if options.no_pipeline_file || !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let key = wgpu::util::pipeline_cache_key(info)?;
        let checks = if cfg!(debug_assertions) { "checked" } else { "trusted" };
        let path = folder()?.join(format!("{key}_{checks}"));
        let data = match read(&path) {
            Ok(data) => Some(data),
            Err(why) => {
                tracing::debug!("no pipelines from {}: {why}", path.display());
                None
            }
        };
        let cache = trusted::pipeline_cache(device, data.as_deref());
        Some(PipelineFile { cache, path, saved: AtomicUsize::new(0) })
    }

    pub(super) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes the file if there are pipelines that it may lack.
    pub(super) fn save(&self, pipelines: usize) {
        if self.saved.swap(pipelines, Ordering::Relaxed) >= pipelines {
            return;
        }
        let Some(data) = self.cache.get_data() else { return };
        if let Err(why) = write(&self.path, &data) {
            tracing::debug!("pipelines not kept in {}: {why}", self.path.display());
        }
    }
}

fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || variable("HOME").map(|home| home.join(".cache"));
    let base = if cfg!(windows) { variable("LOCALAPPDATA") } else { variable("XDG_CACHE_HOME").or_else(home) };
    Some(base?.join("tritter"))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let wrong = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    if std::fs::metadata(path)?.len() > LARGEST {
        return Err(wrong("too large"));
    }
    let mut bytes = std::fs::read(path)?;
    let sum = bytes.first_chunk::<8>().map(|sum| u64::from_le_bytes(*sum));
    let data = bytes.get(8..).ok_or_else(|| wrong("too short"))?;
    if sum != Some(checksum(data)) {
        return Err(wrong("damaged"));
    }
    Ok(bytes.split_off(8))
}

/// Writes beside the file and renames, so that a reader never sees half of it.
fn write(path: &Path, data: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside = path.with_extension(std::process::id().to_string());
    let mut bytes = checksum(data).to_le_bytes().to_vec();
    bytes.extend_from_slice(data);
    std::fs::write(&beside, bytes)?;
    std::fs::rename(&beside, path).inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

/// FNV-1a.
fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_damaged_file_is_refused() {
        let path = std::env::temp_dir().join(format!("tritter-pipelines-{}", std::process::id()));
        write(&path, b"pipelines").unwrap();
        assert_eq!(read(&path).unwrap(), b"pipelines");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[10] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(read(&path).is_err());
        std::fs::write(&path, b"short").unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path).is_err());
    }
}
