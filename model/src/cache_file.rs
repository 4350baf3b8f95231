//! The cache of a prompt as a file: what was computed for a text once is not computed again.
//!
//! A safetensors file of bytes. Metadata: `format` ([`FORMAT`]), `version`, `model` (a [`fingerprint`]), `cache` (how
//! elements are stored and which keys are seen), `rope` (how keys were turned), where the sequence stands
//! (`position`, `coded`, `floor`, `kept`, `whole`, see [`CacheImage`]) and, of a conversation, `conversation`. Tensors
//! in this order: `ids` `[tokens, 4]`, `pages` `[pages, 4]` (pages of the text that are there), `layers.{i}.pages`
//! `[pages, bytes of a page]`, beside integers `layers.{i}.newest` `[tokens, bytes of a row]` (the tokens from
//! `whole` on in f32), and `checksum` `[8]` over metadata and contents.
//!
//! Both ways bytes go a few pages at a time, so a file of any length takes no memory beside the cache's own.
//!
//! A file of another model, another cache, or one that was cut or altered is refused. Checksum and fingerprint tell
//! accidents, not intent: whoever writes such a file on purpose chooses what the model remembers of the prompt.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use tritter_runtime::Tensor;

use crate::cache_image::{CacheImage, Piece};
use crate::config::{Config, Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::source::{Source, rows, width};
use crate::tensor_write::{TensorHeader, write_safetensors};
use crate::tensors::{Checkpoint, Dtype};

/// `format` of these files.
pub const FORMAT: &str = "tritter prompt cache";
/// Version of the layout that is written and read.
const VERSION: &str = "2";
/// Numbers of the metadata.
const NUMBERS: [&str; 5] = ["position", "coded", "floor", "kept", "whole"];
/// The metadata entry of a conversation.
const CONVERSATION: &str = "conversation";
/// The last tensor.
const CHECKSUM: &str = "checksum";

/// What a cache was computed of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Of a conversation, what who keeps it needs to go on with it.
    pub conversation: Option<String>,
}

/// A number that differs between models: of the config, as far as keys and values depend on it, and of the first,
/// middle and last row of every weight tensor. Rotations and windows are not in it, for the file names them itself.
pub fn fingerprint(config: &Config, source: &dyn Source) -> Result<u64> {
    let relevant = Config {
        max_positions: 1,
        rope: Rope { theta: 1.0, scaling: RopeScaling::None },
        window: None,
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

/// Writes what the cache holds of a sequence whose tokens are those of `prompt`.
pub fn save(path: &Path, session: &Session, sequence: usize, prompt: &Prompt, fingerprint: u64) -> Result<()> {
    let (image, ids) = (session.image(sequence)?, &prompt.ids);
    if ids.len() != image.position || ids.is_empty() {
        let message = format!("{} token ids for a cache of {} tokens, which is to be saved", ids.len(), image.position);
        return Err(Error::Session(message));
    }
    let numbers = [image.position, image.coded, image.floor, image.kept, image.whole];
    let mut metadata: BTreeMap<String, String> =
        NUMBERS.iter().zip(numbers).map(|(key, value)| ((*key).to_owned(), value.to_string())).collect();
    let entries =
        [("format", FORMAT), ("version", VERSION), ("cache", &described(session)), ("rope", &turned(session))];
    metadata.extend(entries.map(|(key, value)| (key.to_owned(), value.to_owned())));
    metadata.insert("model".to_owned(), format!("{fingerprint:016x}"));
    metadata.extend(prompt.conversation.iter().map(|text| (CONVERSATION.to_owned(), text.clone())));
    let parts = parts(session, sequence, &image);
    let header =
        |part: &Part<'_>| TensorHeader { name: part.name.clone(), dtype: Dtype::U8, shape: part.shape.clone() };
    let headers: Vec<TensorHeader> = parts.iter().map(header).collect();
    let mut digest = Digest::of(&metadata);
    write_safetensors(path, &headers, &metadata, &mut |i, out| {
        let Some(part) = parts.get(i) else { return Ok(()) };
        let mut put = |bytes: &[u8]| {
            digest.update(bytes);
            out.write_all(bytes)
        };
        match &part.content {
            Content::Words(Words::Ids) => put(bytemuck::cast_slice(&little_endian(ids)))?,
            Content::Words(Words::Pages) => {
                let pages: Vec<u32> = image.pages.iter().map(|&page| page as u32).collect();
                put(bytemuck::cast_slice(&little_endian(&pages)))?;
            }
            Content::Device(tensor, pieces) => {
                for piece in pieces {
                    let bytes = (piece.rows.len() * part.shape[1]) as u64;
                    put(&session.device.read_at(tensor, piece.at, bytes)?)?;
                }
            }
            Content::Checksum => out.write_all(&digest.value().to_le_bytes())?,
        }
        Ok(())
    })
}

fn little_endian(words: &[u32]) -> Vec<u32> {
    words.iter().map(|word| word.to_le()).collect()
}

/// Puts a file's cache into a sequence, whatever that held; gives what it is of. Where the contents do not match the
/// checksum, which is known only when they have been read, the sequence is empty afterwards.
pub fn load(path: &Path, session: &mut Session, sequence: usize, fingerprint: u64) -> Result<Prompt> {
    let file = Opened { path, file: Checkpoint::open_file(path)? };
    let mut image = file.check(session, fingerprint)?;
    let ids = file.words("ids", image.position)?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= session.config.vocab_size) {
        return Err(Error::Vocabulary { id: *id, vocab: session.config.vocab_size });
    }
    let held = file.rows("pages")?;
    if held > session.cache.shape.entries {
        return Err(Error::checkpoint(path, format!("it has {held} pages of {} tokens", image.position)));
    }
    image.pages = file.words("pages", held)?.into_iter().map(|page| page as usize).collect();
    let stored = image.clone();
    // Of a shorter ring the first tokens have been overwritten.
    image.whole = image.whole.max(image.position.saturating_sub(session.cache.shape.ring)).min(image.position);
    file.shapes(&parts(session, sequence, &stored))?;
    session.place(sequence, &image).map_err(|error| match error {
        Error::Session(why) => {
            Error::checkpoint(path, format!("{why}; make it again with this model and these options"))
        }
        other => other,
    })?;
    let contents = file.contents(session, sequence, &stored);
    if contents.is_err() {
        session.release(sequence)?;
    }
    contents?;
    Ok(Prompt { ids, conversation: file.file.metadata().get(CONVERSATION).cloned() })
}

/// A tensor of the file, in the order of writing.
struct Part<'a> {
    name: String,
    shape: Vec<usize>,
    content: Content<'a>,
}

