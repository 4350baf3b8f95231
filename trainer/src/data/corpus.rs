//! Tokenised data, split into training and validation.
//!
//! A document becomes `[BOS] ids [EOS]`, as far as the tokenizer has these tokens. Nothing in its
//! text becomes a special token where the tokenizer is byte-level. Ten or more documents are split
//! by whole documents, drawn by the seed; fewer by a contiguous tail of the text, cut after a line.

use super::source::{Document, Source, Summary};
use crate::error::{Error, Result};
use std::sync::Arc;
use tritter_model::tokenizer::Tokenizer;
use tritter_runtime::random::Random;

/// Documents from which on whole documents are held out.
const WHOLE: usize = 10;
/// Bytes that are tokenised at once, about: a tokenizer takes many times the memory of its text.
const PIECE: usize = 1 << 20;

/// Tokens of documents, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Index in `tokens` where each document starts, ascending; the first is 0.
    pub starts: Vec<usize>,
    /// UTF-8 bytes of the text behind the tokens.
    pub bytes: u64,
}

/// Training and validation data.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// For training; at least two tokens.
    pub train: Arc<Stream>,
    /// Held out; empty if the fraction was 0.
    pub val: Arc<Stream>,
    /// What was read.
    pub summary: Summary,
}

/// Where a document goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Train,
    Val,
    /// The first so many bytes, about, go to training, the rest to validation.
    Cut(usize),
}

impl Corpus {
    /// Reads and tokenises a source; `val_fraction` of it, 0 to below 1, is held out.
    pub fn tokenize(source: &Source, tokenizer: &Tokenizer, val_fraction: f64, seed: u64) -> Result<Corpus> {
        if !(0.0..1.0).contains(&val_fraction) {
            return Err(Error::setting("validation fraction", val_fraction, "give 0 to below 1, such as 0.05"));
        }
        let mut lengths = Vec::new();
        let summary = source.read(|d| {
            lengths.push(d.text.len());
            Ok(())
        })?;
        let sides = sides(&lengths, val_fraction, seed);
        let (mut train, mut val) = (Stream::default(), Stream::default());
        let mut seen = 0;
        source.read(|document| {
            let side = sides.get(seen).filter(|_| lengths[seen] == document.text.len());
            let side =
                *side.ok_or_else(|| Error::data(&*document.place, "it changed while it was read; start again"))?;
            seen += 1;
            push(tokenizer, &document, side, &mut train, &mut val)
        })?;
        let held_out = val.tokens.len() >= 2 || val_fraction == 0.0;
        if train.tokens.len() < 2 || !held_out {
            let place = source.files().next().map(|p| p.display().to_string()).unwrap_or_default();
            let problem = format!(
                "the data is too small: {} tokens to train on and {} to validate; give more text or another \
                 validation fraction than {val_fraction}",
                train.tokens.len(),
                val.tokens.len()
            );
            return Err(Error::data(place, problem));
        }
        Ok(Corpus { train: Arc::new(train), val: Arc::new(val), summary })
    }
}

fn sides(lengths: &[usize], val_fraction: f64, seed: u64) -> Vec<Side> {
    let n = lengths.len();
    let mut sides = vec![Side::Train; n];
    if val_fraction == 0.0 {
        return sides;
    }
    if n >= WHOLE {
        let held_out = ((n as f64 * val_fraction).round() as usize).clamp(1, n - 1);
        let mut order: Vec<usize> = (0..n).collect();
        Random::new(seed).shuffle(&mut order);
        order[..held_out].iter().for_each(|&i| sides[i] = Side::Val);
        return sides;
    }
    let total: usize = lengths.iter().sum();
    let mut rest = (total as f64 * (1.0 - val_fraction)) as usize;
    for (side, &length) in sides.iter_mut().zip(lengths) {
        *side = match rest {
            0 => Side::Val,
            _ if rest < length => Side::Cut(rest),
            _ => Side::Train,
        };
        rest = rest.saturating_sub(length);
    }
    sides
}

/// The cut at or before byte `at`: after a line if one ends in the second half, else between characters.
fn cut(text: &str, at: usize) -> usize {
    let at = text.floor_char_boundary(at);
    let line = text[..at].rfind('\n').map(|i| i + 1);
    line.filter(|&i| i > at / 2).unwrap_or(at)
}

fn push(t: &Tokenizer, document: &Document<'_>, side: Side, train: &mut Stream, val: &mut Stream) -> Result<()> {
    let text = document.text;
    match side {
        Side::Train => push_part(t, text, t.bos_id(), t.eos_id(), train),
        Side::Val => push_part(t, text, t.bos_id(), t.eos_id(), val),
        Side::Cut(at) => {
            let (first, rest) = text.split_at(cut(text, at));
            push_part(t, first, t.bos_id(), None, train)?;
            push_part(t, rest, None, t.eos_id(), val)
        }
    }
}

fn push_part(tokenizer: &Tokenizer, text: &str, bos: Option<u32>, eos: Option<u32>, to: &mut Stream) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    to.starts.push(to.tokens.len());
    to.bytes += text.len() as u64;
    to.tokens.extend(bos);
    if tokenizer.is_byte_level() {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(piece(rest));
            to.tokens.extend(tokenizer.encode_bytes(piece.as_bytes())?);
            rest = after;
        }
    } else {
        to.tokens.extend(tokenizer.encode(text, false)?);
    }
    to.tokens.extend(eos);
    Ok(())
}

