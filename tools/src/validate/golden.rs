//! Golden tensors of a file, with a record of which of them were compared or fed in.

use anyhow::{Context, Result, bail};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use tritter_model::tensors::Checkpoint;

/// An open file of golden tensors.
pub(super) struct Golden {
    file: Checkpoint,
    used: RefCell<BTreeSet<String>>,
}

/// Token ids `[batch, length]`.
pub(super) struct Ids {
    pub(super) batch: usize,
    pub(super) length: usize,
    pub(super) ids: Vec<u32>,
}

impl Ids {
    /// Ids of one sequence.
    pub(super) fn row(&self, i: usize) -> &[u32] {
        &self.ids[i * self.length..][..self.length]
    }
}

impl Golden {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> Result<Golden> {
        Ok(Golden { file: Checkpoint::open_file(path)?, used: RefCell::default() })
    }

    /// Are all of these there?
    pub(super) fn has(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.file.contains(name))
    }

    /// Names that begin with `prefix`, without it.
    pub(super) fn beginning(&self, prefix: &str) -> Vec<String> {
        self.file.names().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    /// Names that nothing has read.
    pub(super) fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        self.file.names().filter(|name| !used.contains(*name)).map(str::to_owned).collect()
    }

    fn mark(&self, name: &str) {
        self.used.borrow_mut().insert(name.to_owned());
    }

    /// Extents of a tensor.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.file.get(name)?.shape.to_vec())
    }

    /// A float tensor of that shape.
    pub(super) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.mark(name);
        Ok(self.file.f32(name, shape)?)
    }

    /// An i8 tensor of that shape.
    pub(super) fn codes(&self, name: &str, shape: &[usize]) -> Result<&[i8]> {
        self.mark(name);
        Ok(self.file.i8(name, shape)?)
    }

    /// A u8 tensor of that shape.
    pub(super) fn bytes(&self, name: &str, shape: &[usize]) -> Result<&[u8]> {
        self.mark(name);
        Ok(self.file.u8(name, shape)?)
    }

    /// Signed integers `[length]`.
    pub(super) fn list(&self, name: &str, length: usize) -> Result<Vec<i64>> {
        self.mark(name);
        Ok(self.file.i64(name, &[length])?)
    }

    /// Signed integers `[batch, length]` with their extents; neither is 0.
    pub(super) fn integers(&self, name: &str) -> Result<(usize, usize, Vec<i64>)> {
        self.mark(name);
        let shape = self.shape(name)?;
        let &[batch, length] = shape.as_slice() else {
            bail!("{}: `{name}` has shape {shape:?}, expected [batch, length]", self.path().display());
        };
        if batch == 0 || length == 0 {
            bail!("{}: `{name}` is empty", self.path().display());
        }
        Ok((batch, length, self.file.i64(name, &shape)?))
    }

    /// Token ids.
    pub(super) fn ids(&self, name: &str) -> Result<Ids> {
        let (batch, length, ids) = self.integers(name)?;
        let ids: Result<Vec<u32>, _> = ids.into_iter().map(u32::try_from).collect();
        let ids =
            ids.with_context(|| format!("{}: `{name}` holds a number that is no token id", self.path().display()))?;
        Ok(Ids { batch, length, ids })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }
}
