//! The tensors of a model folder, memory-mapped: one `model.safetensors`, or
//! shards listed by `model.safetensors.index.json`.
//!
//! Opening reads headers only; nothing is copied until a tensor is asked for.
//! Files are taken as hostile: every fault is an error that names file and
//! tensor.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
pub use safetensors::Dtype;

use crate::config::Config;
use crate::error::{Error, Result, read_json};
use crate::json_fields::Fields;
use crate::mmap::Map;
use crate::quantized::{Groups, Quantized, scales_name};
use crate::safetensors_header::read_header;
use crate::source::{rows, width};
use crate::tensor_names::{StoredAs, TensorSpec};
use tritter_runtime::DType;

/// File name of a checkpoint in one piece.
pub const SINGLE_FILE: &str = "model.safetensors";
/// File name of the list of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// A tensor's bytes in the mapped file, row-major and little-endian, not
/// necessarily aligned.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Extents, slowest first; empty for a scalar.
    pub shape: &'a [usize],
    /// The elements.
    pub bytes: &'a [u8],
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
    metadata: HashMap<String, String>,
    /// What stands before the names that a config asks for, see [`Checkpoint::stored_name`].
    prefix: Prefix,
    quantized: Quantized,
}

/// How names in the file differ from those of a causal language model.
#[derive(Debug, Default, PartialEq, Eq)]
enum Prefix {
    /// Not at all.
    #[default]
    Plain,
    /// The base model was saved alone: `layers.0…` instead of `model.layers.0…`.
    Bare,
    /// The model is a part of a larger one: `language_model.model.layers.0…`.
    Within(String),
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Map,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl Checkpoint {
    /// Opens the checkpoint of a model folder: `model.safetensors` if it is
    /// there, else the shards of `model.safetensors.index.json`.
    pub fn open(folder: &Path) -> Result<Self> {
        let (single, index, config) = (folder.join(SINGLE_FILE), folder.join(INDEX_FILE), folder.join("config.json"));
        let quantized = match config.exists() {
            true => Quantized::from_json(&config, &read_json(&config)?)?,
            false => Quantized::default(),
        };
        if single.exists() {
            return Ok(Self { quantized, ..Self::open_file(&single)? });
        }
        if index.exists() {
            return Ok(Self { quantized, ..Self::open_shards(folder, &index)? });
        }
        let problem = format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}; give a model folder");
        Err(Error::checkpoint(folder, problem))
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(path);
        checkpoint.add_shard(path)?;
        checkpoint.find_prefix();
        Ok(checkpoint)
    }

