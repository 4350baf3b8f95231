#![allow(clippy::unwrap_used)]
use super::*;
use crate::gguf::TensorType;
use crate::gguf::write::{TensorHeader, prepare_gguf};

const TEXTS: [&str; 5] = [
    "The quick brown fox's 12345 jumps\r\n\n  over the lazy dog!",
    "fn main() { println!(\"héllo 你好 🙂\"); }\t\n",
    "",
    " <|eot_id|>a<|begin_of_text|>",
    "don't WE'LL 1 22 333 4444   x",
];

/// A file with no more than a tokenizer and an embedding of one column.
fn file(entries: &[(String, Entry)], rows: usize) -> Gguf {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.gguf");
    let tensor = TensorHeader { name: "token_embd.weight".into(), dtype: TensorType::F32, shape: vec![rows, 1] };
    let pending = prepare_gguf(&path, entries, &[tensor], &mut |_, out| Ok(out.write_all(&vec![0; 4 * rows])?));
    pending.unwrap().commit().unwrap();
    Gguf::from_bytes(std::fs::read(&path).unwrap()).unwrap()
}

fn fixture_files(name: &str) -> (Files, Tokenizer) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    (files_of(&folder).unwrap().unwrap(), Tokenizer::load(&folder.join("tokenizer.json")).unwrap())
}

fn with_ids(mut entries: Vec<(String, Entry)>, tokenizer: &Tokenizer) -> Vec<(String, Entry)> {
    for (key, id) in [(BOS_ID, tokenizer.bos_id()), (EOS_ID, tokenizer.eos_id())] {
        entries.extend(id.map(|id| (key.to_owned(), Entry::U32(id))));
    }
    entries
}

#[test]
fn byte_level_tokenizers_survive_the_file() {
    for name in ["tokenizer_llama3", "tokenizer_gpt2"] {
        let (files, tokenizer) = fixture_files(name);
        let rows = tokenizer.vocab_size() + 5;
        let entries = with_ids(write_entries(Path::new(name), &files, rows).unwrap(), &tokenizer);
        let gguf = file(&entries, rows);
        assert_eq!(gguf.texts(TOKENS).unwrap().unwrap().len(), rows);
        let again = read_tokenizer(&gguf).unwrap().unwrap();
        assert_eq!(again.vocab_size(), tokenizer.vocab_size(), "{name}");
        assert_eq!((again.bos_id(), again.eos_id()), (tokenizer.bos_id(), tokenizer.eos_id()), "{name}");
        for text in TEXTS {
            for special in [false, true] {
                let (a, b) = (again.encode(text, special).unwrap(), tokenizer.encode(text, special).unwrap());
                assert_eq!(a, b, "{name}: {text:?}");
                assert_eq!(again.decode(&a, true).unwrap(), tokenizer.decode(&b, true).unwrap(), "{name}");
            }
        }
        let config = read_files(&gguf).unwrap().unwrap().config;
        assert_eq!(config["chat_template"], files.config["chat_template"], "{name}");
    }
}

fn entry(key: &str, entry: Entry) -> (String, Entry) {
    (key.to_owned(), entry)
}

fn texts(list: &[&str]) -> Entry {
    Entry::Texts(list.iter().map(|&t| t.to_owned()).collect())
}

/// A SentencePiece vocabulary by hand: the score decides that `ab` is joined before `bc`.
fn pieces() -> Vec<(String, Entry)> {
    let tokens = ["<unk>", "<s>", "<0x21>", "▁", "a", "b", "c", "ab", "bc", "abc", "▁a"];
    vec![
        entry(MODEL, Entry::Text("llama".into())),
        entry(TOKENS, texts(&tokens)),
        entry(SCORES, Entry::F32s(vec![0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -4.0])),
        entry(TYPES, Entry::I32s(vec![2, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1])),
        entry(BOS_ID, Entry::U32(1)),
    ]
}

#[test]
fn sentence_pieces_join_by_score_with_bytes_for_the_rest() {
    let tokenizer = read_tokenizer(&file(&pieces(), 11)).unwrap().unwrap();
    // "▁abc": ab (-1) before bc (-2), then abc; the space stays alone. "!" is a byte.
    assert_eq!(tokenizer.encode("abc", false).unwrap(), [3, 9]);
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, 3, 9]);
    assert_eq!(tokenizer.encode("a!", false).unwrap(), [10, 2]);
    assert_eq!(tokenizer.decode(&[3, 9, 2], false).unwrap(), "abc!");
    let files = read_files(&file(&pieces(), 11)).unwrap().unwrap();
    let entries = with_ids(write_entries(Path::new("t"), &files, 12).unwrap(), &tokenizer);
    let again = read_tokenizer(&file(&entries, 12)).unwrap().unwrap();
    for text in ["abc", "cab bca", "!!a", "a b  c"] {
        assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap(), "{text}");
    }
}

#[track_caller]
fn refused(entries: &[(String, Entry)], words: &[&str]) {
    let message = read_tokenizer(&file(entries, 11)).unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

#[test]
fn unknown_and_damaged_tokenizers_are_named() {
    let base = |pre: Option<&str>| {
        let mut list = vec![
            entry(MODEL, Entry::Text("gpt2".into())),
            entry(TOKENS, texts(&["a", "b", "ab"])),
            entry(MERGES, texts(&["a b"])),
        ];
        list.extend(pre.map(|pre| entry(PRE, Entry::Text(pre.into()))));
        list
    };
    assert!(read_tokenizer(&file(&base(Some("gpt-2")), 11)).unwrap().is_some());
    refused(&base(Some("tekken")), &[PRE, "tekken", "llama-bpe", "qwen2"]);
    refused(&base(None), &[PRE, "missing", "gpt-2"]);
    let with = |key: &str, value: Entry| {
        let mut list = base(Some("gpt-2"));
        list.retain(|(k, _)| k != key);
        list.push(entry(key, value));
        list
    };
    refused(&with(MODEL, Entry::Text("bert".into())), &[MODEL, "bert"]);
    refused(&with(MERGES, texts(&["ab"])), &[MERGES, "space between"]);
    refused(&with(TYPES, Entry::I32s(vec![1])), &[TYPES, "3 tokens"]);
    refused(&with(TOKENS, texts(&["a", "b", "a"])), &[TOKENS, "twice"]);
    refused(&with(BOS_ID, Entry::U32(99)), &[BOS_ID, "no such id"]);
    assert!(read_tokenizer(&file(&[], 1)).unwrap().is_none());
}

#[test]
fn a_split_without_a_name_is_refused_on_writing() {
    let (mut files, _) = fixture_files("tokenizer_llama3");
    files.tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("x+");
    let message = write_entries(Path::new("t"), &files, 2000).unwrap_err().to_string();
    assert!(message.contains("no name") && message.contains("llama-bpe"), "{message}");
    let (files, _) = fixture_files("tokenizer_llama3");
    assert!(write_entries(Path::new("t"), &files, 10).unwrap_err().to_string().contains("no row"));
}
