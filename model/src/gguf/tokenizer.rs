//! The tokenizer in a file's metadata, read as a `tokenizer.json` and written from one.
//!
//! `tokenizer.ggml.model` is `gpt2` (byte-level pairs: `tokens`, `merges`, `token_type`, the splitting
//! rule by its name in `pre`) or `llama` (SentencePiece pairs: the score of a token is the rank of the merge
//! that makes it, bytes have tokens `<0x00>` to `<0xFF>`).
//!
//! A name in `pre` that is not known is refused, because text would be split otherwise than in training
//! and nothing would say so. bitnet.cpp's converter wrote files of Llama 3's vocabulary without a name, or
//! with `default`: such a file (128,256 tokens, `<|begin_of_text|>` at 128,000) is read with Llama 3's rule.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Gguf;
use super::pre::Pre;
use super::write::Entry;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(crate) const BOS_ID: &str = "tokenizer.ggml.bos_token_id";
pub(crate) const EOS_ID: &str = "tokenizer.ggml.eos_token_id";
pub(crate) const EOT_ID: &str = "tokenizer.ggml.eot_token_id";
pub(crate) const PAD_ID: &str = "tokenizer.ggml.padding_token_id";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Values of `token_type`.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// Longest token of SentencePiece in bytes; every way to cut one is tried, so it is bounded.
const MOST_PIECE: usize = 256;

