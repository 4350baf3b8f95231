//! The readers of files from outside, over the corpus of the fuzz targets and systematic damage of it: they
//! return, whatever the bytes, and take no more memory than a small multiple of the input.
#![allow(clippy::unwrap_used, unsafe_code)]

#[path = "../../fuzz/src/readers.rs"]
mod readers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tritter_model::Config;
use tritter_model::config::{Activation, Family, Quantization, RopeScaling, Yarn};
use tritter_model::gguf::export::{Types, export};
use tritter_model::gguf::tokenizer::{files_of, write_entries};
use tritter_model::gguf::write::{Entry, TensorHeader, prepare_gguf};
use tritter_model::gguf::{TensorType, types::TYPES};
use tritter_model::save::{Floats, write_folder};
use tritter_model::seeded::Synthetic;
use tritter_runtime::DType;
use tritter_runtime::random::Random;

/// Bytes in use, and the most there were.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that may be taken for each of the input, and beside them: a token is a few bytes in a file, and an
/// entry of some maps of JSON when it is read.
const PER_BYTE: usize = 64;
const BESIDE: usize = 1 << 20;
/// Time for all the damage together.
const TIME: Duration = Duration::from_secs(6);

fn corpus(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(kind)
}

fn read(kind: &str, bytes: &[u8]) {
    let before = IN_USE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    match kind {
        "gguf" => readers::gguf(bytes),
        _ => readers::safetensors(bytes),
    }
    let taken = MOST.load(Ordering::Relaxed) - before;
    assert!(taken <= PER_BYTE * bytes.len() + BESIDE, "{taken} bytes were taken for {} of {kind}", bytes.len());
}

// One test, so that no other one's memory is counted.
#[test]
fn readers_return_whatever_the_bytes() {
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed: {seed}");
    let (mut random, begin, mut tried) = (Random::new(seed), Instant::now(), 0);
    let mut files = Vec::new();
    for kind in ["gguf", "safetensors"] {
        for entry in std::fs::read_dir(corpus(kind)).unwrap() {
            files.push((kind, std::fs::read(entry.unwrap().path()).unwrap()));
        }
    }
    assert!(files.len() >= 12, "the corpus is missing");
    assert!(files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < 200 << 10);
    for (kind, bytes) in &files {
        read(kind, bytes);
        // Every cut near the front, where the header is, and some behind.
        let cuts = (0..bytes.len()).step_by((bytes.len() / 256).max(1)).chain(0..bytes.len().min(512));
        for cut in cuts.take_while(|_| begin.elapsed() < TIME / 2) {
            read(kind, &bytes[..cut]);
            tried += 1;
        }
    }
    while begin.elapsed() < TIME {
        for (kind, bytes) in &files {
            let mut bytes = bytes.clone();
            for _ in 0..1 + random.below(4) {
                // Most flips go to the header.
                let within = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(1500) };
                let at = random.below(within as u64) as usize;
                let Some(byte) = bytes.get_mut(at) else { continue };
                *byte = match random.below(3) {
                    0 => *byte ^ 1 << random.below(8),
                    1 => 0xFF,
                    _ => random.bits() as u8,
                };
            }
            read(kind, &bytes);
            tried += 1;
        }
    }
    println!("{tried} damaged files were read");
}