enum Content<'a> {
    Words(Words),
    /// Rows that lie on the device in pieces.
    Device(&'a Tensor, Vec<Piece>),
    Checksum,
}

enum Words {
    Ids,
    Pages,
}

fn parts<'a>(session: &'a Session, sequence: usize, image: &CacheImage) -> Vec<Part<'a>> {
    let cache = &session.cache;
    let words = |name: &str, count, of| Part { name: name.into(), shape: vec![count, 4], content: Content::Words(of) };
    let mut parts = vec![words("ids", image.position, Words::Ids), words("pages", image.pages.len(), Words::Pages)];
    let mut add = |name: String, shape, tensor, pieces: &[Piece]| {
        parts.push(Part { name, shape, content: Content::Device(tensor, pieces.to_vec()) });
    };
    let pieces = session.page_pieces(sequence, image);
    for (i, tensor) in cache.pool().iter().enumerate() {
        add(format!("layers.{i}.pages"), vec![image.pages.len(), cache.page_bytes() as usize], tensor, &pieces);
    }
    if cache.shape.ring > 0 {
        let pieces = session.ring_pieces(sequence, image);
        let shape = vec![image.position - image.whole.min(image.position), cache.ring_row_bytes() as usize];
        for (i, tensor) in cache.rows.iter().enumerate() {
            add(format!("layers.{i}.newest"), shape.clone(), tensor, &pieces);
        }
    }
    parts.push(Part { name: CHECKSUM.into(), shape: vec![8], content: Content::Checksum });
    parts
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

/// How a session's model turns queries and keys.
fn turned(session: &Session) -> String {
    session.config.rope.to_json().to_string()
}

struct Opened<'a> {
    path: &'a Path,
    file: Checkpoint,
}

