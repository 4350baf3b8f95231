//! What a paged cache promises: the same logits however a text is fed, taken back, shared, kept in a file or cut by
//! a window.

#![allow(clippy::unwrap_used)]

use std::time::{SystemTime, UNIX_EPOCH};
use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::config::{Config, Family};
use tritter_model::generator::{Finish, Generator, Job};
use tritter_model::host_sampling::Sampling;
use tritter_model::presets::preset;
use tritter_model::programs::Layout;
use tritter_model::seeded::FromSeed;
use tritter_model::session::{BatchRow, Session, SessionPlan};
use tritter_model::weights::{Form, Model};
use tritter_runtime::cpu;
use tritter_runtime::random::Random;

const CAPACITY: usize = 640;

fn seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
}

/// A small dense model: no activation is quantised, so a small error stays small.
fn model(layers: usize, seed: u64) -> Model {
    let mut config: Config = preset("test").unwrap().config(Family::Llama, Some(97), None);
    (config.num_layers, config.hidden_size, config.intermediate_size) = (layers, 48, 64);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (4, 2, 24);
    let model = Model::new(&config, Form::Run, 4 * CAPACITY);
    model.load(&cpu::open(), &FromSeed::new(&config, seed)).unwrap();
    model
}

fn layout(kind: CacheKind) -> Layout {
    let cache = CacheFormat { page: 32, residual: 32, ..CacheFormat::from(kind) };
    Layout { sequences: 3, rows: 4, ..Layout::single(CAPACITY, cache) }
}

fn open(model: &Model, layout: Layout) -> Session {
    SessionPlan::with(model, layout).unwrap().open(&cpu::open()).unwrap()
}

fn text(random: &mut Random, tokens: usize) -> Vec<u32> {
    (0..tokens).map(|_| random.below(97) as u32).collect()
}

fn logits(session: &mut Session, sequence: usize, ids: &[u32]) -> Vec<f32> {
    session.prefill_of(sequence, ids).unwrap();
    session.logits().unwrap()
}

#[track_caller]
fn close(a: &[f32], b: &[f32], bound: f32, what: &str) {
    let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    let error = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
    assert!(error <= bound && !b.iter().any(|v| v.is_nan()), "{what}: logits differ by {error} of the largest");
}

/// Largest difference for one way of feeding against another: sums in another order, and beside integers a code
/// that was near a tie.
fn bound(kind: CacheKind) -> f32 {
    match kind {
        CacheKind::F32 => 2e-5,
        CacheKind::F16 => 1e-3,
        CacheKind::Int8 => 2e-3,
        CacheKind::Int4 => 2e-2,
        CacheKind::Int2 => 1e-1,
    }
}

#[test]
fn logits_do_not_depend_on_how_a_text_is_cut() {
    let seed = seed();
    let mut random = Random::new(seed);
    let model = model(2, seed);
    for kind in CacheKind::ALL {
        let ids = text(&mut random, 300);
        let mut session = open(&model, layout(kind));
        let whole = logits(&mut session, 0, &ids);
        let mut rest = &ids[..];
        while !rest.is_empty() {
            let (part, tail) = rest.split_at((1 + random.below(70) as usize).min(rest.len()));
            session.prefill_of(1, part).unwrap();
            rest = tail;
        }
        close(&whole, &session.logits().unwrap(), bound(kind), &format!("seed {seed}, {kind:?} in pieces"));
        for &id in &ids {
            session.prefill_of(2, &[id]).unwrap();
        }
        close(&whole, &session.logits().unwrap(), bound(kind), &format!("seed {seed}, {kind:?} token by token"));
    }
}

