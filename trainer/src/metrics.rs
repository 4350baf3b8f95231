//! What a run reports: bits per byte, perplexity, a unigram baseline, and the log of a run as
//! JSON lines.
//!
//! Bits per byte do not depend on the tokenizer, perplexity does. Nats come from the loss, summed
//! over all predicted tokens; bytes are the UTF-8 bytes of the text that was predicted.

use crate::data::Stream;
use crate::error::{Error, Result};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// `nats / (ln 2 · bytes)`; NaN for no bytes.
pub fn bits_per_byte(nats: f64, bytes: u64) -> f64 {
    if bytes == 0 { f64::NAN } else { nats / (std::f64::consts::LN_2 * bytes as f64) }
}

/// `exp(nats / tokens)`; NaN for no tokens.
pub fn perplexity(nats: f64, tokens: u64) -> f64 {
    if tokens == 0 { f64::NAN } else { (nats / tokens as f64).exp() }
}

/// Nats that a token-unigram model of the training tokens (counts plus one, over `vocab` ids)
/// needs for the tokens that a validation pass predicts: all but the first. What a trained model
/// must beat to have learnt anything of order.
pub fn unigram_nats(train: &Stream, val: &Stream, vocab: usize) -> f64 {
    let mut counts = vec![1u64; vocab];
    for &token in &train.tokens {
        if let Some(count) = counts.get_mut(token as usize) {
            *count += 1;
        }
    }
    let total = (counts.iter().sum::<u64>() as f64).ln();
    let nats = |&token: &u32| total - (counts.get(token as usize).copied().unwrap_or(1) as f64).ln();
    val.tokens.iter().skip(1).map(nats).sum()
}

/// A file of one JSON document a line.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
}

impl JsonLines {
    /// Opens a file to append to, or creates it. A last line that was cut off stays as it is,
    /// closed by a line break.
    pub fn append(path: &Path) -> Result<JsonLines> {
        let options = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = options.map_err(|e| Error::io(path, "open", e))?;
        let mut close = || -> std::io::Result<()> {
            if file.seek(SeekFrom::End(0))? > 0 {
                let mut last = [0u8];
                file.seek(SeekFrom::End(-1))?;
                file.read_exact(&mut last)?;
                if last != [b'\n'] {
                    file.write_all(b"\n")?;
                }
            }
            Ok(())
        };
        close().map_err(|e| Error::io(path, "read the end", e))?;
        Ok(JsonLines { path: path.to_path_buf(), file })
    }

    /// Writes one document as a line, whole and at once.
    pub fn write(&mut self, document: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(document).map_err(|e| Error::Internal(e.to_string()))?;
        let written = self.file.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|e| Error::io(&self.path, "write", e))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn stream(tokens: &[u32], bytes: u64) -> Stream {
        Stream { tokens: tokens.to_vec(), starts: vec![0], bytes }
    }

    #[test]
    fn a_byte_predicted_uniformly_costs_eight_bits() {
        assert!((bits_per_byte(10.0 * 256f64.ln(), 10) - 8.0).abs() < 1e-12);
        assert!((perplexity(10.0 * 256f64.ln(), 10) - 256.0).abs() < 1e-9);
        assert!(bits_per_byte(1.0, 0).is_nan() && perplexity(1.0, 0).is_nan());
    }

    #[test]
    fn the_unigram_baseline_is_the_smoothed_entropy() {
        // Counts plus one over 4 ids: 4, 2, 1, 1 of 8.
        let (train, val) = (stream(&[0, 0, 0, 1], 4), stream(&[2, 0, 1, 3], 3));
        let bits = unigram_nats(&train, &val, 4) / std::f64::consts::LN_2;
        assert!((bits - (1.0 + 2.0 + 3.0)).abs() < 1e-12, "{bits}");
    }

    #[test]
    fn lines_are_appended_and_a_cut_line_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        JsonLines::append(&path).unwrap().write(&json!({"step": 1})).unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"st").unwrap();
        let mut log = JsonLines::append(&path).unwrap();
        log.write(&json!({"step": 2})).unwrap();
        // Readable while the writer is still open.
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"st\n{\"step\":2}\n");
        let missing = JsonLines::append(&folder.path().join("no/log")).unwrap_err().to_string();
        assert!(missing.contains("log"), "{missing}");
    }
}
