//! Writing files so that a reader sees the old content or the new, never half:
//! the bytes go to a hidden temporary name in the same folder and are synced,
//! then the name is changed and the folder is synced.
//!
//! Safetensors files are streamed tensor by tensor. Their bytes depend on
//! nothing but the arguments; the data begin at a multiple of eight bytes, and
//! wider dtypes lie first, so every tensor is aligned to its element.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::error::{BoxError, Error, Result};

/// Name, type and shape of a tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Hugging Face name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
}

/// Writes the little-endian bytes of the tensor with that index.
pub type TensorSource<'a> = dyn FnMut(usize, &mut dyn Write) -> Result<(), BoxError> + 'a;

/// A complete, synced file under a temporary name. [`PendingFile::commit`]
/// gives it its name; dropped before that, it is removed.
#[derive(Debug)]
#[must_use = "without commit the file is removed again"]
pub struct PendingFile {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl PendingFile {
    /// Where the bytes are now.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Where the bytes will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Renames the file to its name, replacing what was there, and syncs the
    /// folder: afterwards the new content survives a power cut.
    pub fn commit(mut self) -> Result<()> {
        std::fs::rename(&self.temporary, &self.target).map_err(Error::io(&self.target, "write"))?;
        self.committed = true;
        sync_folder_of(&self.target)
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nobody is left to tell, and a stray file is overwritten next time.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Replaces `path` by `bytes`, durably and at once.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_pending(path, |file| file.write_all(bytes).map_err(Error::io(path, "write")))?.commit()
}

/// Writes a safetensors file durably and at once. `source` is called once for
/// each tensor, in an order of this function's choosing, and must write exactly
/// the bytes that dtype and shape say. `format: pt`, which transformers asks
/// for, is added to `metadata` where it has no `format`.
pub fn write_safetensors(
    path: &Path,
    tensors: &[TensorHeader],
    metadata: &BTreeMap<String, String>,
    source: &mut TensorSource<'_>,
) -> Result<()> {
    prepare_safetensors(path, tensors, metadata, source)?.commit()
}

/// As [`write_safetensors`] up to the rename, which is the caller's to make.
pub fn prepare_safetensors(
    path: &Path,
    tensors: &[TensorHeader],
    metadata: &BTreeMap<String, String>,
    source: &mut TensorSource<'_>,
) -> Result<PendingFile> {
    let layout = layout(path, tensors)?;
    let header = header_bytes(tensors, &layout, metadata);
    write_pending(path, |file| {
        let length = (header.len() as u64).to_le_bytes();
        file.write_all(&length).map_err(Error::io(path, "write"))?;
        file.write_all(&header).map_err(Error::io(path, "write"))?;
        for place in &layout {
            let Some(tensor) = tensors.get(place.index) else {
                continue;
            };
            write_tensor(path, tensor, place, file, source)?;
        }
        Ok(())
    })
}

/// Makes `folder`'s entries durable. Systems that cannot open a folder as a
/// file (Windows) need no such step.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let handle = File::open(folder).map_err(Error::io(folder, "open"))?;
        handle.sync_all().map_err(Error::io(folder, "sync"))?;
    }
    Ok(())
}