#[test]
fn fewer_bits_are_near_and_ever_less_near() {
    let seed = seed();
    let model = model(2, seed);
    let ids = text(&mut Random::new(seed), 400);
    let exact = logits(&mut open(&model, layout(CacheKind::F32)), 0, &ids);
    let mut before = 0.0;
    for kind in CacheKind::ALL {
        let found = logits(&mut open(&model, layout(kind)), 0, &ids);
        let square = |x: &mut dyn Iterator<Item = f32>| x.map(|v| f64::from(v * v)).sum::<f64>();
        let error = square(&mut exact.iter().zip(&found).map(|(a, b)| a - b)) / square(&mut exact.iter().copied());
        assert!(error >= before && error < 0.5, "seed {seed}: {kind:?} has error {error} after {before}");
        before = error;
    }
    assert!(before > 0.0, "two bits are not exact");
}

#[test]
fn what_is_taken_back_leaves_no_trace() {
    let seed = seed();
    let mut random = Random::new(seed);
    let model = model(2, seed);
    for kind in CacheKind::ALL {
        let (ids, wrong) = (text(&mut random, 200), text(&mut random, 90));
        let mut session = open(&model, layout(kind));
        let expected = logits(&mut session, 0, &ids);
        let kept = 40 + random.below(100) as usize;
        session.prefill_of(1, &ids[..kept]).unwrap();
        session.prefill_of(1, &wrong).unwrap();
        assert_eq!(session.rewind(1, kept).unwrap(), kept, "seed {seed}: {kind:?} remembers so far");
        let found = logits(&mut session, 1, &ids[kept..]);
        close(&expected, &found, bound(kind), &format!("seed {seed}, {kind:?} after {kept}"));
    }
}

#[test]
fn going_back_far_says_where_it_ends() {
    let seed = seed();
    let model = model(2, seed);
    let ids = text(&mut Random::new(seed), 600);
    let mut session = open(&model, Layout { chunk: 16, ..layout(CacheKind::Int4) });
    session.prefill_of(0, &ids).unwrap();
    let reached = session.rewind(0, 205).unwrap();
    assert_eq!(reached, 192, "the beginning of a page");
    assert_eq!(session.position_of(0).unwrap(), reached);
    session.prefill_of(0, &ids[reached..]).unwrap();
    let back = session.logits().unwrap();
    let straight = logits(&mut session, 1, &ids);
    close(&straight, &back, 0.2, &format!("seed {seed}: only 32 tokens were seen as codes instead of whole"));
    assert_eq!(session.rewind(0, 0).unwrap(), 0);
}

#[test]
fn going_back_twice_reads_nothing_that_was_written_for_other_tokens() {
    let seed = seed();
    let mut random = Random::new(seed);
    let model = model(2, seed);
    let (ids, other) = (text(&mut random, 600), text(&mut random, 300));
    let mut session = open(&model, Layout { chunk: 16, ..layout(CacheKind::Int8) });
    let straight = logits(&mut session, 1, &[&ids[..96], &other].concat());
    session.prefill_of(0, &ids).unwrap();
    assert_eq!(session.rewind(0, 205).unwrap(), 192);
    // Whole rows below 192 are gone for good, so what is below it are pages of codes.
    assert_eq!(session.rewind(0, 100).unwrap(), 96);
    let back = logits(&mut session, 0, &other);
    close(&straight, &back, 1e-2, &format!("seed {seed}: only 32 tokens were seen as codes instead of whole"));
    // The same behind a window: what it dropped before is not there for a page that starts further back.
    let windowed = Layout { chunk: 16, window: Some(100), sequences: 1, ..layout(CacheKind::Int8) };
    let mut session = open(&model, windowed);
    let straight = logits(&mut open(&model, windowed), 0, &other);
    session.prefill_of(0, &ids).unwrap();
    let reached = (0..600).rev().map(|to| session.rewind(0, to).unwrap()).take_while(|to| *to > 0).last().unwrap();
    assert!(reached >= 416, "seed {seed}: {reached} saw keys from {} on", reached - 99);
    assert_eq!(session.position_of(0).unwrap(), 0);
    close(&straight, &logits(&mut session, 0, &other), 1e-2, &format!("seed {seed}: after all was forgotten"));
}

