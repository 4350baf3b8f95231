//! The cache of a prompt as a file: what was computed for a text once is not computed again.
//!
//! A safetensors file. Metadata: `format` ([`FORMAT`]), `version`, `model` (a [`fingerprint`]), `cache` (how
//! elements are stored and which keys are seen), where the sequence stands (`position`, `coded`, `floor`, `kept`,
//! `whole`, see [`CacheImage`]) and `checksum` over all of these and the contents. Tensors: `ids` `[tokens]`,
//! `pages` (pages of the text that are there), `layers.{i}.pages` `[pages, bytes of a page]`, and beside integers
//! `layers.{i}.newest` `[tokens, bytes of a row]`, the tokens from `whole` on in f32.
//!
//! A file of another model, another cache, or one that was cut or altered is refused. Checksum and fingerprint tell
//! accidents, not intent: whoever writes such a file on purpose chooses what the model remembers of the prompt.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cache_image::CacheImage;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::source::{Source, rows, width};
use crate::tensor_write::{TensorHeader, write_safetensors};
use crate::tensors::{Checkpoint, Dtype};

/// `format` of these files.
pub const FORMAT: &str = "tritter prompt cache";
/// Version of the layout that is written and read.
const VERSION: &str = "1";
/// Numbers of the metadata.
const NUMBERS: [&str; 5] = ["position", "coded", "floor", "kept", "whole"];

/// A number that differs between models: of the config, as far as keys and values depend on it, and of the first,
/// middle and last row of every weight tensor.
pub fn fingerprint(config: &Config, source: &dyn Source) -> Result<u64> {
    let relevant = Config {
        max_positions: 1,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        ..config.clone()
    };
    let mut digest = Digest::default();
    digest.bytes(relevant.to_json().to_string().as_bytes());
    for spec in config.tensors() {
        digest.bytes(spec.name.as_bytes());
        let (rows, mut row) = (rows(&spec), vec![0.0f32; width(&spec)]);
        for first in [0, rows / 2, rows.saturating_sub(1)] {
            source.floats(&spec, first, &mut row)?;
            digest.bytes(bytemuck::cast_slice(&row));
        }
    }
    Ok(digest.value())
}

/// Writes what the cache holds of a sequence whose tokens are `ids`.
pub fn save(path: &Path, session: &Session, sequence: usize, ids: &[u32], fingerprint: u64) -> Result<()> {
    let mut image = session.image(sequence)?;
    if ids.len() != image.position || ids.is_empty() {
        let message = format!("{} token ids for a cache of {} tokens, which is to be saved", ids.len(), image.position);
        return Err(Error::Session(message));
    }
    let ring = session.cache.shape.ring;
    for newest in &mut image.newest {
        *newest = in_order(newest, ring, image.whole, image.position);
    }
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let pages: Vec<u32> = image.pages.iter().map(|&page| page as u32).collect();
    let (page_bytes, tokens) = (session.cache.page_bytes() as usize, image.position - image.whole);
    let mut tensors = vec![("ids".to_owned(), vec![ids.len(), 4], bytes(ids))];
    tensors.push(("pages".to_owned(), vec![pages.len(), 4], bytes(&pages)));
    for (i, content) in image.content.into_iter().enumerate() {
        tensors.push((format!("layers.{i}.pages"), vec![pages.len(), page_bytes], content));
    }
    let row = session.cache.ring_bytes() as usize / ring.max(1);
    for (i, newest) in image.newest.into_iter().enumerate() {
        tensors.push((format!("layers.{i}.newest"), vec![tokens, row], newest));
    }
    let numbers = [image.position, image.coded, image.floor, image.kept, image.whole];
    let mut metadata: BTreeMap<String, String> =
        NUMBERS.iter().zip(numbers).map(|(key, value)| ((*key).to_owned(), value.to_string())).collect();
    let entries = [("format", FORMAT), ("version", VERSION), ("cache", &*described(session))];
    metadata.extend(entries.map(|(key, value)| (key.to_owned(), value.to_owned())));
    metadata.insert("model".to_owned(), format!("{fingerprint:016x}"));
    let mut digest = Digest::of(&metadata);
    tensors.iter().for_each(|(name, _, bytes)| digest.tensor(name, bytes));
    metadata.insert("checksum".to_owned(), format!("{:016x}", digest.value()));
    let headers: Vec<TensorHeader> = tensors
        .iter()
        .map(|(name, shape, _)| TensorHeader { name: name.clone(), dtype: Dtype::U8, shape: shape.clone() })
        .collect();
    write_safetensors(path, &headers, &metadata, &mut |i, out| Ok(out.write_all(&tensors[i].2)?))
}

/// Puts a file's cache into a sequence; gives the tokens that it is of.
pub fn load(path: &Path, session: &mut Session, sequence: usize, fingerprint: u64) -> Result<Vec<u32>> {
    let file = Opened { path, file: Checkpoint::open_file(path)? };
    let stand = file.check(&described(session), fingerprint)?;
    let [position, coded, floor, kept, whole] = stand;
    let layers = session.cache.rows.len();
    let capacity = session.capacity();
    if position > capacity {
        return Err(Error::checkpoint(path, format!("it holds {position} tokens, and the context is {capacity}")));
    }
    let ids = file.words("ids", position)?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= session.config.vocab_size) {
        return Err(Error::Vocabulary { id: *id, vocab: session.config.vocab_size });
    }
    let held = file.rows("pages")?;
    let pages: Vec<usize> = file.words("pages", held)?.into_iter().map(|page| page as usize).collect();
    let page_bytes = session.cache.page_bytes() as usize;
    let content = |i| Ok(file.tensor(&format!("layers.{i}.pages"), [held, page_bytes])?.to_vec());
    let content = (0..layers).map(content).collect::<Result<_>>()?;
    let (ring, ring_bytes) = (session.cache.shape.ring, session.cache.ring_bytes() as usize);
    let newest = |i| {
        let row = ring_bytes / ring;
        let rows = file.tensor(&format!("layers.{i}.newest"), [position.saturating_sub(whole), row])?;
        Ok(in_ring(rows, row, ring, position))
    };
    let newest = if ring == 0 { Vec::new() } else { (0..layers).map(newest).collect::<Result<_>>()? };
    // Of a shorter ring the first tokens have been overwritten.
    let whole = whole.max(position.saturating_sub(ring));
    let image = CacheImage { position, coded, floor, kept, whole, pages, content, newest };
    let refused = |error| match error {
        Error::Session(why) => {
            Error::checkpoint(path, format!("{why}; make it again with this model and these options"))
        }
        other => other,
    };
    session.restore(sequence, &image).map_err(refused)?;
    Ok(ids)
}

