//! Weights of streamed layers in a file, in the very layout in which kernels read them.
//!
//! The file is made anew for every session and has no name as soon as it is open, so it goes with the process
//! and no other program can change it: it needs no header and no checksum, and can never belong to another model.
//! It is written through a [`Scratch`] device, to which weights are loaded as to any other, and then mapped.

use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tritter_runtime::device::{Arena, Backend, Buffer, Caps, Pending, Program, Support};
use tritter_runtime::dtype::Spec;
use tritter_runtime::ledger::Ledger;
use tritter_runtime::op::Op;
use tritter_runtime::plan::ALIGN;
use tritter_runtime::{Device, Graph, Plan, Role, Tensor};

/// Groups begin at multiples of this, which is one of every page size: pages of one hold nothing of another.
const PAGE: u64 = 1 << 16;

/// Bytes of tensors that lie one after the other, each at a multiple of [`ALIGN`].
pub(super) fn size(tensors: &[Tensor]) -> u64 {
    tensors.iter().map(|tensor| tensor.spec().bytes().next_multiple_of(ALIGN)).sum()
}

/// Where tensors lie, and their bytes.
#[derive(Debug)]
pub(super) struct Places {
    /// Groups of bytes, each with the first byte of its tensors, in their order.
    pub(super) groups: Vec<(Range<u64>, Vec<u64>)>,
    /// Bytes of the file.
    pub(super) bytes: u64,
}

impl Places {
    pub(super) fn new(groups: &[Vec<Tensor>]) -> Places {
        let mut end: u64 = 0;
        let mut place = |tensors: &Vec<Tensor>| {
            let first = end.next_multiple_of(PAGE);
            end = first;
            let mut next = |tensor: &Tensor| {
                let at = end;
                end += tensor.spec().bytes().next_multiple_of(ALIGN);
                at
            };
            let firsts = tensors.iter().map(&mut next).collect();
            (first..end, firsts)
        };
        let groups = groups.iter().map(&mut place).collect();
        Places { groups, bytes: end.next_multiple_of(PAGE) }
    }
}

/// A device that only holds: its memory is a file without a name.
pub(super) struct Scratch {
    caps: Caps,
    ledger: Arc<Ledger>,
    file: Mutex<File>,
    folder: PathBuf,
    bytes: u64,
}

impl Scratch {
    /// A file of so many bytes in a folder, which is made where it is missing.
    pub(super) fn new(folder: &Path, bytes: u64) -> Result<Arc<Scratch>> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "make the folder for streamed weights"))?;
        let file = tempfile::tempfile_in(folder).map_err(Error::io(folder, "make a file for streamed weights in"))?;
        file.set_len(bytes).map_err(Error::io(folder, "find room for streamed weights in"))?;
        let caps = Caps { backend: "file", id: "file".into(), name: folder.display().to_string(), ..Caps::default() };
        Ok(Arc::new(Scratch { ledger: Ledger::new(&caps), caps, file: Mutex::new(file), folder: folder.into(), bytes }))
    }

    /// Gives tensors their places.
    pub(super) fn hold(self: &Arc<Self>, groups: &[Vec<Tensor>], places: &Places) -> Result<()> {
        let whole = Buffer::new(self.clone(), self.bytes);
        for (tensors, (_, firsts)) in groups.iter().zip(&places.groups) {
            for (tensor, &first) in tensors.iter().zip(firsts) {
                place(tensor, &whole, first)?;
            }
        }
        Ok(())
    }

    pub(super) fn device(self: &Arc<Self>) -> Device {
        Device::new(self.clone())
    }

    /// Maps what was written, which is not to be written again.
    pub(super) fn map(&self) -> Result<crate::mmap::Map> {
        let file = self.file.lock();
        crate::mmap::Map::of_file(&file).map_err(Error::io(&self.folder, "map the file of streamed weights in"))
    }

    fn refuse(&self, message: String) -> tritter_runtime::Error {
        tritter_runtime::Error::Device { device: format!("streamed weights in {}", self.folder.display()), message }
    }

    /// The file at a place, if as many bytes are there.
    fn at(
        &self,
        buffer: &Buffer,
        offset: u64,
        bytes: u64,
    ) -> tritter_runtime::Result<parking_lot::MutexGuard<'_, File>> {
        let own = buffer.downcast::<Scratch>().is_some_and(|held| std::ptr::eq(&raw const *held, self));
        if !own || offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(self.refuse(format!("{bytes} bytes at {offset} are not in this file")));
        }
        let mut file = self.file.lock();
        file.seek(SeekFrom::Start(offset)).map_err(|e| self.refuse(e.to_string()))?;
        Ok(file)
    }
}