#[test]
fn a_fork_shares_pages_until_one_writes() {
    let seed = seed();
    let mut random = Random::new(seed);
    let model = model(2, seed);
    for kind in CacheKind::ALL {
        let (common, a, b) = (text(&mut random, 150), text(&mut random, 60), text(&mut random, 80));
        let mut session = open(&model, layout(kind));
        let alone = |session: &mut Session, tail: &[u32]| {
            let found = logits(session, 2, &[&common[..], tail].concat());
            session.release(2).unwrap();
            found
        };
        let (of_a, of_b) = (alone(&mut session, &a), alone(&mut session, &b));
        session.prefill_of(0, &common).unwrap();
        let free = session.free_pages();
        assert_eq!(session.fork(0, 1, 150).unwrap(), 150);
        assert_eq!(session.free_pages(), free, "{kind:?}: a fork takes no page");
        let (found_a, found_b) = (logits(&mut session, 0, &a), logits(&mut session, 1, &b));
        close(&of_a, &found_a, bound(kind), &format!("seed {seed}, {kind:?}: the first"));
        close(&of_b, &found_b, bound(kind), &format!("seed {seed}, {kind:?}: the fork"));
        let used = session.free_pages();
        session.release(0).unwrap();
        assert!(session.free_pages() > used);
        session.release(1).unwrap();
        assert_eq!(session.free_pages(), open(&model, layout(kind)).free_pages(), "{kind:?}: all are back");
    }
}

/// A single layer's keys and values depend on their own token alone, so a stream with a window and sinks equals a
/// text of only the tokens that are seen.
#[test]
fn sinks_and_window_are_what_a_text_of_those_tokens_gives() {
    let seed = seed();
    let mut random = Random::new(seed);
    let model = model(1, seed);
    for (kind, window, sinks) in [(CacheKind::F32, 50, 4), (CacheKind::F16, 40, 0), (CacheKind::Int8, 100, 3)] {
        let ids = text(&mut random, 500);
        let layout = Layout { window: Some(window), sinks, sequences: 1, ..layout(kind) };
        let plan = SessionPlan::with(&model, layout).unwrap();
        let whole = SessionPlan::with(&model, Layout { window: None, sinks: 0, ..layout }).unwrap();
        assert!(plan.cache() < whole.cache(), "what went by is not kept");
        let mut stream = plan.open(&cpu::open()).unwrap();
        stream.prefill_of(0, &ids[..300]).unwrap();
        for &id in &ids[300..] {
            stream.prefill_of(0, &[id]).unwrap();
        }
        let seen = [&ids[..sinks], &ids[500 - window..]].concat();
        let expected = logits(&mut open(&model, self::layout(CacheKind::F32)), 0, &seen);
        let what = format!("seed {seed}: {kind:?}, {window} and {sinks}");
        close(&expected, &stream.logits().unwrap(), bound(kind).max(2e-4), &what);
        if sinks == 0 {
            // Without sinks positions do not matter, only distances.
            continue;
        }
        stream.prefill_of(0, &ids[..100]).unwrap();
        assert_eq!(stream.position_of(0).unwrap(), 600);
    }
}

#[test]
fn a_window_never_needs_more_pages_than_were_planned() {
    let seed = seed();
    let mut random = Random::new(seed);
    let model = model(1, seed);
    for kind in [CacheKind::F32, CacheKind::Int4] {
        for _ in 0..12 {
            let mut below = |n: u64| random.below(n) as usize;
            let (page, window, residual) = ([32, 64][below(2)], 1 + below(200), below(300));
            let cache = CacheFormat { page, residual, ..CacheFormat::from(kind) };
            let sinks = below(window as u64 + 1);
            let layout =
                Layout { window: Some(window), sinks, rows: 1, sequences: 1, chunk: 64, ..Layout::single(1500, cache) };
            let mut session = open(&model, layout);
            let mut fed = 0;
            while fed < 1400 {
                let tokens = (1 + random.below(90) as usize).min(1400 - fed);
                let fits = session.prefill_of(0, &vec![5; tokens]);
                assert!(fits.is_ok(), "seed {seed}: {layout:?} after {fed} and {tokens}: {fits:?}");
                fed += tokens;
            }
        }
    }
}