    /// As [`Checkpoint::open_file`] for bytes in memory; errors call them `safetensors`.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let path = Path::new("safetensors");
        let mut checkpoint = Self::empty(path);
        checkpoint.add_map(path, Map::from_bytes(bytes))?;
        checkpoint.find_prefix();
        Ok(checkpoint)
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        let json = read_json(index)?;
        let fields = Fields::new(index, "", &json)?;
        let map = json.get("weight_map").and_then(|map| map.as_object());
        let map = map.ok_or_else(|| fields.error("weight_map", "it should be an object {…}"))?;
        let mut checkpoint = Self::empty(index);
        let mut numbers = HashMap::new();
        for (tensor, shard) in map {
            let name = shard.as_str().filter(|name| is_plain_name(name)).ok_or_else(|| {
                let problem = "a shard must be a file name without a folder";
                Error::field(index, format!("weight_map.{tensor}"), shard, problem)
            })?;
            if !numbers.contains_key(name) {
                numbers.insert(name, checkpoint.shards.len());
                checkpoint.open_shard(index, tensor, &folder.join(name))?;
            }
        }
        for (tensor, shard) in map {
            let wanted = shard.as_str().and_then(|name| numbers.get(name));
            let found = checkpoint.tensors.get(tensor).map(|entry| &entry.shard);
            if found.is_none() || found != wanted {
                let problem = format!("is not in {shard}, where the index puts it");
                return Err(Error::tensor(index, tensor, problem));
            }
        }
        checkpoint.find_prefix();
        Ok(checkpoint)
    }

    fn open_shard(&mut self, index: &Path, tensor: &str, path: &Path) -> Result<()> {
        if !path.exists() {
            let problem = format!("is in {}, which is missing; fetch that shard", path.display());
            return Err(Error::tensor(index, tensor, problem));
        }
        self.add_shard(path)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: HashMap::new(),
            prefix: Prefix::Plain,
            quantized: Quantized::default(),
        }
    }

    /// Sees from the name of the embedding how names are spelt here.
    fn find_prefix(&mut self) {
        const EMBEDDING: &str = "embed_tokens.weight";
        let mut found = self.tensors.keys().filter_map(|name| name.strip_suffix(EMBEDDING));
        self.prefix = match (found.next(), found.next()) {
            (Some(""), None) => Prefix::Bare,
            (Some(before), None) => match before.strip_suffix("model.") {
                Some(outer) if outer.ends_with('.') => Prefix::Within(outer.to_owned()),
                _ => Prefix::Plain,
            },
            _ => Prefix::Plain,
        };
    }

    /// The name in the file of a tensor that a config asks for. Files of a base model that was saved alone
    /// leave `model.` out, and files of a larger model put the name of the part before it.
    fn stored_name<'n>(&self, name: &'n str) -> Cow<'n, str> {
        match &self.prefix {
            Prefix::Plain => name.into(),
            Prefix::Bare => name.strip_prefix("model.").unwrap_or(name).into(),
            Prefix::Within(outer) => format!("{outer}{name}").into(),
        }
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(&*self.stored_name(name)).or_else(|| self.tensors.get(name))
    }

    fn add_shard(&mut self, path: &Path) -> Result<()> {
        self.add_map(path, Map::open(path)?)
    }

    fn add_map(&mut self, path: &Path, map: Map) -> Result<()> {
        let header = read_header(path, &map)?;
        let shard = self.shards.len();
        for (name, info) in header.tensors {
            // In range: the header was checked against the file's length.
            let start = header.data_start + info.data_offsets.0;
            let end = header.data_start + info.data_offsets.1;
            let entry = Entry { shard, dtype: info.dtype, shape: info.shape, start, end };
            if let Some(other) = self.tensors.get(&name) {
                let first = self.shards.get(other.shard).map(|shard| shard.path.display());
                let first = first.map(|path| path.to_string()).unwrap_or_default();
                let problem = format!("is also in {first}; remove one of the two shards");
                return Err(Error::tensor(path, &name, problem));
            }
            self.tensors.insert(name, entry);
        }
        for (key, value) in header.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        self.shards.push(Shard { path: path.to_path_buf(), map });
        Ok(())
    }

    /// The file, or the index of the shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which parts are stored in groups of integers: what `config.json` of an opened folder says.
    pub fn quantized(&self) -> &Quantized {
        &self.quantized
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor of that name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// Strings of the files' `__metadata__`; of several shards the first wins.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors together.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| (entry.end - entry.start) as u64).sum()
    }

    /// A tensor in place.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let missing = || Error::tensor(&self.path, name, "is missing; the file is of another model");
        let entry = self.entry(name).ok_or_else(missing)?;
        let shard = self.shards.get(entry.shard).ok_or_else(missing)?;
        let bytes = shard.map.get(entry.start..entry.end).ok_or_else(missing)?;
        Ok(TensorView { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// A tensor in place, of exactly that shape and one of those dtypes.
    pub(crate) fn expect(&self, name: &str, shape: &[usize], dtypes: &[Dtype]) -> Result<TensorView<'_>> {
        let view = self.get(name)?;
        if !dtypes.contains(&view.dtype) {
            let wanted: Vec<_> = dtypes.iter().map(ToString::to_string).collect();
            let problem = format!("has dtype {}, expected {}", view.dtype, wanted.join(" or "));
            return Err(self.of(name, problem));
        }
        // A scalar may have one extent or none.
        if view.shape != shape && !(shape == [1] && view.shape.is_empty()) {
            let problem = format!("has shape {:?}, expected {shape:?}", view.shape);
            return Err(self.of(name, problem));
        }
        Ok(view)
    }

    /// An error about a tensor, naming the shard that holds it.
    fn of(&self, name: &str, problem: String) -> Error {
        let shard = self.entry(name).and_then(|entry| self.shards.get(entry.shard));
        let path = shard.map_or(self.path.as_path(), |shard| shard.path.as_path());
        let problem = format!("{problem}; config.json and this file do not belong together");
        Error::tensor(path, name, problem)
    }

    /// A float tensor (f32, f16, bf16 or f64) of that shape, as f32.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let view = self.expect(name, shape, FLOATS)?;
        Ok(view.to_f32().unwrap_or_default())
    }

    /// A float tensor of that shape, in place.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        self.expect(name, shape, FLOATS)
    }

    /// Lets the system take back the memory of a part of a tensor's bytes (see [`Map::release`]).
    pub fn release(&self, name: &str, bytes: std::ops::Range<usize>) {
        if let Some(entry) = self.entry(name)
            && let Some(shard) = self.shards.get(entry.shard)
        {
            let at = |offset: usize| entry.start.saturating_add(offset).min(entry.end);
            shard.map.release(at(bytes.start)..at(bytes.end));
        }
    }

    /// A `u8` tensor of that shape, in place.
    pub fn u8(&self, name: &str, shape: &[usize]) -> Result<&[u8]> {
        Ok(self.expect(name, shape, &[Dtype::U8])?.bytes)
    }

    /// An `i8` tensor of that shape, in place.
    pub fn i8(&self, name: &str, shape: &[usize]) -> Result<&[i8]> {
        Ok(bytemuck::cast_slice(self.expect(name, shape, &[Dtype::I8])?.bytes))
    }

    /// Stored words and scales of a tensor in groups of integers, in place.
    pub(crate) fn groups(&self, spec: &TensorSpec, groups: Groups) -> Result<[TensorView<'_>; 2]> {
        let (n, k) = (rows(spec), width(spec));
        let stored = if groups.dtype == DType::I8 { Dtype::I8 } else { Dtype::U8 };
        let codes = self.expect(&spec.name, &[n, groups.dtype.row_bytes(k)], &[stored])?;
        let scales = self.expect(&scales_name(&spec.name), &[n, groups.scales(k)], &[Dtype::F16])?;
        Ok([codes, scales])
    }

    /// An `i64` tensor of that shape.
    pub fn i64(&self, name: &str, shape: &[usize]) -> Result<Vec<i64>> {
        let view = self.expect(name, shape, &[Dtype::I64])?;
        Ok(view.bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// Checks that every tensor of `config` is there with the right shape and
    /// kind of dtype, reading no data. Tensors beyond those are no error.
    pub fn check(&self, config: &Config) -> Result<()> {
        for spec in config.tensors() {
            if let Some(groups) = self.quantized.of(&spec) {
                self.groups(&spec, groups)?;
                continue;
            }
            for stored in spec.stored(config.quantization) {
                let dtypes = match stored.stored_as {
                    StoredAs::Float => FLOATS,
                    StoredAs::Packed => &[Dtype::U8],
                };
                self.expect(&stored.name, &stored.shape, dtypes)?;
            }
        }
        Ok(())
    }
}

/// Dtypes that [`Checkpoint::f32`] converts.
const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];

impl TensorView<'_> {
    /// The elements as f32; `None` where the dtype is not a float of 16, 32 or
    /// 64 bits. f64 is rounded to nearest.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let mut out = vec![0.0; self.shape.iter().product()];
        self.read_f32(0, &mut out)?;
        Some(out)
    }

    /// As [`TensorView::to_f32`] for the elements from `first`, as many as `out` takes; `None` also where
    /// there are not so many.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) -> Option<()> {
        let size = self.dtype.bitsize() / 8;
        let end = first.checked_add(out.len())?.checked_mul(size)?;
        let bytes = self.bytes.get(first.checked_mul(size)?..end)?;
        match self.dtype {
            Dtype::F32 => convert(bytes, out, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => convert(bytes, out, |b| f64::from_le_bytes(b) as f32),
            _ => return None,
        }
        Some(())
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, chunk) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = convert(*chunk);
    }
}

/// Whether a path is one plain component, so that it cannot leave its folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    plain && parts.next().is_none() && !name.contains(['\\', ':', '\0'])
}

#[cfg(test)]
#[path = "tensors_test.rs"]
mod tests;