/// Gives a tensor a part of a buffer.
pub(super) fn place(tensor: &Tensor, buffer: &Buffer, first: u64) -> Result<()> {
    let placed = buffer.part(first, tensor.spec().bytes()).is_some_and(|part| tensor.place(part));
    let taken =
        || Error::Session(format!("`{}` has memory already: weights are streamed to one session", tensor.name()));
    placed.then_some(()).ok_or_else(taken)
}

/// Bytes that are there.
struct There(Vec<u8>);

impl Pending for There {
    fn wait(self: Box<Self>) -> tritter_runtime::Result<Vec<u8>> {
        Ok(self.0)
    }
}

impl Backend for Scratch {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    /// The file is no memory, and nothing is allocated in it.
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn supports(&self, _: &Op, _: &[Spec]) -> Support {
        Support::Missing("a file computes nothing".into())
    }

    fn alloc(&self, bytes: u64, _: Role, name: &str) -> tritter_runtime::Result<Buffer> {
        Err(self.refuse(format!("no place was planned for the {bytes} bytes of `{name}`")))
    }

    fn write(&self, to: &Buffer, offset: u64, bytes: &[u8]) -> tritter_runtime::Result<()> {
        let mut file = self.at(to, offset, bytes.len() as u64)?;
        file.write_all(bytes).map_err(|e| self.refuse(format!("cannot be written: {e}")))
    }

    fn fetch(&self, from: &Buffer, offset: u64, bytes: u64) -> tritter_runtime::Result<Box<dyn Pending>> {
        let mut file = self.at(from, offset, bytes)?;
        let length = usize::try_from(bytes).map_err(|e| self.refuse(e.to_string()))?;
        let mut read = vec![0; length];
        file.read_exact(&mut read).map_err(|e| self.refuse(format!("cannot be read: {e}")))?;
        Ok(Box::new(There(read)))
    }

    fn compile(&self, _: &Graph, _: &Plan, _: &Arena) -> tritter_runtime::Result<Box<dyn Program>> {
        Err(self.refuse("a file computes nothing".into()))
    }

    fn wait(&self) -> tritter_runtime::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tritter_runtime::DType;
    use tritter_runtime::stream::HostMemory;

    fn tensors() -> Vec<Vec<Tensor>> {
        let group = |g: usize| (1..4).map(|i| Tensor::weight(format!("{g}.{i}"), [100 * i, 3], DType::F32)).collect();
        (0..3).map(group).collect()
    }

    #[test]
    fn what_is_written_to_a_place_is_mapped_there() {
        let (folder, groups) = (tempfile::tempdir().unwrap(), tensors());
        let places = Places::new(&groups);
        let scratch = Scratch::new(&folder.path().join("new"), places.bytes).unwrap();
        scratch.hold(&groups, &places).unwrap();
        let device = scratch.device();
        for (i, tensor) in groups.iter().flatten().enumerate() {
            device.write(tensor, &vec![i as f32 + 0.5; tensor.spec().elements()]).unwrap();
        }
        assert_eq!(device.read::<f32>(&groups[1][1]).unwrap(), vec![4.5; 600]);
        let map = scratch.map().unwrap();
        let mut number = 0;
        for (range, firsts) in &places.groups {
            assert!(range.start.is_multiple_of(PAGE) && range.end <= places.bytes);
            for &first in firsts {
                let word: [u8; 4] = map.bytes()[first as usize..first as usize + 4].try_into().unwrap();
                assert_eq!(f32::from_le_bytes(word), number as f32 + 0.5);
                number += 1;
            }
        }
        assert_eq!(number, 9);
        // The file has no name.
        assert_eq!(std::fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_read_or_written_outside() {
        let (folder, groups) = (tempfile::tempdir().unwrap(), tensors());
        let places = Places::new(&groups);
        let scratch = Scratch::new(folder.path(), places.bytes).unwrap();
        scratch.hold(&groups, &places).unwrap();
        assert!(scratch.hold(&groups, &places).unwrap_err().to_string().contains("one session"));
        let own = groups[0][0].buffer().unwrap();
        assert!(scratch.write(own, places.bytes - 4, &[0; 8]).is_err());
        assert!(scratch.fetch(own, u64::MAX, 8).is_err());
        let foreign = Buffer::new(Arc::new(()), 64);
        assert!(scratch.write(&foreign, 0, &[0; 8]).unwrap_err().to_string().contains("not in this file"));
        assert!(scratch.alloc(4, Role::Weight, "more").is_err());
    }
}