#[test]
fn a_pool_that_runs_out_ends_one_text_and_leaves_the_others() {
    let seed = seed();
    let model = model(2, seed);
    let tokenizer = tritter_model::bpe_train::train_bpe(["the cat sat on the mat"], 261).unwrap();
    let mut random = Random::new(seed);
    let job = |random: &mut Random, prompt, max_tokens| Job {
        ids: text(random, prompt),
        cached: 0,
        max_tokens,
        sampling: Sampling::GREEDY,
        seed: 0,
    };
    let jobs = [job(&mut random, 40, 200), job(&mut random, 40, 100), job(&mut random, 300, 8)];
    let run = |pages| {
        let layout = Layout { pages, ..layout(CacheKind::F32) };
        let mut session = open(&model, layout);
        let mut generator = Generator::new(&mut session, &tokenizer);
        generator.ends.clear();
        let (texts, _) = generator.run(&jobs, &mut |_, _| {}).unwrap();
        (texts, session.free_pages())
    };
    let (full, _) = run(None);
    assert!(full.iter().all(|text| text.finish == Finish::Length));
    // Eight pages: the first two begin beside each other, the third can never be held.
    let (short, free) = run(Some(8));
    assert_eq!(short.len(), 3);
    assert_eq!(short[2].finish, Finish::Pages);
    assert!(short[2].ids.is_empty());
    for (short, full) in short.iter().zip(&full) {
        assert_eq!(short.ids, full.ids[..short.ids.len()], "seed {seed}: what there is is right");
    }
    assert_eq!(short[1].finish, Finish::Length, "seed {seed}: the shorter one is untouched");
    assert_eq!(short[1].ids, full[1].ids);
    assert_eq!(free, 8);
}

#[test]
fn a_long_prompt_behind_a_window_waits_for_pages_or_ends_and_disturbs_nobody() {
    let seed = seed();
    let model = model(1, seed);
    let tokenizer = tritter_model::bpe_train::train_bpe(["the cat sat on the mat"], 261).unwrap();
    let mut random = Random::new(seed);
    let job = |(ids, max_tokens)| Job { ids, cached: 0, max_tokens, sampling: Sampling::GREEDY, seed: 0 };
    let jobs = [(70, 30), (300, 30), (20, 5), (300, 30)].map(|(n, most)| job((text(&mut random, n), most)));
    for kind in [CacheKind::F32, CacheKind::Int8] {
        let run = |pages| {
            let layout = Layout { pages, window: Some(150), chunk: 16, ..layout(kind) };
            let mut session = open(&model, layout);
            let mut generator = Generator::new(&mut session, &tokenizer);
            generator.ends.clear();
            (generator.run(&jobs, &mut |_, _| {}).unwrap().0, session.free_pages())
        };
        let (full, _) = run(None);
        // The first three have room beside each other in 14 pages, and the fourth not beside the second, which it
        // finds out behind its first chunk. Three pages hold no long one at all.
        for (pages, finish) in [(14, Finish::Length), (3, Finish::Pages)] {
            let (short, free) = run(Some(pages));
            assert_eq!(free, pages);
            for (i, (short, full)) in short.iter().zip(&full).enumerate() {
                let what = format!("seed {seed}, {kind:?}, {pages} pages, text {i}");
                assert_eq!(short.ids, full.ids[..short.ids.len()], "{what}");
                assert!(short.finish == if i == 2 { Finish::Length } else { finish } || i == 0, "{what}: {short:?}");
            }
        }
    }
}

#[test]
fn a_draft_that_finds_no_page_leaves_the_text_as_long_as_it_is_without() {
    let model = model(1, 5);
    let tokenizer = tritter_model::bpe_train::train_bpe(["the cat sat on the mat"], 261).unwrap();
    let job = Job { ids: [7, 8, 9].repeat(12), cached: 0, max_tokens: 90, sampling: Sampling::GREEDY, seed: 0 };
    for kind in [CacheKind::F32, CacheKind::Int4] {
        let run = |draft| {
            let mut session = open(&model, Layout { pages: Some(3), sequences: 1, rows: 9, ..layout(kind) });
            let mut generator = Generator::new(&mut session, &tokenizer);
            (generator.draft, generator.ends) = (draft, Vec::new());
            generator.run(std::slice::from_ref(&job), &mut |_, _| {}).unwrap().0.remove(0)
        };
        let (plain, drafted) = (run(0), run(8));
        assert_eq!((&drafted.ids, drafted.finish), (&plain.ids, plain.finish), "{kind:?}");
    }
}

