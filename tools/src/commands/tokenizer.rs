//! `tritter tokenizer train|encode|decode`.

use crate::cli::{Global, Tokenizer as Command};
use crate::output;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::io::Read;
use std::process::ExitCode;
use tritter_model::bpe_train::train_bpe;
use tritter_model::tokenizer::Tokenizer;
use tritter_trainer::data::Source;

#[derive(Serialize)]
struct Trained {
    file: String,
    vocab_size: usize,
    documents: usize,
    bytes: u64,
    tokens: usize,
    bytes_per_token: f64,
}

pub(crate) fn run(global: &Global, command: &Command) -> Result<ExitCode> {
    match command {
        Command::Train { data, out, vocab } => {
            if out.exists() {
                bail!("{} exists; nothing is overwritten, choose another file", out.display());
            }
            let source = Source::open(data)?;
            let mut texts = Vec::new();
            source.read(|document| {
                texts.push(document.text.to_string());
                Ok(())
            })?;
            let tokenizer = train_bpe(texts.iter().map(String::as_str), *vocab)?;
            tokenizer.save(out)?;
            let tokens: usize =
                texts.iter().map(|t| tokenizer.encode(t, false).map(|ids| ids.len())).sum::<Result<_, _>>()?;
            let bytes: u64 = texts.iter().map(|t| t.len() as u64).sum();
            let report = Trained {
                file: out.display().to_string(),
                vocab_size: tokenizer.vocab_size(),
                documents: texts.len(),
                bytes,
                tokens,
                bytes_per_token: bytes as f64 / tokens.max(1) as f64,
            };
            if global.json {
                output::json(&report)?;
            } else {
                let Trained { file, vocab_size, documents, bytes, bytes_per_token, .. } = &report;
                output::print(&format!(
                    "{file}: {vocab_size} tokens from {documents} documents ({bytes} bytes), {bytes_per_token:.2} bytes a token\n"
                ))?;
            }
        }
        Command::Encode { tokenizer, text, special } => {
            let tokenizer = Tokenizer::load(tokenizer)?;
            let ids = match text {
                Some(text) => tokenizer.encode(text, *special)?,
                None => tokenizer.encode_bytes(&standard_input()?)?,
            };
            if global.json {
                output::json(&serde_json::json!({ "ids": ids }))?;
            } else {
                let words: Vec<String> = ids.iter().map(ToString::to_string).collect();
                output::print(&format!("{}\n", words.join(" ")))?;
            }
        }
        Command::Decode { tokenizer, ids } => {
            let tokenizer = Tokenizer::load(tokenizer)?;
            let ids = if ids.is_empty() { parse_ids(&standard_input()?)? } else { ids.clone() };
            if global.json {
                output::json(&serde_json::json!({ "text": tokenizer.decode(&ids, false)? }))?;
            } else if tokenizer.is_byte_level() {
                use std::io::Write;
                std::io::stdout().write_all(&tokenizer.decode_bytes(&ids)?)?;
            } else {
                output::print(&tokenizer.decode(&ids, false)?)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn standard_input() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    Ok(bytes)
}

fn parse_ids(bytes: &[u8]) -> Result<Vec<u32>> {
    let text = String::from_utf8_lossy(bytes);
    let parse = |word: &str| word.parse().map_err(|_| anyhow::anyhow!("`{word}` on standard input is not a token id"));
    text.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty()).map(parse).collect()
}
