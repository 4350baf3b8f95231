//! Prompt caches whose checksum is right and whose contents are not, and the memory that they take.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::cache::{CacheFormat, CacheKind};
use crate::config::Family;
use crate::presets::preset;
use crate::programs::Layout;
use crate::seeded::FromSeed;
use crate::session::SessionPlan;
use crate::weights::{Form, Model};
use std::path::PathBuf;
use tritter_runtime::cpu;

fn config() -> Config {
    let mut config = preset("test").unwrap().config(Family::Llama, Some(64), Some(256));
    (config.hidden_size, config.intermediate_size, config.num_layers) = (24, 32, 2);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (2, 1, 12);
    config
}

fn session() -> Session {
    let model = Model::new(&config(), Form::Run, 256);
    model.load(&cpu::open(), &FromSeed::new(&config(), 1)).unwrap();
    let format = CacheFormat { page: 32, residual: 32, ..CacheFormat::from(CacheKind::Int4) };
    SessionPlan::with(&model, Layout::single(200, format)).unwrap().open(&cpu::open()).unwrap()
}

type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

/// Metadata and tensors of a saved prompt of 100 tokens, the checksum left out.
fn saved(path: &Path) -> (BTreeMap<String, String>, Tensors) {
    let mut session = session();
    let ids: Vec<u32> = (0..100).map(|i| i * 7 % 64).collect();
    session.prefill(&ids).unwrap();
    save(path, &session, 0, &Prompt { ids, conversation: None }, 5).unwrap();
    let file = Checkpoint::open_file(path).unwrap();
    let metadata = file.metadata().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let image = session.image(0).unwrap();
    let tensor = |part: Part<'_>| {
        let bytes = file.u8(&part.name, &part.shape).unwrap().to_vec();
        (part.name, part.shape, bytes)
    };
    let mut tensors: Tensors = parts(&session, 0, &image).into_iter().map(tensor).collect();
    tensors.pop();
    (metadata, tensors)
}

/// Writes a file with the checksum that belongs to what is in it.
fn forged(path: &Path, metadata: &BTreeMap<String, String>, tensors: &Tensors) {
    let mut digest = Digest::of(metadata);
    tensors.iter().for_each(|(_, _, bytes)| digest.update(bytes));
    let mut all = tensors.clone();
    all.push((CHECKSUM.into(), vec![8], digest.value().to_le_bytes().to_vec()));
    let headers: Vec<TensorHeader> = all
        .iter()
        .map(|(name, shape, _)| TensorHeader { name: name.clone(), dtype: Dtype::U8, shape: shape.clone() })
        .collect();
    write_safetensors(path, &headers, metadata, &mut |i, out| Ok(out.write_all(&all[i].2)?)).unwrap();
}

fn path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("prompt.cache")
}

#[test]
fn a_forged_header_is_refused_by_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    let (metadata, tensors) = saved(&path);
    let mut session = session();
    forged(&path, &metadata, &tensors);
    assert_eq!(load(&path, &mut session, 0, 5).unwrap().ids.len(), 100, "the checksum is made right");
    session.release(0).unwrap();
    for (key, value, problem) in [
        ("position", "101", "shape"),
        ("position", "201", "201 tokens, and the context is 200"),
        ("position", "18446744073709551615", "and the context is 200"),
        ("position", "-1", "no number of tokens"),
        ("coded", "18446744073709551615", "make it again"),
        ("coded", "0", "make it again"),
        ("floor", "96", "make it again"),
        ("kept", "7", "make it again"),
        ("whole", "18446744073709551615", "shape"),
        ("whole", "x", "no number of tokens"),
        ("version", "1", "of version 1"),
        ("format", "pt", "no prompt cache"),
        ("cache", "int8 in pages of 32", "int8"),
        ("rope", "{}", "turned by {}"),
        ("model", "0", "another model"),
    ] {
        let mut other = metadata.clone();
        other.insert(key.into(), value.into());
        forged(&path, &other, &tensors);
        let message = load(&path, &mut session, 0, 5).unwrap_err().to_string();
        assert!(message.contains(problem) && message.contains("prompt.cache"), "{key} {value}: {message}");
        assert_eq!(session.image(0).unwrap().pages, [0usize; 0], "{key} {value}");
    }
    let mut fewer = metadata.clone();
    fewer.remove("kept");
    forged(&path, &fewer, &tensors);
    assert!(load(&path, &mut session, 0, 5).unwrap_err().to_string().contains("`kept`"));
}

#[test]
fn forged_tensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    let (metadata, tensors) = saved(&path);
    let mut session = session();
    let mut refused = |change: &dyn Fn(&mut Tensors), problem: &str| {
        let mut other = tensors.clone();
        change(&mut other);
        forged(&path, &metadata, &other);
        let message = load(&path, &mut session, 0, 5).unwrap_err().to_string();
        assert!(message.contains(problem), "{message} lacks {problem}");
        assert_eq!(session.position(), 0, "{message}");
    };
    refused(&|t| drop(t.remove(2)), "layers.0.pages");
    refused(&|t| t.push(("more".into(), vec![1], vec![0])), "`more` is no part");
    refused(&|t| t[0].2[..4].copy_from_slice(&64u32.to_le_bytes()), "64");
    refused(&|t| t[1].2[..4].copy_from_slice(&u32::MAX.to_le_bytes()), "make it again");
    refused(&|t| t[1].2[4..8].copy_from_slice(&0u32.to_le_bytes()), "make it again");
    refused(
        &|t| {
            t[1].1[0] = 1 << 20;
            t[1].2 = vec![0; 4 << 20];
        },
        "1048576 pages",
    );
    refused(
        &|t| {
            t[2].1[1] -= 4;
            let bytes = t[2].1.iter().product();
            t[2].2.truncate(bytes);
        },
        "layers.0.pages",
    );
}

#[test]
fn a_damaged_page_empties_the_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    let (metadata, tensors) = saved(&path);
    forged(&path, &metadata, &tensors);
    let whole = std::fs::read(&path).unwrap();
    let mut session = session();
    session.prefill(&[1, 2, 3]).unwrap();
    let mut damaged = whole.clone();
    // Of the last layer's newest rows, before the checksum.
    let at = damaged.len() - 20;
    damaged[at] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(load(&path, &mut session, 0, 5).unwrap_err().to_string().contains("checksum"));
    assert_eq!((session.position(), session.image(0).unwrap().pages.len()), (0, 0));
    std::fs::write(&path, &whole).unwrap();
    load(&path, &mut session, 0, 5).unwrap();
}

#[test]
fn a_digest_does_not_depend_on_the_pieces() {
    let bytes: Vec<u8> = (0..200).map(|i| (i * 37 % 251) as u8).collect();
    let mut whole = Digest::default();
    whole.update(&bytes);
    for size in [1, 3, 4, 7, 8, 9, 64, 199] {
        let mut pieces = Digest::default();
        bytes.chunks(size).for_each(|piece| pieces.update(piece));
        assert_eq!(pieces.value(), whole.value(), "{size}");
    }
    let mut longer = Digest::default();
    longer.update(&bytes);
    longer.update(&[0]);
    assert_ne!(longer.value(), whole.value());
}
