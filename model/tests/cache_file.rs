//! The cache of a prompt as a file: what was saved goes on bit for bit, and what is not its own is refused.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::cache_file::{Prompt, fingerprint, load, save};
use tritter_model::config::{Config, Family, RopeScaling, Yarn};
use tritter_model::presets::preset;
use tritter_model::programs::Layout;
use tritter_model::seeded::FromSeed;
use tritter_model::session::{Session, SessionPlan};
use tritter_model::weights::{Form, Model};
use tritter_runtime::cpu;
use tritter_runtime::random::Random;

const POSITIONS: usize = 512;

/// A seed that no other run had.
fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_nanos() as u64
}

fn config() -> Config {
    let mut config = preset("test").unwrap().config(Family::Llama, Some(261), Some(POSITIONS));
    (config.hidden_size, config.intermediate_size, config.num_layers) = (48, 64, 2);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (4, 2, 12);
    config
}

fn model(seed: u64) -> Model {
    let model = Model::new(&config(), Form::Run, POSITIONS);
    model.load(&cpu::open(), &FromSeed::new(&config(), seed)).unwrap();
    model
}

fn print(seed: u64) -> u64 {
    fingerprint(&config(), &FromSeed::new(&config(), seed)).unwrap()
}

fn layout(kind: CacheKind, capacity: usize) -> Layout {
    Layout::single(capacity, CacheFormat { page: 32, residual: 32, ..CacheFormat::from(kind) })
}

fn open(model: &Model, layout: Layout) -> Session {
    SessionPlan::with(model, layout).unwrap().open(&cpu::open()).unwrap()
}

/// Logits after each of these tokens.
fn continued(session: &mut Session, ids: &[u32]) -> Vec<u32> {
    let mut bits = Vec::new();
    for &id in ids {
        session.put(id).unwrap();
        session.step().unwrap();
        bits.extend(session.logits().unwrap().iter().map(|logit| logit.to_bits()));
    }
    bits
}

/// A prompt that belongs to no conversation.
fn prompt_of(ids: &[u32]) -> Prompt {
    Prompt { ids: ids.to_vec(), conversation: None }
}

fn text(seed: u64, tokens: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..tokens).map(|_| random.below(261) as u32).collect()
}

#[test]
fn a_restored_prompt_goes_on_bit_for_bit() {
    let (seed, folder) = (fresh_seed(), tempfile::tempdir().unwrap());
    let model = model(1);
    for kind in CacheKind::ALL {
        for (tokens, window, capacities) in [(150, None, [200, 500]), (290, Some(70), [500, 320]), (5, None, [20, 500])]
        {
            let what = format!("{} {tokens} {window:?} seed {seed}", kind.name());
            let path = folder.path().join("prompt.cache");
            let (prompt, rest) = (text(seed, tokens), text(seed + 1, 12));
            let layout = |capacity| Layout { window, sinks: window.map_or(0, |_| 4), ..layout(kind, capacity) };
            let mut first = open(&model, layout(capacities[0]));
            first.prefill(&prompt).unwrap();
            save(&path, &first, 0, &prompt_of(&prompt), print(1)).unwrap();
            // Another capacity: other chunks, another ring, other pages.
            let mut second = open(&model, layout(capacities[1]));
            second.prefill(&rest).unwrap();
            assert_eq!(load(&path, &mut second, 0, print(1)).unwrap(), prompt_of(&prompt), "{what}");
            assert_eq!(second.position(), tokens, "{what}");
            assert_eq!(continued(&mut first, &rest), continued(&mut second, &rest), "{what}");
            // Going back works the same, too.
            let (a, b) = (first.rewind(0, tokens + 2).unwrap(), second.rewind(0, tokens + 2).unwrap());
            assert_eq!(a, b, "{what}");
            assert_eq!(continued(&mut first, &rest[..9]), continued(&mut second, &rest[..9]), "{what}, rewound");
        }
    }
}

/// A saved prompt of 100 tokens in four bits.
fn saved(folder: &Path, model: &Model) -> PathBuf {
    let path = folder.join("prompt.cache");
    let mut session = open(model, layout(CacheKind::Int4, 200));
    session.prefill(&text(7, 100)).unwrap();
    save(&path, &session, 0, &prompt_of(&text(7, 100)), print(1)).unwrap();
    path
}

