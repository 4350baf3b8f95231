#![allow(clippy::unwrap_used)]

use super::*;
use crate::bpe_train::{BOS, EOS, train_bpe};
use crate::config::Family;
use crate::presets::preset;

fn small() -> Tokenizer {
    train_bpe(["the cat sat on the mat, the cat ran"; 3], 280).unwrap()
}

#[test]
fn special_tokens_in_text_and_in_data_differ() {
    let tokenizer = small();
    let eos = tokenizer.eos_id().unwrap();
    assert!(tokenizer.encode("a<|eos|>b", false).unwrap().contains(&eos));
    let data = tokenizer.encode_bytes(b"a<|eos|>b").unwrap();
    assert!(!data.contains(&eos));
    assert_eq!(tokenizer.decode_bytes(&data).unwrap(), b"a<|eos|>b");
    assert!(tokenizer.is_special(eos) && !tokenizer.is_special(data[0]));
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let tokenizer = small();
    let size = tokenizer.vocab_size();
    let config = |vocab| preset("test").unwrap().config(Family::Bitnet, Some(vocab), None);
    tokenizer.check_vocab(&config(size)).unwrap();
    let message = tokenizer.check_vocab(&config(size - 1)).unwrap_err().to_string();
    assert!(message.contains(&format!("up to {}", size - 1)), "{message}");
    assert!(message.contains(&format!("vocab_size is {}", size - 1)), "{message}");
    let error = tokenizer.decode_bytes(&[size as u32]).unwrap_err().to_string();
    assert!(error.contains("has no token"), "{error}");
}

#[test]
fn a_saved_folder_loads_with_its_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = small();
    tokenizer.save_folder(folder.path()).unwrap();
    let loaded = Tokenizer::load(&folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(loaded.to_json().unwrap(), tokenizer.to_json().unwrap());
    assert_eq!(loaded.named.bos, tokenizer.token_id(BOS));
    assert_eq!(loaded.named.eos, tokenizer.token_id(EOS));
    let again = Tokenizer::from_bytes(tokenizer.to_json().unwrap().as_bytes()).unwrap();
    assert_eq!(again.pad_id(), tokenizer.pad_id());
}

#[test]
fn damaged_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    for bytes in [&b""[..], b"{}", b"\xff\xfe", b"[1,2", br#"{"model":{"type":"BPE"}}"#] {
        std::fs::write(&file, bytes).unwrap();
        let message = Tokenizer::load(&file).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
    }
}

#[test]
fn word_level_tokenizers_have_no_bytes() {
    let json = br#"{"version":"1.0","added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"b":5},"unk_token":"a"}}"#;
    let tokenizer = Tokenizer::from_bytes(json).unwrap();
    assert_eq!(tokenizer.vocab_size(), 6);
    assert_eq!(tokenizer.encode("b a", false).unwrap(), [5, 0]);
    assert!(tokenizer.encode_bytes(b"a").unwrap_err().to_string().contains("byte-level"));
}
