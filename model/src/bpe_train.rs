//! Training a byte-level byte-pair encoding.
//!
//! Every one of the 256 bytes is in the initial alphabet, so no text is ever
//! unknown. Text is split by GPT-2's rule (as in `tokenizers`' `ByteLevel`)
//! before pairs are counted. The result depends on the texts and the size
//! alone: pairs of equal count are merged in the order of their ids.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder};

use crate::byte_level::byte_to_char;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Begins a sequence; id 0 of a trained tokenizer.
pub const BOS: &str = "<|bos|>";
/// Ends a sequence; id 1 of a trained tokenizer.
pub const EOS: &str = "<|eos|>";
/// Fills a batch; id 2 of a trained tokenizer.
pub const PAD: &str = "<|pad|>";
/// The 256 bytes and the three special tokens.
pub const MIN_VOCAB: usize = 259;
/// Bound on the vocabulary that can be asked for.
pub const MAX_VOCAB: usize = 1 << 24;
/// Longest token in bytes: keeps long runs of one character from filling the
/// vocabulary.
const MAX_TOKEN_BYTES: usize = 64;

/// Trains a tokenizer of at most `vocab_size` tokens (fewer where the texts
/// have fewer repeated pairs). Its template puts [`BOS`] before a text.
pub fn train_bpe<I, S>(texts: I, vocab_size: usize) -> Result<Tokenizer>
where
    I: IntoIterator<Item = S>,
    I::IntoIter: Send,
    S: AsRef<str> + Send,
{
    let path = Path::new("tokenizer");
    if !(MIN_VOCAB..=MAX_VOCAB).contains(&vocab_size) {
        let problem = format!(
            "a vocabulary of {vocab_size} cannot be trained; \
             give a size from {MIN_VOCAB} to {MAX_VOCAB}"
        );
        return Err(Error::tokenizer(path, problem));
    }
    let fail = |error: tokenizers::Error| Error::tokenizer(path, error.to_string());
    let special = [BOS, EOS, PAD].map(|name| AddedToken::from(name, true));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet((0..=u8::MAX).map(byte_to_char).collect())
        .max_token_length(Some(MAX_TOKEN_BYTES))
        .build();
    let mut trained = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, PostProcessorWrapper, ByteLevel>::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_decoder(Some(ByteLevel::new(false, true, true)))
        .build()
        .map_err(fail)?;
    trained.train(&mut trainer, texts.into_iter()).map_err(fail)?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .map_err(|error| Error::tokenizer(path, error))?
        .try_pair(format!("{BOS} $A {BOS}:1 $B:1"))
        .map_err(|error| Error::tokenizer(path, error))?
        .special_tokens(vec![(BOS, trained.token_to_id(BOS).unwrap_or_default())])
        .build()
        .map_err(|error| Error::tokenizer(path, error.to_string()))?;
    trained.with_post_processor(Some(template));
    Tokenizer::from_inner(path, tokenizers::Tokenizer::from(trained))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "fn main() { println!(\"héllo wörld 你好 🙂\"); }\n\n    let x = 12345;\r\n";

    #[test]
    fn special_tokens_come_first_and_the_size_is_a_bound() {
        let tokenizer = train_bpe([TEXT; 4], 300).unwrap();
        assert_eq!([BOS, EOS, PAD].map(|t| tokenizer.token_id(t).unwrap()), [0, 1, 2]);
        assert_eq!(tokenizer.vocab_size(), 300);
        assert_eq!(train_bpe([""], 300).unwrap().vocab_size(), MIN_VOCAB);
        assert_eq!(tokenizer.encode("x", true).unwrap()[0], 0);
        assert_eq!(tokenizer.encode("x", false).unwrap().len(), 1);
        assert!(train_bpe([TEXT], 258).unwrap_err().to_string().contains("258"));
    }

    #[test]
    fn training_is_deterministic() {
        let texts: Vec<String> = (0..200).map(|i| format!("{TEXT}{i} {}", i * i % 97)).collect();
        let json = || train_bpe(&texts, 400).unwrap().to_json().unwrap();
        let first = json();
        for _ in 0..3 {
            assert_eq!(json(), first);
        }
        let backwards = train_bpe(texts.iter().rev(), 400).unwrap().to_json().unwrap();
        assert_eq!(backwards, first, "the order of texts does not matter");
    }

    #[test]
    fn any_bytes_survive() {
        let tokenizer = train_bpe([TEXT; 4], 320).unwrap();
        let mut random = crate::host_sampling::Random::new(7);
        let mut cases: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        cases.push((0..=255).collect());
        cases.push(TEXT.as_bytes().to_vec());
        cases.push(b"\xf0\x9f\x99 cut \xe4\xbd <|bos|>\xff\xfe\0".to_vec());
        for length in 0..200 {
            cases.push((0..length).map(|_| random.next_u64() as u8).collect());
        }
        // Pieces of valid text cut at every byte: half characters at both ends.
        for at in 0..TEXT.len() {
            cases.push(TEXT.as_bytes()[at..].to_vec());
            cases.push(TEXT.as_bytes()[..at].to_vec());
        }
        for bytes in cases {
            let ids = tokenizer.encode_bytes(&bytes).unwrap();
            assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), bytes);
            let text = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn valid_text_survives_the_ordinary_way() {
        let tokenizer = train_bpe([TEXT; 4], 320).unwrap();
        for text in [TEXT, "", " ", "\u{0}\u{10ffff}", "e\u{301} \u{feff}\t\n", "🙂🙂"] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
            let with_bos = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&with_bos, true).unwrap(), text);
        }
    }
}
