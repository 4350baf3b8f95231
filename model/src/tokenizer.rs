//! Text to token ids and back, for any `tokenizer.json` that the `tokenizers`
//! crate reads.
//!
//! Two ways in: [`Tokenizer::encode`] is what transformers does, so special
//! tokens written in the text are recognised. [`Tokenizer::encode_bytes`] takes
//! data (a training document, a file that is not UTF-8): nothing in it becomes
//! an added token, and [`Tokenizer::decode_bytes`] gives back exactly the same
//! bytes. Truncation and padding that a file asks for are switched off.

use std::path::{Path, PathBuf};

use tokenizers::{DecoderWrapper, Model as _, OffsetType, PreTokenizedString, PreTokenizer as _};

use crate::byte_level::ByteAlphabet;
use crate::chat_template::{Message, render};
use crate::config::Config;
use crate::error::{BoxError, Error, Result};
use crate::tensor_write::write_atomic;

/// Names under which files call the token that begins a sequence.
const BOS_NAMES: &[&str] = &["<|bos|>", "<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>"];
/// Names under which files call the token that ends a sequence.
const EOS_NAMES: &[&str] = &["<|eos|>", "<|end_of_text|>", "<eos>", "</s>", "<|endoftext|>"];
/// Names under which files call the token that fills a batch.
const PAD_NAMES: &[&str] = &["<|pad|>", "<pad>", "[PAD]"];

/// The file of a chat template; it goes before `tokenizer_config.json`.
const TEMPLATE: &str = "chat_template.jinja";

/// The template of `chat_template`: a text, or the one called `default` of a list.
fn default_template(field: &serde_json::Value) -> Option<&str> {
    let named = |list: &'_ Vec<serde_json::Value>| {
        list.iter().position(|entry| entry.get("name").and_then(|name| name.as_str()) == Some("default"))
    };
    match field.as_array() {
        Some(list) => list.get(named(list)?)?.get("template")?.as_str(),
        None => field.as_str(),
    }
}

/// A loaded or trained tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    alphabet: Option<ByteAlphabet>,
    vocab_size: usize,
    named: Named,
}

/// What `tokenizer_config.json` says.
#[derive(Debug, Clone, Default)]
struct Named {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    /// The chat template and the file that it came from.
    chat_template: Option<(PathBuf, String)>,
}

