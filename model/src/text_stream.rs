//! Decoding token by token: text comes out as soon as it is certain, and never
//! half a character.
//!
//! With a byte-level tokenizer the pieces put together are exactly
//! [`Tokenizer::decode`] of all ids, replacement characters included. With any
//! other decoder a short window of ids is decoded again at each step, since
//! such decoders may look at neighbours (a leading space, merged bytes).

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// Turns a stream of ids into text.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Bytes that may be the beginning of a character (byte-level only).
    bytes: Vec<u8>,
    /// Ids of the window; the first `settled` ones have come out already.
    window: Vec<u32>,
    settled: usize,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, bytes: Vec::new(), window: Vec::new(), settled: 0 }
    }

    /// Takes the next id; gives the text that is now certain, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let text = match self.tokenizer.byte_alphabet() {
            Some(alphabet) => {
                if self.skip_special && self.tokenizer.is_special(id) {
                    return Ok(None);
                }
                if let Some(token) = self.tokenizer.token(id) {
                    alphabet.push_bytes(&token, &mut self.bytes);
                }
                take_certain(&mut self.bytes)
            }
            None => self.push_window(id)?,
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// What is left at the end; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> Result<Option<String>> {
        let text = if self.tokenizer.is_byte_level() {
            String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()
        } else {
            self.unsettled()?
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn push_window(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let text = self.unsettled()?;
        // A replacement character at the end may be a character in the making.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.window.drain(..self.settled);
        self.settled = self.window.len();
        Ok(text)
    }

    /// The text of the window beyond what has come out.
    fn unsettled(&self) -> Result<String> {
        let before = self.window.get(..self.settled).unwrap_or_default();
        let before = self.tokenizer.decode(before, self.skip_special)?;
        let all = self.tokenizer.decode(&self.window, self.skip_special)?;
        Ok(all.strip_prefix(before.as_str()).unwrap_or_default().to_owned())
    }
}

/// Takes from `bytes` all that later bytes cannot change. Invalid sequences
/// become U+FFFD one by one, as in [`String::from_utf8_lossy`].
fn take_certain(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        if chunk.invalid().is_empty() || (chunks.peek().is_none() && unfinished(chunk.invalid())) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += chunk.invalid().len();
    }
    bytes.drain(..taken);
    text
}

/// Whether the invalid bytes at the end are a character that was cut short.
fn unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bpe_train::train_bpe;
    use crate::host_sampling::Random;

    fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
        let mut decoder = StreamDecoder::new(tokenizer, skip);
        let mut pieces: Vec<String> = ids.iter().filter_map(|&id| decoder.push(id).unwrap()).collect();
        pieces.extend(decoder.finish().unwrap());
        pieces
    }

    #[test]
    fn characters_come_whole() {
        let tokenizer = train_bpe(["abc"], 259).unwrap();
        let ids = tokenizer.encode_bytes("aé你🙂b".as_bytes()).unwrap();
        assert_eq!(streamed(&tokenizer, &ids, false), ["a", "é", "你", "🙂", "b"]);
        assert_eq!(streamed(&tokenizer, &ids[..ids.len() - 2], false), ["a", "é", "你", "\u{fffd}"]);
    }

    #[test]
    fn pieces_together_are_the_whole_decode() {
        let text = "héllo wörld 你好 🙂 ".repeat(8);
        let tokenizer = train_bpe([text.as_str()], 290).unwrap();
        let mut random = Random::new(3);
        for round in 0..500 {
            let ids: Vec<u32> = (0..round % 40).map(|_| (random.next_u64() % 295) as u32).collect();
            for skip in [false, true] {
                let whole = tokenizer.decode(&ids, skip).unwrap();
                assert_eq!(streamed(&tokenizer, &ids, skip).concat(), whole, "{ids:?}");
            }
        }
    }

    #[test]
    fn decoders_that_look_at_neighbours_agree_too() {
        let json = r#"{"version":"1.0","added_tokens":[],"normalizer":null,
            "pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
            "post_processor":null,
            "decoder":{"type":"Sequence","decoders":[
                {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
                {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
            "model":{"type":"BPE","byte_fallback":true,"merges":[],"vocab":{
                "▁a":0,"b":1,"<0xC3>":2,"<0xA9>":3,"▁":4}}}"#;
        let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
        let ids = [0, 1, 2, 3, 0, 4, 1];
        let pieces = streamed(&tokenizer, &ids, false);
        assert_eq!(pieces.concat(), tokenizer.decode(&ids, false).unwrap());
        assert_eq!(pieces.concat(), "abé a b");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    }
}