/// How a session's cache stores elements, and which keys a token sees.
fn described(session: &Session) -> String {
    let shape = &session.cache.shape;
    let format = shape.format;
    let mut text = format!("{format} in pages of {}", format.page);
    if format.bits().is_some() {
        text += &format!(", newest {}{}", format.residual, if format.precise { ", precise" } else { "" });
    }
    if let Some(window) = session.layout().window {
        text += &format!(", window {window}, sinks {}", shape.sinks);
    }
    text
}

/// Rows of the tokens `first .. end` out of a ring, in their order.
fn in_order(ring: &[u8], rows: usize, first: usize, end: usize) -> Vec<u8> {
    let row = ring.len() / rows.max(1);
    (first..end).flat_map(|token| &ring[token % rows * row..][..row]).copied().collect()
}

/// A ring that holds the last of consecutive rows, which end before token `end`.
fn in_ring(rows: &[u8], row: usize, ring: usize, end: usize) -> Vec<u8> {
    let mut bytes = vec![0; ring * row];
    for (back, content) in rows.rchunks_exact(row.max(1)).take(ring).enumerate() {
        bytes[(end - 1 - back) % ring * row..][..row].copy_from_slice(content);
    }
    bytes
}

struct Opened<'a> {
    path: &'a Path,
    file: Checkpoint,
}

impl Opened<'_> {
    /// Checks what the file says of itself, and its checksum; gives where the sequence stands.
    fn check(&self, cache: &str, fingerprint: u64) -> Result<[usize; 5]> {
        let fail = |problem: String| Err(Error::checkpoint(self.path, problem));
        let metadata = self.file.metadata();
        let entry = |key: &str| metadata.get(key).map_or("", String::as_str);
        if entry("format") != FORMAT {
            return fail("is no prompt cache; `generate --save-cache` writes one".into());
        }
        if entry("version") != VERSION {
            return fail(format!("is a prompt cache of version {}; this program reads {VERSION}", entry("version")));
        }
        if entry("model") != format!("{fingerprint:016x}") {
            return fail("is a prompt cache of another model; make it again with this one".into());
        }
        if entry("cache") != cache {
            return fail(format!("holds a cache in {}, and the session has one in {cache}", entry("cache")));
        }
        let mut described: BTreeMap<String, String> = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let checksum = described.remove("checksum").unwrap_or_default();
        let mut digest = Digest::of(&described);
        // In the order of writing.
        let mut names: Vec<&str> = self.file.names().collect();
        names.sort_unstable_by_key(|name| order(name));
        for name in names {
            digest.tensor(name, self.file.get(name)?.bytes);
        }
        if format!("{:016x}", digest.value()) != checksum {
            return fail("does not match its checksum: it was altered or damaged; make it again".into());
        }
        let mut stand = [0; 5];
        for (key, value) in NUMBERS.iter().zip(&mut stand) {
            let Ok(number) = entry(key).parse() else {
                return fail(format!("`{key}` is `{}`, which is no number of tokens", entry(key)));
            };
            *value = number;
        }
        Ok(stand)
    }

    /// Rows of a matrix of bytes.
    fn rows(&self, name: &str) -> Result<usize> {
        Ok(self.file.get(name)?.shape.first().copied().unwrap_or(0))
    }

    fn tensor(&self, name: &str, shape: [usize; 2]) -> Result<&[u8]> {
        self.file.u8(name, &shape)
    }

    fn words(&self, name: &str, count: usize) -> Result<Vec<u32>> {
        let bytes = self.tensor(name, [count, 4])?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}

/// Where a tensor stands among the written ones.
fn order(name: &str) -> (usize, usize, &str) {
    let layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match (name, layer) {
        ("ids", _) => (0, 0, name),
        ("pages", _) => (1, 0, name),
        (_, Some((layer, "pages"))) => (2, layer.parse().unwrap_or(usize::MAX), name),
        (_, Some((layer, _))) => (3, layer.parse().unwrap_or(usize::MAX), name),
        _ => (4, 0, name),
    }
}

/// FNV-1a over words of 8 bytes, folded so that high bits reach low ones.
#[derive(Default)]
struct Digest(u64);

impl Digest {
    fn of(metadata: &BTreeMap<String, String>) -> Digest {
        let mut digest = Digest::default();
        for (key, value) in metadata {
            digest.bytes(key.as_bytes());
            digest.bytes(value.as_bytes());
        }
        digest
    }

    fn tensor(&mut self, name: &str, bytes: &[u8]) {
        self.bytes(name.as_bytes());
        self.bytes(bytes);
    }

    /// Adds bytes and their number.
    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }

    fn word(&mut self, word: u64) {
        let mixed = (self.0 ^ word ^ 0xCBF2_9CE4_8422_2325).wrapping_mul(0x0100_0000_01B3);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn value(&self) -> u64 {
        self.0
    }
}