#[track_caller]
fn refused(path: &Path, session: &mut Session, model: u64, word: &str) {
    let message = load(path, session, 0, model).unwrap_err().to_string();
    assert!(message.contains(word) && message.contains("prompt.cache"), "{message} lacks {word}");
    assert_eq!(session.position(), 0, "nothing was put into the session");
}

#[test]
fn a_conversation_and_any_sequence_are_kept() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model(1));
    let path = folder.path().join("prompt.cache");
    let two = Layout { sequences: 2, rows: 2, ..layout(CacheKind::Int8, 200) };
    let (mut first, mut second) = (open(&model, two), open(&model, two));
    first.prefill_of(1, &text(3, 90)).unwrap();
    let prompt = Prompt { ids: text(3, 90), conversation: Some("[{\"role\": \"user\"}]".into()) };
    save(&path, &first, 1, &prompt, print(1)).unwrap();
    second.prefill_of(0, &text(4, 40)).unwrap();
    assert_eq!(load(&path, &mut second, 0, print(1)).unwrap(), prompt, "over what was there before");
    assert_eq!(second.image(0).unwrap(), first.image(1).unwrap());
    let short = Prompt { ids: text(3, 89), ..Prompt::default() };
    assert!(save(&path, &first, 1, &short, print(1)).unwrap_err().to_string().contains("89"));
    assert!(save(&path, &first, 0, &Prompt::default(), print(1)).is_err(), "nothing was fed");
}

#[test]
fn a_file_of_another_model_or_cache_is_refused() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model(1));
    let path = saved(folder.path(), &model);
    let mut same = open(&model, layout(CacheKind::Int4, 200));
    refused(&path, &mut same, print(2), "another model");
    let mut other = config();
    other.rms_norm_eps *= 2.0;
    let other = fingerprint(&other, &FromSeed::new(&other, 1)).unwrap();
    refused(&path, &mut same, other, "another model");
    for scaling in [RopeScaling::Linear { factor: 2.0 }, RopeScaling::Yarn(Yarn::new(2.0, POSITIONS))] {
        let mut turned = config();
        turned.rope.scaling = scaling;
        let of_turned = fingerprint(&turned, &FromSeed::new(&turned, 1)).unwrap();
        assert_eq!(of_turned, print(1), "the weights are the same");
        let model = Model::new(&turned, Form::Run, POSITIONS);
        model.load(&cpu::open(), &FromSeed::new(&turned, 1)).unwrap();
        refused(&path, &mut open(&model, layout(CacheKind::Int4, 200)), of_turned, scaling.name());
    }
    refused(&path, &mut open(&model, layout(CacheKind::Int2, 200)), print(1), "int4");
    refused(
        &path,
        &mut open(&model, Layout { window: Some(64), ..layout(CacheKind::Int4, 200) }),
        print(1),
        "window 64",
    );
    let narrow = CacheFormat { page: 64, residual: 32, ..CacheFormat::from(CacheKind::Int4) };
    refused(&path, &mut open(&model, Layout::single(200, narrow)), print(1), "pages of 64");
    refused(&path, &mut open(&model, layout(CacheKind::Int4, 99)), print(1), "100 tokens");
    std::fs::write(&path, "no cache").unwrap();
    refused(&path, &mut same, print(1), "");
}

#[test]
fn a_cut_or_altered_file_is_refused() {
    let (seed, folder, model) = (fresh_seed(), tempfile::tempdir().unwrap(), model(1));
    let path = saved(folder.path(), &model);
    let (whole, mut random) = (std::fs::read(&path).unwrap(), Random::new(seed));
    let mut session = open(&model, layout(CacheKind::Int4, 200));
    for _ in 0..60 {
        let at = random.below(whole.len() as u64) as usize;
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(load(&path, &mut session, 0, print(1)).is_err(), "cut at {at}, seed {seed}");
        let mut altered = whole.clone();
        altered[at] ^= 1 << random.below(8);
        std::fs::write(&path, &altered).unwrap();
        assert!(load(&path, &mut session, 0, print(1)).is_err(), "altered at {at}, seed {seed}");
        assert_eq!(session.position(), 0, "seed {seed}");
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(load(&path, &mut session, 0, print(1)).unwrap(), prompt_of(&text(7, 100)));
}