/// The content of `tokenizer.json` and `tokenizer_config.json`.
#[derive(Clone, Debug)]
pub struct Files {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`.
    pub config: Value,
}

/// The tokenizer of a file; `None` where the file has none.
pub fn read_tokenizer(gguf: &Gguf) -> Result<Option<Tokenizer>> {
    let Some(files) = read_files(gguf)? else { return Ok(None) };
    Tokenizer::from_json(gguf.path(), &files.tokenizer, &files.config).map(Some)
}

/// As [`read_tokenizer`], as the files of a folder.
pub fn read_files(gguf: &Gguf) -> Result<Option<Files>> {
    let m = gguf.metadata();
    let Some(model) = m.text(MODEL)? else { return Ok(None) };
    let vocabulary = Vocabulary::read(gguf)?;
    let (model, pre, normalizer, decoder, add_bos) = match model {
        "gpt2" => byte_level(gguf, &vocabulary)?,
        "llama" => sentence_piece(gguf, &vocabulary)?,
        _ => return Err(m.error(MODEL, "gpt2 and llama are supported")),
    };
    let name = |key: &str| -> Result<Option<&str>> {
        let Some(id) = m.id(key)? else { return Ok(None) };
        let token = vocabulary.tokens.get(id as usize).copied();
        token.map(Some).ok_or_else(|| m.error(key, "the vocabulary has no such id; the file is damaged"))
    };
    let (bos, eos) = (name(BOS_ID)?, name(EOS_ID)?);
    let add_bos = m.flag(ADD_BOS)?.unwrap_or(add_bos);
    let add_eos = m.flag(ADD_EOS)?.unwrap_or(false);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer, "pre_tokenizer": pre,
        "post_processor": template(bos.filter(|_| add_bos), eos.filter(|_| add_eos), &vocabulary),
        "decoder": decoder, "model": model,
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos, "eos_token": eos, "pad_token": name(PAD_ID)?,
        "add_bos_token": add_bos, "clean_up_tokenization_spaces": false,
        "chat_template": m.text(TEMPLATE)?,
    });
    Ok(Some(Files { tokenizer, config }))
}

/// Tokens with their types.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i32>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let m = gguf.metadata();
        let tokens = gguf.texts(TOKENS)?.ok_or_else(|| m.error(TOKENS, "the file must give them"))?;
        let types = gguf.numbers(TYPES)?.unwrap_or_else(|| vec![f64::from(kind::NORMAL); tokens.len()]);
        if types.len() != tokens.len() {
            return Err(m.error(TYPES, &format!("there are {} tokens; the file is damaged", tokens.len())));
        }
        let mut seen = HashSet::with_capacity(tokens.len());
        if let Some(twice) = tokens.iter().find(|token| !seen.insert(**token)) {
            let twice: String = twice.chars().take(80).collect();
            return Err(m.error(TOKENS, &format!("the token {twice:?} is there twice; the file is damaged")));
        }
        Ok(Vocabulary { tokens, types: types.into_iter().map(|t| t as i32).collect() })
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &'a str, i32)> {
        self.tokens.iter().zip(&self.types).enumerate().map(|(id, (token, kind))| (id, *token, *kind))
    }

    /// Whether an id only fills up the embedding.
    fn fills(id: usize, token: &str, kind: i32) -> bool {
        kind == kind::UNUSED && token == filler(id)
    }

    fn ids(&self) -> Map<String, Value> {
        let real = self.iter().filter(|(id, token, kind)| !Self::fills(*id, token, *kind));
        real.map(|(id, token, _)| (token.to_owned(), json!(id))).collect()
    }

    /// Tokens that are found in text before it is split.
    fn added(&self) -> Vec<Value> {
        let special = |kind: i32| kind == kind::CONTROL || kind == kind::UNKNOWN;
        let added = self.iter().filter(|(_, _, kind)| special(*kind) || *kind == kind::USER);
        let one = |(id, token, kind): (usize, &str, i32)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special(kind)})
        };
        added.map(one).collect()
    }

    fn id_of(&self, wanted: &str) -> Option<usize> {
        self.tokens.iter().position(|token| *token == wanted)
    }
}

/// The token that stands where the vocabulary has none, as llama.cpp's converter names it.
fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Model, pre-tokenizer, normaliser, decoder, and whether a sequence begins with its token.
type Parts = (Value, Value, Value, Value, bool);

fn byte_level(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let m = gguf.metadata();
    let llama3 = vocabulary.tokens.len() == 128_256 && vocabulary.tokens.get(128_000) == Some(&"<|begin_of_text|>");
    let pre = match m.text(PRE)? {
        None | Some("default") if llama3 => Pre::llama3(),
        name => name.and_then(Pre::named).ok_or_else(|| {
            m.error(PRE, &format!("this way to split text is not known; known are {}", Pre::all_names()))
        })?,
    };
    let merges = gguf.texts(MERGES)?.ok_or_else(|| m.error(MERGES, "the file must give them"))?;
    let pairs = merges.iter().map(|merge| merge.split_once(' ').map(|(a, b)| json!([a, b])));
    let Some(merges) = pairs.collect::<Option<Vec<_>>>() else {
        return Err(m.error(MERGES, "each should be two tokens with a space between; the file is damaged"));
    };
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": pre.ignore_merges, "vocab": vocabulary.ids(), "merges": merges,
    });
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    Ok((model, pre.to_json(), Value::Null, decoder, pre.add_bos))
}

fn sentence_piece(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let m = gguf.metadata();
    let scores = gguf.numbers(SCORES)?.ok_or_else(|| m.error(SCORES, "the file must give them"))?;
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|s| s.is_nan()) {
        return Err(m.error(SCORES, "there should be a number for each token; the file is damaged"));
    }
    if let Some(token) = vocabulary.tokens.iter().find(|token| token.len() > MOST_PIECE) {
        let problem = format!("a token of {} bytes is no piece of text; the file is damaged", token.len());
        return Err(m.error(TOKENS, &problem));
    }
    let unknown = vocabulary.iter().find(|(_, _, kind)| *kind == kind::UNKNOWN).map(|(_, token, _)| token);
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary.ids(), "merges": merges_of(vocabulary, &scores),
    });
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefix = m.flag(SPACE_PREFIX)?.unwrap_or(true);
    let mut back = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut forth = vec![space];
    if prefix {
        forth.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        back.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let normalizer = json!({"type": "Sequence", "normalizers": forth});
    Ok((model, Value::Null, normalizer, json!({"type": "Sequence", "decoders": back}), true))
}

/// Every pair of tokens whose join is a token, the best score first. SentencePiece joins the neighbours
/// with the best join until there are none, which is what byte-pair encoding does with these ranks.
fn merges_of(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<Value> {
    let joins = |kind: i32| matches!(kind, kind::NORMAL | kind::USER | kind::UNUSED);
    let known: HashSet<&str> = vocabulary.iter().filter(|(_, _, kind)| joins(*kind)).map(|(_, t, _)| t).collect();
    let mut pairs: Vec<(f64, usize, &str, &str)> = Vec::new();
    for (id, token, _) in vocabulary.iter().filter(|(_, _, kind)| joins(*kind)) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if known.contains(left) && known.contains(right) {
                pairs.push((scores[id], id, left, right));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.len().cmp(&b.2.len())));
    pairs.into_iter().map(|(_, _, left, right)| json!([left, right])).collect()
}

/// What puts tokens round a text.
fn template(bos: Option<&str>, eos: Option<&str>, vocabulary: &Vocabulary<'_>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |token: &str, kind: u32| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let text = |name: &str, kind: u32| {
        let sequence = json!({"Sequence": {"id": name, "type_id": kind}});
        let before = bos.map(|token| special(token, kind));
        before.into_iter().chain([sequence]).chain(eos.map(|token| special(token, kind))).collect::<Vec<_>>()
    };
    let tokens: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .filter_map(|token| {
            let id = vocabulary.id_of(token)?;
            Some((token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        })
        .collect();
    let pair = [text("A", 0), text("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": text("A", 0), "pair": pair, "special_tokens": tokens})
}

/// The metadata of a tokenizer, from the content of its files, for a model of `rows` embeddings. The ids of
/// special tokens are the model's config's to write.
pub fn write_entries(path: &Path, files: &Files, rows: usize) -> Result<Vec<(String, Entry)>> {
    let fail = |problem: String| Error::tokenizer(path, problem);
    let (model, pre) = (&files.tokenizer["model"], &files.tokenizer["pre_tokenizer"]);
    let merges = model["merges"].as_array().filter(|_| model["type"] == "BPE");
    let merges = merges.ok_or_else(|| fail("only byte-pair encodings can be written to a GGUF file".to_owned()))?;
    let merges = merges.iter().map(merge_text).collect::<Option<Vec<_>>>();
    let merges = merges.ok_or_else(|| fail("`merges` are not pairs of tokens".to_owned()))?;
    let (tokens, mut types) = tokens_of(files, rows).map_err(fail)?;
    let mut list: Vec<(String, Entry)> = Vec::new();
    let mut add = |key: &str, entry: Entry| list.push((key.to_owned(), entry));
    let add_bos = files.tokenizer["post_processor"].to_string().contains("SpecialToken");
    if model["byte_fallback"] == true {
        for (token, kind) in tokens.iter().zip(&mut types) {
            let byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
            if byte && *kind == kind::NORMAL {
                *kind = kind::BYTE;
            } else if model["unk_token"] == token.as_str() {
                *kind = kind::UNKNOWN;
            }
        }
        add(MODEL, Entry::Text("llama".into()));
        add(PRE, Entry::Text("default".into()));
        add(SCORES, Entry::F32s(scores_of(&tokens, &merges)));
        let prefix = files.tokenizer["normalizer"].to_string().contains("Prepend")
            || pre["prepend_scheme"].as_str().is_some_and(|scheme| scheme != "never");
        add(SPACE_PREFIX, Entry::Bool(prefix));
    } else {
        let named = Pre::of_json(pre, model["ignore_merges"] == true);
        let named = named.ok_or_else(|| {
            let problem = "its way to split text has no name in GGUF files; those have";
            fail(format!("{problem} {}", Pre::all_names()))
        })?;
        add(MODEL, Entry::Text("gpt2".into()));
        add(PRE, Entry::Text(named.name().into()));
        add(MERGES, Entry::Texts(merges));
    }
    add(TOKENS, Entry::Texts(tokens));
    add(TYPES, Entry::I32s(types));
    add(ADD_BOS, Entry::Bool(add_bos));
    if let Some(template) = files.config["chat_template"].as_str() {
        add(TEMPLATE, Entry::Text(template.into()));
    }
    Ok(list)
}

/// A merge in either of its spellings, as two tokens with a space between.
fn merge_text(merge: &Value) -> Option<String> {
    match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    }
}

/// Tokens by id with their types, filled up to `rows`.
fn tokens_of(files: &Files, rows: usize) -> Result<(Vec<String>, Vec<i32>), String> {
    let outside = |id: u64| format!("its id {id} has no row in an embedding of {rows}");
    let (mut tokens, mut types): (Vec<_>, Vec<_>) = (0..rows).map(|id| (filler(id), kind::UNUSED)).unzip();
    let mut put = |token: &str, id: u64, kind: i32| -> Result<(), String> {
        let at = usize::try_from(id).ok().filter(|&at| at < rows).ok_or_else(|| outside(id))?;
        tokens[at] = token.to_owned();
        types[at] = kind;
        Ok(())
    };
    for (token, id) in files.tokenizer["model"]["vocab"].as_object().into_iter().flatten() {
        put(token, id.as_u64().unwrap_or(u64::MAX), kind::NORMAL)?;
    }
    for added in files.tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { kind::CONTROL } else { kind::USER };
        put(added["content"].as_str().unwrap_or_default(), added["id"].as_u64().unwrap_or(u64::MAX), kind)?;
    }
    Ok((tokens, types))
}

/// Scores that order joins as the merges do: minus the rank of the first that makes a token.
fn scores_of(tokens: &[String], merges: &[String]) -> Vec<f32> {
    let mut ranks = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge.replacen(' ', "", 1)).or_insert(rank);
    }
    tokens.iter().map(|token| ranks.get(token).map_or(0.0, |rank| -(*rank as f32))).collect()
}

/// The files of a folder's tokenizer; `None` where it has none.
pub fn files_of(folder: &Path) -> Result<Option<Files>> {
    let (file, config) = (folder.join("tokenizer.json"), folder.join("tokenizer_config.json"));
    if !file.is_file() {
        return Ok(None);
    }
    let tokenizer = crate::error::read_json(&file)?;
    let config = if config.is_file() { crate::error::read_json(&config)? } else { Value::Null };
    Ok(Some(Files { tokenizer, config }))
}

#[cfg(test)]
#[path = "tokenizer_test.rs"]
mod tests;