impl Opened<'_> {
    /// Checks what the file says of itself; gives where the sequence stands, its pages left out.
    fn check(&self, session: &Session, fingerprint: u64) -> Result<CacheImage> {
        let fail = |problem: String| Err(Error::checkpoint(self.path, problem));
        let entry = |key: &str| self.file.metadata().get(key).map_or("", String::as_str);
        if entry("format") != FORMAT {
            return fail("is no prompt cache; `generate --save-cache` writes one".into());
        }
        if entry("version") != VERSION {
            return fail(format!("is a prompt cache of version {}; this program reads {VERSION}", entry("version")));
        }
        if entry("model") != format!("{fingerprint:016x}") {
            return fail("is a prompt cache of another model; make it again with this one".into());
        }
        let cache = described(session);
        if entry("cache") != cache {
            return fail(format!("holds a cache in {}, and the session has one in {cache}", entry("cache")));
        }
        let rope = turned(session);
        if entry("rope") != rope {
            let there = entry("rope");
            return fail(format!("holds keys turned by {there}, and the session turns them by {rope}; see --rope"));
        }
        let mut stand = [0; 5];
        for (key, value) in NUMBERS.iter().zip(&mut stand) {
            let Ok(number) = entry(key).parse() else {
                return fail(format!("`{key}` is `{}`, which is no number of tokens", entry(key)));
            };
            *value = number;
        }
        let [position, coded, floor, kept, whole] = stand;
        if position > session.capacity() {
            return fail(format!(
                "it holds {position} tokens, and the context is {}; open it with a larger one",
                session.capacity()
            ));
        }
        Ok(CacheImage { position, coded, floor, kept, whole, pages: Vec::new() })
    }

    /// Are all tensors there, of the right sizes, and no others?
    fn shapes(&self, parts: &[Part<'_>]) -> Result<()> {
        for part in parts {
            self.file.u8(&part.name, &part.shape)?;
        }
        let known: HashSet<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        match self.file.names().find(|name| !known.contains(name)) {
            Some(name) => Err(Error::tensor(self.path, name, "is no part of a prompt cache")),
            None => Ok(()),
        }
    }

    /// Writes pages and newest rows to the device, a piece at a time, and compares the checksum.
    fn contents(&self, session: &Session, sequence: usize, stored: &CacheImage) -> Result<()> {
        let metadata = self.file.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut digest = Digest::of(&metadata);
        for part in parts(session, sequence, stored) {
            let bytes = self.file.u8(&part.name, &part.shape)?;
            match part.content {
                Content::Words(_) => digest.update(bytes),
                Content::Device(tensor, pieces) => {
                    for Piece { rows, at } in pieces {
                        let range = rows.start * part.shape[1]..rows.end * part.shape[1];
                        let Some(piece) = bytes.get(range.clone()) else { continue };
                        digest.update(piece);
                        session.device.write_at(tensor, at, piece)?;
                        self.file.release(&part.name, range);
                    }
                }
                Content::Checksum if bytes != digest.value().to_le_bytes() => {
                    let problem = "does not match its checksum: it was altered or damaged; make it again";
                    return Err(Error::checkpoint(self.path, problem));
                }
                Content::Checksum => {}
            }
        }
        Ok(())
    }

    /// Rows of a matrix of bytes.
    fn rows(&self, name: &str) -> Result<usize> {
        Ok(self.file.get(name)?.shape.first().copied().unwrap_or(0))
    }

    fn words(&self, name: &str, count: usize) -> Result<Vec<u32>> {
        let bytes = self.file.u8(name, &[count, 4])?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}

/// FNV-1a over words of 8 bytes, folded so that high bits reach low ones. However bytes are cut into pieces, the
/// value is the same.
#[derive(Default)]
struct Digest {
    value: u64,
    /// Bytes that are no whole word yet.
    rest: [u8; 8],
    filled: usize,
    bytes: u64,
}

impl Digest {
    fn of(metadata: &BTreeMap<String, String>) -> Digest {
        let mut digest = Digest::default();
        for (key, value) in metadata {
            digest.bytes(key.as_bytes());
            digest.bytes(value.as_bytes());
        }
        digest
    }

    /// Adds bytes and their number.
    fn bytes(&mut self, bytes: &[u8]) {
        self.update(bytes);
        self.update(&(bytes.len() as u64).to_le_bytes());
    }

    /// Adds bytes.
    fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.filled > 0 {
            let (head, tail) = bytes.split_at(bytes.len().min(8 - self.filled));
            self.rest[self.filled..][..head.len()].copy_from_slice(head);
            (self.filled, bytes) = (self.filled + head.len(), tail);
            if self.filled < 8 {
                return;
            }
            self.value = mixed(self.value, u64::from_le_bytes(self.rest));
        }
        let (words, tail) = bytes.as_chunks::<8>();
        self.value = words.iter().fold(self.value, |value, word| mixed(value, u64::from_le_bytes(*word)));
        self.rest[..tail.len()].copy_from_slice(tail);
        self.filled = tail.len();
    }

    fn value(&self) -> u64 {
        let mut last = [0; 8];
        last[..self.filled].copy_from_slice(&self.rest[..self.filled]);
        mixed(mixed(self.value, u64::from_le_bytes(last)), self.bytes)
    }
}

fn mixed(value: u64, word: u64) -> u64 {
    let mixed = (value ^ word ^ 0xCBF2_9CE4_8422_2325).wrapping_mul(0x0100_0000_01B3);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
#[path = "cache_file_test.rs"]
mod tests;