/// An encoded text with what tests look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Tokens as the vocabulary spells them.
    pub tokens: Vec<String>,
    /// First and one past the last character of each token in the text.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Loads a `tokenizer.json`; a `tokenizer_config.json` beside it is asked
    /// for the names of the special tokens.
    pub fn load(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).map_err(Error::io(file, "read"))?;
        let mut tokenizer = Self::parse(file, &bytes)?;
        let config = file.with_file_name("tokenizer_config.json");
        if config.is_file() {
            tokenizer.read_names(&crate::error::read_json(&config)?);
        }
        let template = file.with_file_name(TEMPLATE);
        if template.is_file() {
            let text = std::fs::read_to_string(&template).map_err(Error::io(&template, "read"))?;
            tokenizer.named.chat_template = Some((template, text));
        }
        Ok(tokenizer)
    }

    /// Reads the content of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(Path::new("tokenizer"), bytes)
    }

    /// As [`Tokenizer::load`] with the content of both files at hand; `path` is named in errors.
    pub fn from_json(path: &Path, tokenizer: &serde_json::Value, config: &serde_json::Value) -> Result<Self> {
        let mut tokenizer = Self::parse(path, tokenizer.to_string().as_bytes())?;
        tokenizer.read_names(config);
        Ok(tokenizer)
    }

    fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::tokenizer(file, format!("not a tokenizer that can be read: {error}")))?;
        Self::from_inner(file, inner)
    }

    pub(crate) fn from_inner(path: &Path, mut inner: tokenizers::Tokenizer) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::tokenizer(path, error.to_string()))?;
        let largest = inner.get_vocab(true).into_values().max();
        let largest = largest
            .ok_or_else(|| Error::tokenizer(path, "the vocabulary is empty; train or fetch another tokenizer"))?;
        let alphabet = match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => ByteAlphabet::new(|token| inner.get_model().token_to_id(token)),
            _ => None,
        };
        let path = path.to_path_buf();
        let vocab_size = largest as usize + 1;
        Ok(Self { inner, path, alphabet, vocab_size, named: Named::default() })
    }

    fn read_names(&mut self, json: &serde_json::Value) {
        let id = |key: &str| {
            let entry = json.get(key)?;
            let name = entry.as_str().or_else(|| entry.get("content")?.as_str())?;
            self.inner.token_to_id(name)
        };
        let (bos, eos, pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        let chat_template = json.get("chat_template").and_then(default_template);
        let file = self.path.with_file_name("tokenizer_config.json");
        let chat_template = chat_template.map(|text| (file, text.to_owned()));
        self.named = Named { bos, eos, pad, chat_template };
    }

    fn error(&self, error: BoxError) -> Error {
        Error::tokenizer(&self.path, error.to_string())
    }

    /// The file it came from, or `tokenizer`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Largest id plus one: the least vocabulary that a model needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token that begins a sequence: as `tokenizer_config.json` says, else
    /// by its usual names.
    pub fn bos_id(&self) -> Option<u32> {
        self.named.bos.or_else(|| self.first_of(BOS_NAMES))
    }

    /// The token that ends a sequence, found as in [`Tokenizer::bos_id`].
    pub fn eos_id(&self) -> Option<u32> {
        self.named.eos.or_else(|| self.first_of(EOS_NAMES))
    }

    /// The token that fills a batch, found as in [`Tokenizer::bos_id`].
    pub fn pad_id(&self) -> Option<u32> {
        self.named.pad.or_else(|| self.first_of(PAD_NAMES))
    }

    fn first_of(&self, names: &[&str]) -> Option<u32> {
        names.iter().find_map(|name| self.token_id(name))
    }

    /// Whether every byte has a token, so that any bytes can be encoded.
    pub fn is_byte_level(&self) -> bool {
        self.alphabet.is_some()
    }

    /// Checks that every id has a row in the model's embedding.
    pub fn check_vocab(&self, config: &Config) -> Result<()> {
        if self.vocab_size <= config.vocab_size {
            return Ok(());
        }
        Err(Error::tokenizer(
            &self.path,
            format!(
                "its ids go up to {} but the model's vocab_size is {}; \
                 use the tokenizer that the model was made with",
                self.vocab_size - 1,
                config.vocab_size
            ),
        ))
    }

    /// The ids of a text; `special` adds what the file's template adds (such
    /// as the token that begins a sequence).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| self.error(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`] for a pair of texts.
    pub fn encode_pair(&self, first: &str, second: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast((first, second), special);
        Ok(encoding.map_err(|e| self.error(e))?.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], with tokens and offsets in characters.
    pub fn encode_detailed(&self, text: &str, special: bool) -> Result<Encoded> {
        let encoding = self.inner.encode_char_offsets(text, special);
        let encoding = encoding.map_err(|e| self.error(e))?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            tokens: encoding.get_tokens().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }

    /// The text of ids, bytes that are not UTF-8 as U+FFFD; ids without a token
    /// are left out, special ones too where `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| self.error(e))
    }

    /// Ids of arbitrary bytes, never an added or special token. Stretches of
    /// valid UTF-8 are split and merged as usual, other bytes have a token each.
    /// An error where the tokenizer is not byte-level.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        let alphabet = self.alphabet()?;
        let mut ids = Vec::new();
        for chunk in bytes.utf8_chunks() {
            self.encode_plain(alphabet, chunk.valid(), &mut ids)?;
            ids.extend(chunk.invalid().iter().map(|&byte| alphabet.id(byte)));
        }
        Ok(ids)
    }

    /// The bytes of ids, exactly those that [`Tokenizer::encode_bytes`] was
    /// given; added tokens stand for their text. An error for an id without a
    /// token, or where the tokenizer is not byte-level.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let alphabet = self.alphabet()?;
        let mut bytes = Vec::new();
        for &id in ids {
            let token = self.token(id).ok_or_else(|| {
                let problem = format!("id {id} has no token; vocab_size is {}", self.vocab_size);
                Error::tokenizer(&self.path, problem)
            })?;
            alphabet.push_bytes(&token, &mut bytes);
        }
        Ok(bytes)
    }

    fn encode_plain(&self, alphabet: &ByteAlphabet, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut pieces = PreTokenizedString::from(text);
        if let Some(splitter) = self.inner.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut pieces).map_err(|e| self.error(e))?;
        }
        let model = self.inner.get_model();
        model.tokenize_in_pretokenized(&mut pieces, None).map_err(|e| self.error(e))?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(|e| self.error(e))?;
        // A splitter that adds a space or drops a separator would lose bytes:
        // then this stretch goes byte by byte.
        if self.decode_bytes(encoding.get_ids())? == text.as_bytes() {
            ids.extend_from_slice(encoding.get_ids());
        } else {
            ids.extend(text.bytes().map(|byte| alphabet.id(byte)));
        }
        Ok(())
    }

    /// Whether the folder has a chat template.
    pub fn has_chat(&self) -> bool {
        self.named.chat_template.is_some()
    }

    /// A conversation as the folder's chat template writes it; `prompt` asks for the opening of the next
    /// answer. An error where there is no template, or where it objects to the conversation.
    pub fn render_chat(&self, messages: &[Message], prompt: bool) -> Result<String> {
        let Some((file, template)) = &self.named.chat_template else {
            let file = self.path.with_file_name("tokenizer_config.json");
            let problem =
                format!("`chat_template` is missing, and there is no {TEMPLATE}; use `generate` without --chat");
            return Err(Error::tokenizer(&file, problem));
        };
        let tokens = [("bos_token", self.bos_id()), ("eos_token", self.eos_id()), ("pad_token", self.pad_id())];
        let spell = |(name, id): (&'static str, Option<u32>)| Some((name, self.token(id?)?));
        let names: Vec<(&str, String)> = tokens.into_iter().filter_map(spell).collect();
        render(template, messages, prompt, &names)
            .map_err(|problem| Error::tokenizer(file, format!("`chat_template`: {problem}")))
    }

    pub(crate) fn byte_alphabet(&self) -> Option<&ByteAlphabet> {
        self.alphabet.as_ref()
    }

    /// Whether an id is left out by `skip_special`.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.simple_id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    fn alphabet(&self) -> Result<&ByteAlphabet> {
        self.alphabet.as_ref().ok_or_else(|| {
            let problem = "not a byte-level tokenizer, so it cannot take arbitrary bytes; \
                           use one that `tokenizer train` makes";
            Error::tokenizer(&self.path, problem)
        })
    }

    /// The content of its `tokenizer.json`.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|e| self.error(e))
    }

    /// Writes a `tokenizer.json`, at once and durably.
    pub fn save(&self, file: &Path) -> Result<()> {
        write_atomic(file, self.to_json()?.as_bytes())
    }

    /// Writes `tokenizer.json` and the `tokenizer_config.json` that lets
    /// transformers load it with its special tokens.
    pub fn save_folder(&self, folder: &Path) -> Result<()> {
        self.save(&folder.join("tokenizer.json"))?;
        let name = |id: Option<u32>| id.and_then(|id| self.token(id));
        let config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": name(self.bos_id()),
            "eos_token": name(self.eos_id()),
            "pad_token": name(self.pad_id()),
            "clean_up_tokenization_spaces": false,
        });
        let text = format!("{config:#}\n");
        write_atomic(&folder.join("tokenizer_config.json"), text.as_bytes())
    }
}

#[cfg(test)]
#[path = "tokenizer_test.rs"]
mod tests;