fn sync_folder_of(path: &Path) -> Result<()> {
    sync_folder(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(crate) fn write_pending(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<PendingFile> {
    let Some(name) = path.file_name() else {
        return Err(Error::checkpoint(path, "not a file name; give a file inside a folder"));
    };
    // One fixed name for each target: a killed run leaves at most one such
    // file, and the next one overwrites it.
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".tmp");
    let temporary = folder_of(path).join(hidden);
    let file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
    let pending = PendingFile { temporary, target: path.to_path_buf(), committed: false };
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    write(&mut buffered)?;
    let file = buffered.into_inner().map_err(|error| error.into_error());
    let file = file.map_err(Error::io(path, "write"))?;
    file.sync_all().map_err(Error::io(path, "sync"))?;
    Ok(pending)
}

/// Place of a tensor in the data.
struct Place {
    index: usize,
    start: u64,
    end: u64,
}

/// Wider elements first, else the caller's order; refuses what overflows.
fn layout(path: &Path, tensors: &[TensorHeader]) -> Result<Vec<Place>> {
    let mut names = std::collections::HashSet::new();
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| tensors.get(index).map(|t| std::cmp::Reverse(t.dtype.bitsize())));
    let mut at = 0u64;
    let mut places = Vec::with_capacity(order.len());
    for index in order {
        let Some(tensor) = tensors.get(index) else {
            continue;
        };
        if !names.insert(tensor.name.as_str()) || tensor.name == "__metadata__" {
            return Err(Error::tensor(path, &tensor.name, "is there twice or has a reserved name"));
        }
        let bits = tensor.shape.iter().try_fold(tensor.dtype.bitsize() as u64, |bits, &n| bits.checked_mul(n as u64));
        let end = bits.filter(|bits| bits % 8 == 0).and_then(|bits| at.checked_add(bits / 8));
        let end = end.ok_or_else(|| {
            let problem = format!("of shape {:?} has no whole number of bytes", tensor.shape);
            Error::tensor(path, &tensor.name, problem)
        })?;
        places.push(Place { index, start: at, end });
        at = end;
    }
    Ok(places)
}

/// The JSON header, filled with spaces to a multiple of eight bytes.
fn header_bytes(tensors: &[TensorHeader], layout: &[Place], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut metadata = metadata.clone();
    metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
    let mut map = Map::new();
    map.insert("__metadata__".to_owned(), json!(metadata));
    for place in layout {
        let Some(tensor) = tensors.get(place.index) else {
            continue;
        };
        let info = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [place.start, place.end],
        });
        map.insert(tensor.name.clone(), info);
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

fn write_tensor(
    path: &Path,
    tensor: &TensorHeader,
    place: &Place,
    file: &mut dyn Write,
    source: &mut TensorSource<'_>,
) -> Result<()> {
    write_exactly(path, &tensor.name, place.end - place.start, file, &mut |out| source(place.index, out))
}

/// Has `produce` write a tensor's bytes, which must be as many as `wanted`.
pub(crate) fn write_exactly(
    path: &Path,
    tensor: &str,
    wanted: u64,
    file: &mut dyn Write,
    produce: &mut dyn FnMut(&mut dyn Write) -> Result<(), BoxError>,
) -> Result<()> {
    let mut counted = Counted { inner: file, written: 0, failed: None };
    let outcome = produce(&mut counted);
    let (written, failed) = (counted.written, counted.failed);
    // A full disk is told as such, not as the callback's failure.
    if let Some(kind) = failed {
        return Err(Error::io(path, "write")(kind.into()));
    }
    outcome.map_err(|error| Error::Source { path: path.to_path_buf(), tensor: tensor.to_owned(), source: error })?;
    if written != wanted {
        let problem = format!("takes {wanted} bytes but {written} were supplied");
        return Err(Error::tensor(path, tensor, problem));
    }
    Ok(())
}

struct Counted<'a> {
    inner: &'a mut dyn Write,
    written: u64,
    failed: Option<io::ErrorKind>,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        match &result {
            Ok(count) => self.written += *count as u64,
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failed = Some(error.kind());
            }
            Err(_) => {}
        }
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tensors::Checkpoint;

    fn header(name: &str, dtype: Dtype, shape: &[usize]) -> TensorHeader {
        TensorHeader { name: name.to_owned(), dtype, shape: shape.to_vec() }
    }

    fn entries(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_is_written_reads_back_aligned_and_alike() {
        let folder = tempfile::tempdir().unwrap();
        let tensors =
            [header("codes", Dtype::U8, &[3]), header("scale", Dtype::F32, &[2]), header("ids", Dtype::I64, &[1])];
        let metadata = BTreeMap::from([("step".to_owned(), "12".to_owned())]);
        let write = |name: &str| {
            let path = folder.path().join(name);
            write_safetensors(&path, &tensors, &metadata, &mut |index, out| {
                match index {
                    0 => out.write_all(&[1, 2, 3])?,
                    1 => out.write_all(bytemuck::cast_slice(&[0.5f32.to_le_bytes(), [0; 4]]))?,
                    _ => out.write_all(&9i64.to_le_bytes())?,
                }
                Ok(())
            })
            .unwrap();
            std::fs::read(path).unwrap()
        };
        let bytes = write("a.safetensors");
        assert_eq!(bytes, write("b.safetensors"));
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(length % 8, 0);
        let checkpoint = Checkpoint::open_file(&folder.path().join("a.safetensors")).unwrap();
        assert_eq!(checkpoint.u8("codes", &[3]).unwrap(), [1, 2, 3]);
        assert_eq!(checkpoint.f32("scale", &[2]).unwrap(), [0.5, 0.0]);
        assert_eq!(checkpoint.i64("ids", &[1]).unwrap(), [9]);
        assert_eq!(checkpoint.metadata()["step"], "12");
        assert_eq!(checkpoint.metadata()["format"], "pt");
        for name in ["scale", "ids"] {
            let address = checkpoint.get(name).unwrap().bytes.as_ptr() as usize;
            assert_eq!(address % 4, 0, "{name}");
        }
        assert_eq!(entries(folder.path()).len(), 2);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        write_atomic(&path, b"old").unwrap();
        let tensors = [header("t", Dtype::F32, &[2])];
        let write = |bytes: &'static [u8]| {
            write_safetensors(&path, &tensors, &BTreeMap::new(), &mut |_, out| {
                out.write_all(bytes)?;
                if bytes.is_empty() { Err("no such thing".into()) } else { Ok(()) }
            })
            .unwrap_err()
            .to_string()
        };
        assert!(write(&[0; 7]).contains("`t` takes 8 bytes but 7 were supplied"));
        assert!(write(&[0; 9]).contains("9 were supplied"));
        assert!(write(&[]).contains("`t` could not be produced: no such thing"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(folder.path()), ["m.safetensors"]);
    }

    #[test]
    fn a_pending_file_appears_at_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let tensors = [header("t", Dtype::U8, &[1])];
        let prepare = || {
            let mut source = |_: usize, out: &mut dyn Write| Ok(out.write_all(&[7])?);
            prepare_safetensors(&path, &tensors, &BTreeMap::new(), &mut source).unwrap()
        };
        let pending = prepare();
        assert!(pending.temporary().exists() && !path.exists());
        drop(pending);
        assert!(entries(folder.path()).is_empty());
        prepare().commit().unwrap();
        assert_eq!(Checkpoint::open_file(&path).unwrap().u8("t", &[1]).unwrap(), [7]);
        assert_eq!(entries(folder.path()), ["m.safetensors"]);
    }

    #[test]
    fn impossible_headers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let write = |tensors: &[TensorHeader]| {
            write_safetensors(&path, tensors, &BTreeMap::new(), &mut |_, _| Ok(())).unwrap_err()
        };
        let same = header("t", Dtype::U8, &[0]);
        assert!(write(&[same.clone(), same]).to_string().contains("`t` is there twice"));
        let huge = header("h", Dtype::F32, &[usize::MAX, 3]);
        assert!(write(&[huge]).to_string().contains("`h`"));
        assert!(write_atomic(Path::new("/"), b"").is_err());
        assert!(write_atomic(&folder.path().join("none/x"), b"").is_err());
    }
}