/// Writes the corpus anew: `cargo test -p tritter-model --test corpus -- --ignored`.
#[test]
#[ignore = "writes fuzz/corpus"]
fn the_corpus_is_written() {
    for kind in ["gguf", "safetensors"] {
        std::fs::create_dir_all(corpus(kind)).unwrap();
    }
    let config = Config::from_json("config.json".as_ref(), &readers::config()).unwrap();
    let source = Synthetic::new(&config, 1, DType::F32);
    let gguf = |name: &str| corpus("gguf").join(name);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    for (name, weights, tables) in
        [("f32.gguf", TensorType::F32, TensorType::F32), ("f16.gguf", TensorType::F16, TensorType::Bf16)]
    {
        export(&gguf(name), &config, &source, Types::new(weights, tables), Vec::new()).unwrap();
    }
    // Every key of long contexts.
    let mut long = Config { family: Family::Mistral, quantization: Quantization::None, ..config.clone() };
    (long.window, long.activation) = (Some(12), Activation::Silu);
    let types = Types { unheeded: true, ..Types::new(TensorType::F16, TensorType::F16) };
    let yarn = Yarn { attention_factor: 1.0, ..Yarn::new(4.0, 16) };
    for (name, scaling) in
        [("window-yarn.gguf", RopeScaling::Yarn(yarn)), ("window-linear.gguf", RopeScaling::Linear { factor: 4.0 })]
    {
        long.rope.scaling = scaling;
        let pattern = ("llama.attention.sliding_window_pattern".to_owned(), Entry::U32s(vec![1; long.num_layers]));
        export(&gguf(name), &long, &Synthetic::new(&long, 1, DType::F32), types, vec![pattern]).unwrap();
    }
    let files = files_of(&fixtures.join("tokenizer_gpt2")).unwrap().unwrap();
    let mut entries = write_entries(Path::new("t"), &files, 768).unwrap();
    entries.retain(|(key, _)| !key.ends_with("template"));
    let blocks = |name: &str, types: &[TensorType], entries: &[_]| {
        let header = |t: &TensorType| TensorHeader { name: t.name().into(), dtype: *t, shape: vec![2, t.block().0] };
        let headers: Vec<TensorHeader> = types.iter().map(header).collect();
        let write = |i: usize, out: &mut dyn std::io::Write| {
            let t = headers[i].dtype;
            Ok(out.write_all(&vec![0; t.bytes(2, t.block().0).unwrap()])?)
        };
        prepare_gguf(&gguf(name), entries, &headers, &mut { write }).unwrap().commit().unwrap();
    };
    blocks("tokenizer.gguf", &[TensorType::F16], &entries);
    let groups = |t: &&TensorType| **t != TensorType::Q2_0G128;
    blocks("blocks.gguf", &TYPES.iter().filter(groups).copied().collect::<Vec<_>>(), &[]);
    blocks("groups.gguf", &[TensorType::Q2_0G128, TensorType::F32], &[]);
    std::fs::copy(fixtures.join("gguf/whole.gguf"), gguf("whole.gguf")).unwrap();
    let whole = std::fs::read(gguf("f16.gguf")).unwrap();
    std::fs::write(gguf("cut.gguf"), &whole[..700]).unwrap();
    std::fs::write(gguf("big-endian.gguf"), [b"GGUF\0\0\0\x03", &whole[8..200]].concat()).unwrap();
    let damaged = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|w| w == from).unwrap();
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    std::fs::write(gguf("twice.gguf"), damaged(b"blk.0.attn_q.w", b"blk.0.attn_k.w")).unwrap();
    std::fs::write(gguf("nested.gguf"), damaged(b"bitnet.vocab_size\x04", b"bitnet.vocab_size\x09")).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let layout = tritter_model::save::Layout { floats: Floats::F32, shard: None };
    write_folder(folder.path(), &config, &source, layout).unwrap();
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let safetensors = |name: &str, bytes: &[u8]| std::fs::write(corpus("safetensors").join(name), bytes).unwrap();
    safetensors("packed.safetensors", &bytes);
    safetensors("cut.safetensors", &bytes[..bytes.len() / 2]);
    safetensors("long.safetensors", &[&u64::MAX.to_le_bytes()[..], &bytes[8..64]].concat());
    let tensors = [tritter_model::tensor_write::TensorHeader {
        name: "a".into(),
        dtype: tritter_model::tensors::Dtype::F16,
        shape: vec![2, 3],
    }];
    let path = corpus("safetensors").join("one.safetensors");
    let write = |_: usize, out: &mut dyn std::io::Write| Ok(out.write_all(&[1; 12])?);
    tritter_model::tensor_write::write_safetensors(&path, &tensors, &BTreeMap::new(), &mut { write }).unwrap();
}