#[test]
fn what_a_run_took_counts_the_keys_that_a_window_leaves() {
    let model = model(1, 6);
    let tokenizer = tritter_model::bpe_train::train_bpe(["the cat sat on the mat"], 261).unwrap();
    let job = Job { ids: [7, 8, 9].repeat(20), cached: 0, max_tokens: 11, sampling: Sampling::GREEDY, seed: 0 };
    for (window, sinks, seen) in [(None, 0, 61), (Some(20), 2, 22), (Some(1), 0, 1)] {
        let mut session = open(&model, Layout { window, sinks, sequences: 1, ..layout(CacheKind::F32) });
        let mut generator = Generator::new(&mut session, &tokenizer);
        generator.ends.clear();
        let took = generator.run(std::slice::from_ref(&job), &mut |_, _| {}).unwrap().1;
        let expected = (0..10).map(|step| if window.is_none() { seen + step } else { seen }).sum::<u64>();
        assert_eq!((took.steps, took.visible), (10, expected), "{window:?}");
    }
}

#[test]
fn a_batch_of_unequal_texts_shares_one_pool() {
    let seed = seed();
    let mut random = Random::new(seed);
    let model = model(2, seed);
    for kind in [CacheKind::F32, CacheKind::Int4] {
        let texts: Vec<Vec<u32>> = [17, 140, 65].into_iter().map(|n| text(&mut random, n)).collect();
        let mut session = open(&model, layout(kind));
        for (i, text) in texts.iter().enumerate() {
            session.prefill_of(i, &text[..text.len() - 1]).unwrap();
        }
        let last: Vec<u32> = texts.iter().map(|text| text[text.len() - 1]).collect();
        session.put_batch(&last).unwrap();
        let rows: Vec<BatchRow> = (0..3).map(|sequence| BatchRow { sequence, live: true }).collect();
        session.step_batch(&rows).unwrap();
        let together = session.logits().unwrap();
        for (i, text) in texts.iter().enumerate() {
            let alone = logits(&mut open(&model, layout(kind)), 0, text);
            close(&alone, &together[97 * i..][..97], bound(kind), &format!("seed {seed}, {kind:?} text {i}"));
        }
    }
}

#[test]
fn contexts_of_random_content_decode() {
    let model = model(2, 3);
    for kind in CacheKind::ALL {
        let mut session = open(&model, layout(kind));
        session.fill(0, 500, 1).unwrap();
        assert_eq!(session.position_of(0).unwrap(), 500);
        let found = logits(&mut session, 0, &[5]);
        assert!(found.iter().all(|v| v.is_finite()), "{kind:?}");
        assert!(session.fill(0, CAPACITY + 1, 1).is_err());
    }
}

#[test]
fn windows_that_make_no_sense_are_refused_by_name() {
    let model = model(1, 4);
    let base = layout(CacheKind::F32);
    let refused = |layout: Layout| SessionPlan::with(&model, layout).unwrap_err().to_string();
    assert!(refused(Layout { window: Some(0), ..base }).contains("window of 0"));
    assert!(refused(Layout { window: Some(4), sinks: 5, ..base }).contains("5 sinks are more than the window of 4"));
    assert!(refused(Layout { sinks: 5, ..base }).contains("without a window"));
    assert!(refused(Layout { chunk: 100, ..base }).contains("chunks of 100"));
    assert!(refused(Layout { pages: Some(0), ..base }).contains("pool of 0 pages"));
    let page = CacheFormat { page: 48, ..CacheFormat::F32 };
    assert!(refused(Layout { cache: page, ..base }).contains("pages of 48"));
}