/// Length of the piece to tokenise next: up to the first line after [`PIECE`] bytes that is
/// followed by no space, where byte-level tokenizers split anyway.
fn piece(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = |i: &usize| bytes[i - 1] == b'\n' && bytes[*i].is_ascii_graphic();
    (PIECE..bytes.len()).find(ends).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::path::Path;
    use tritter_model::bpe_train::train_bpe;

    fn tokenizer() -> Tokenizer {
        train_bpe(["the cat sat on the mat and the dog sat on the log"; 4], 300).unwrap()
    }

    fn write(folder: &Path, documents: usize) -> Source {
        for i in 0..documents {
            fs::write(
                folder.join(format!("{i:03}.txt")),
                format!("document {i}: the cat sat on the mät\n").repeat(i + 1),
            )
            .unwrap();
        }
        Source::open(&[folder.to_path_buf()]).unwrap()
    }

    fn text(tokenizer: &Tokenizer, stream: &Stream) -> String {
        let special = [tokenizer.bos_id(), tokenizer.eos_id()];
        let ids: Vec<u32> = stream.tokens.iter().copied().filter(|id| !special.contains(&Some(*id))).collect();
        String::from_utf8(tokenizer.decode_bytes(&ids).unwrap()).unwrap()
    }

    #[test]
    fn many_documents_are_split_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (source, t) = (write(folder.path(), 20), tokenizer());
        let corpus = Corpus::tokenize(&source, &t, 0.2, 7).unwrap();
        assert_eq!((corpus.train.starts.len(), corpus.val.starts.len()), (16, 4));
        assert_eq!(corpus.train.bytes + corpus.val.bytes, corpus.summary.bytes);
        for stream in [&corpus.train, &corpus.val] {
            assert_eq!(text(&t, stream).len() as u64, stream.bytes);
            let ends = stream.starts.iter().skip(1).copied().chain([stream.tokens.len()]);
            for (&start, end) in stream.starts.iter().zip(ends) {
                assert_eq!(stream.tokens[start], t.bos_id().unwrap());
                assert_eq!(stream.tokens[end - 1], t.eos_id().unwrap());
            }
        }
        let again = Corpus::tokenize(&source, &t, 0.2, 7).unwrap();
        assert_eq!((&again.train, &again.val), (&corpus.train, &corpus.val));
        let other = Corpus::tokenize(&source, &t, 0.2, 8).unwrap();
        assert_ne!(other.val, corpus.val, "another seed holds out other documents");
    }

    #[test]
    fn few_documents_are_split_by_a_tail_of_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let (source, t) = (write(folder.path(), 3), tokenizer());
        let corpus = Corpus::tokenize(&source, &t, 0.25, 7).unwrap();
        let whole: String = (0..3).map(|i| format!("document {i}: the cat sat on the mät\n").repeat(i + 1)).collect();
        let (train, val) = (text(&t, &corpus.train), text(&t, &corpus.val));
        assert_eq!(format!("{train}{val}"), whole);
        assert!(train.ends_with('\n'));
        assert_eq!((corpus.train.bytes, corpus.val.bytes), (train.len() as u64, val.len() as u64));
        assert_eq!(val.lines().count(), 2);
        assert_ne!(corpus.train.tokens.last().copied(), t.eos_id(), "the cut is not an end");
        assert_eq!(corpus.val.tokens.last().copied(), t.eos_id());
        let all = Corpus::tokenize(&source, &t, 0.0, 7).unwrap();
        assert!(all.val.tokens.is_empty() && all.train.bytes == all.summary.bytes);
    }

    #[test]
    fn a_text_without_lines_is_cut_between_characters() {
        assert_eq!(cut("ääää", 3), 2);
        assert_eq!(cut("\nabcdefgh", 6), 6, "a line at the very beginning is no place to cut");
        assert_eq!(cut("abc\ndefgh", 6), 4);
    }

    #[test]
    fn special_tokens_in_a_text_stay_text() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.txt"), "one<|eos|>two\nthree four\n").unwrap();
        let source = Source::open(&[folder.path().to_path_buf()]).unwrap();
        let t = tokenizer();
        let corpus = Corpus::tokenize(&source, &t, 0.0, 1).unwrap();
        let ends = corpus.train.tokens.iter().filter(|&&id| Some(id) == t.eos_id());
        assert_eq!(ends.count(), 1);
    }

    #[test]
    fn long_texts_go_in_pieces_with_the_same_tokens() {
        let t = tokenizer();
        let text = "the cat sat on the mat\n  and the dog\n\n".repeat(PIECE / 30);
        assert!(piece(&text) < text.len());
        let mut stream = Stream::default();
        push_part(&t, &text, None, None, &mut stream).unwrap();
        assert_eq!(stream.tokens, t.encode_bytes(text.as_bytes()).unwrap());
    }

    #[test]
    fn impossible_splits_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.txt"), "x").unwrap();
        let source = Source::open(&[folder.path().to_path_buf()]).unwrap();
        let error = |fraction| Corpus::tokenize(&source, &tokenizer(), fraction, 1).unwrap_err().to_string();
        assert!(error(1.0).contains("validation fraction"));
        assert!(error(f64::NAN).contains("validation fraction"));
        assert!(error(0.5).contains("a.txt: the data is too small"));
    }
}
