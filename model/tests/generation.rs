//! Generation on the CPU: batches, steps ahead, drafts, stop strings and cached beginnings change nothing
//! but the speed.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use tritter_model::Config;
use tritter_model::bpe_train::train_bpe;
use tritter_model::cache::CacheFormat;
use tritter_model::config::Family;
use tritter_model::generator::{Finish, Generated, Generator, Job, Took};
use tritter_model::host_sampling::{Random, Sampling};
use tritter_model::presets::preset;
use tritter_model::programs::Layout;
use tritter_model::seeded::FromSeed;
use tritter_model::session::{BatchRow, Session, SessionPlan};
use tritter_model::source::FromCheckpoint;
use tritter_model::tensors::Checkpoint;
use tritter_model::tokenizer::Tokenizer;
use tritter_model::weights::{Form, Model};
use tritter_runtime::cpu;

/// A ternary model with grouped heads, small and with ragged sizes.
fn small(seed: u64) -> Model {
    let mut config = preset("test").unwrap().config(Family::Bitnet, Some(261), Some(96));
    (config.hidden_size, config.intermediate_size, config.num_layers) = (72, 136, 2);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (6, 2, 12);
    let model = Model::new(&config, Form::Run, 96);
    model.load(&cpu::open(), &FromSeed::new(&config, seed)).unwrap();
    model
}

fn tokenizer() -> Tokenizer {
    train_bpe(["the cat sat on the mat"], 261).unwrap()
}

fn session(model: &Model, sequences: usize, rows: usize) -> Session {
    let layout =
        Layout { capacity: 96, sequences, rows, cache: CacheFormat::F32, ..Layout::single(0, CacheFormat::F32) };
    SessionPlan::with(model, layout).unwrap().open(&cpu::open()).unwrap()
}

fn jobs(random: &mut Random, count: usize, sampling: Sampling) -> Vec<Job> {
    let mut below = |n: u64| random.next_u64() % n;
    let job = |_| Job {
        ids: (0..1 + below(40)).map(|_| below(256) as u32).collect(),
        cached: 0,
        max_tokens: 1 + below(50) as usize,
        sampling,
        seed: below(1000),
    };
    (0..count).map(job).collect()
}

fn ids(all: &[Generated]) -> Vec<&[u32]> {
    all.iter().map(|one| one.ids.as_slice()).collect()
}

/// Each job alone, one token at a time.
fn alone(model: &Model, jobs: &[Job]) -> Vec<Generated> {
    let (tokenizer, mut session) = (tokenizer(), session(model, 1, 1));
    let run = |job: &Job| Generator::new(&mut session, &tokenizer).run(std::slice::from_ref(job), &mut |_, _| {});
    jobs.iter().map(run).flat_map(|result| result.unwrap().0).collect()
}

fn kinds() -> [Sampling; 4] {
    let warm = Sampling { temperature: 0.9, top_k: 20, ..Sampling::GREEDY };
    let narrow = Sampling { top_p: 0.9, min_p: 0.01, ..warm };
    [Sampling::GREEDY, warm, narrow, Sampling { repeat_penalty: 1.1, ..narrow }]
}

#[test]
fn a_batch_gives_what_its_prompts_give_alone() {
    for (seed, sampling) in (1..).zip(kinds()) {
        let (model, tokenizer) = (small(seed), tokenizer());
        let jobs = jobs(&mut Random::new(seed), 7, sampling);
        let expected = alone(&model, &jobs);
        for (sequences, ahead) in [(1, 1), (3, 0), (4, 1), (7, 2)] {
            let mut session = session(&model, sequences, sequences);
            let mut generator = Generator::new(&mut session, &tokenizer);
            generator.ahead = ahead;
            let mut shown = vec![String::new(); jobs.len()];
            let (found, took) = generator.run(&jobs, &mut |job, text| shown[job].push_str(text)).unwrap();
            assert_eq!(ids(&found), ids(&expected), "{sampling:?}, {sequences} at a time, {ahead} ahead");
            assert!(found.iter().zip(&shown).all(|(one, shown)| one.text == *shown));
            let kept: usize = found.iter().map(|one| one.ids.len()).sum();
            assert_eq!(took.decoded + jobs.len(), kept);
        }
    }
}

#[test]
fn an_end_that_is_seen_late_leaves_nothing_behind() {
    let (model, tokenizer) = (small(5), tokenizer());
    let jobs = jobs(&mut Random::new(9), 5, kinds()[1]);
    let whole = alone(&model, &jobs);
    // Tokens that come up in the middle end the texts.
    let ends: Vec<u32> = whole.iter().filter_map(|one| one.ids.get(one.ids.len() / 2)).copied().collect();
    for (sequences, ahead) in [(1, 0), (1, 1), (2, 1), (5, 3)] {
        let mut session = session(&model, sequences, sequences);
        let mut generator = Generator { ends: ends.clone(), ahead, ..Generator::new(&mut session, &tokenizer) };
        let (found, _) = generator.run(&jobs, &mut |_, _| {}).unwrap();
        for (one, whole) in found.iter().zip(&whole) {
            let end = whole.ids.iter().position(|id| ends.contains(id));
            assert_eq!(one.ids, whole.ids[..end.unwrap_or(whole.ids.len())]);
            assert_eq!(one.finish, if end.is_some() { Finish::End } else { Finish::Length });
        }
        if sequences == 1 {
            // What is left in the cache is the last text without its end: it can be gone on from.
            let last = jobs.last().unwrap();
            let mut history = last.ids.clone();
            history.extend(&found.last().unwrap().ids);
            let position = session.position();
            assert!(position == history.len() || position + 1 == history.len(), "{position} of {}", history.len());
            history.push(3);
            let job = Job { ids: history, cached: position, max_tokens: 4, ..last.clone() };
            let (on, _) =
                Generator::new(&mut session, &tokenizer).run(std::slice::from_ref(&job), &mut |_, _| {}).unwrap();
            assert_eq!(ids(&on), ids(&alone(&model, &[Job { cached: 0, ..job }])));
        }
    }
}

#[test]
fn stop_strings_end_a_text_and_are_not_shown() {
    let (model, tokenizer) = (small(2), tokenizer());
    let job = Job { max_tokens: 60, ..jobs(&mut Random::new(4), 1, kinds()[1]).remove(0) };
    let job = Job { ids: job.ids[..job.ids.len().min(30)].to_vec(), ..job };
    let whole = alone(&model, std::slice::from_ref(&job)).remove(0);
    let letters: Vec<char> = whole.text.chars().collect();
    let stop: String = letters[letters.len() / 2..].iter().take(3).collect();
    let mut session = session(&model, 1, 1);
    let mut generator = Generator { stops: vec![stop.clone()], ..Generator::new(&mut session, &tokenizer) };
    let mut shown = String::new();
    let (found, _) = generator.run(&[job], &mut |_, text| shown.push_str(text)).unwrap();
    assert_eq!(found[0].finish, Finish::Stop);
    assert_eq!(Some(shown.as_str()), whole.text.split(&stop).next());
    assert_eq!(found[0].text, shown);
    assert!(whole.ids.starts_with(&found[0].ids) && found[0].ids.len() < whole.ids.len());
}

fn speculated(model: &Model, jobs: &[Job], draft: usize) -> (Vec<Generated>, Took) {
    let (tokenizer, mut session) = (tokenizer(), session(model, 1, draft + 1));
    let mut generator = Generator { draft, ..Generator::new(&mut session, &tokenizer) };
    generator.run(jobs, &mut |_, _| {}).unwrap()
}

#[test]
fn drafts_give_the_ids_of_plain_greedy_choice() {
    let model = small(3);
    let mut jobs = jobs(&mut Random::new(1), 6, Sampling::GREEDY);
    for job in &mut jobs {
        // A text that repeats itself is what look-up is for.
        let part: Vec<u32> = job.ids.iter().copied().take(9).collect();
        job.ids = part.repeat(3);
        job.max_tokens = 60;
    }
    let expected = alone(&model, &jobs);
    for draft in [1, 3, 7] {
        let (found, took) = speculated(&model, &jobs, draft);
        assert_eq!(ids(&found), ids(&expected), "drafts of {draft}");
        assert!(took.accepted <= took.drafted && took.steps + took.accepted == took.decoded);
        assert!(took.accepted > 0, "nothing of {} drafted tokens was accepted", took.drafted);
    }
}

/// A prompt, and the prompt with what greedy choice puts after it.
type Continued = (Vec<u32>, Vec<u32>);

/// The model and continuations of a golden folder.
fn golden(name: &str) -> (Model, Vec<Continued>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    let (config, checkpoint) = (Config::load(&folder).unwrap(), Checkpoint::open(&folder).unwrap());
    let file = Checkpoint::open_file(&folder.join("golden.safetensors")).unwrap();
    let rows = |name: &str| -> Vec<Vec<u32>> {
        let shape = file.get(name).unwrap().shape.to_vec();
        let ids: Vec<u32> = file.i64(name, &shape).unwrap().into_iter().map(|id| id as u32).collect();
        ids.chunks(shape[1]).map(<[u32]>::to_vec).collect()
    };
    let model = Model::new(&config, Form::Run, 96);
    let quantization = config.quantization;
    model.load(&cpu::open(), &FromCheckpoint { checkpoint: &checkpoint, quantization }).unwrap();
    (model, rows("gen_prompt").into_iter().zip(rows("gen_ids")).collect())
}

#[test]
fn drafts_and_batches_give_the_golden_ids() {
    for name in ["bitnet_online", "bitnet_packed", "llama_bitlinear_packed", "llama3", "llama_tied_bias"] {
        let (model, rows) = golden(name);
        let job = |(prompt, all): &Continued| Job {
            ids: prompt.clone(),
            cached: 0,
            max_tokens: all.len() - prompt.len(),
            sampling: Sampling::GREEDY,
            seed: 0,
        };
        let jobs: Vec<Job> = rows.iter().map(job).collect();
        let expected: Vec<&[u32]> = rows.iter().map(|(prompt, all)| &all[prompt.len()..]).collect();
        assert_eq!(ids(&alone(&model, &jobs)), expected, "{name}, one at a time");
        let (tokenizer, mut session) = (tokenizer(), session(&model, 3, 3));
        let (found, _) = Generator::new(&mut session, &tokenizer).run(&jobs, &mut |_, _| {}).unwrap();
        assert_eq!(ids(&found), expected, "{name}, in a batch");
        for draft in [2, 5] {
            let (found, took) = speculated(&model, &jobs, draft);
            assert_eq!(ids(&found), expected, "{name}, drafts of {draft}");
            println!("{name}: drafts of {draft}: {:.2} tokens a step", took.decoded as f64 / took.steps.max(1) as f64);
        }
    }
}

/// The largest difference of a logit between steps of one row and of several, over its row's largest
/// magnitude. Everything below the head is equal bit for bit; the head's float product may add in another order.
#[test]
fn logits_of_a_step_of_several_rows_stay_within_the_bound() {
    const BOUND: f32 = 1e-5;
    let model = small(8);
    let mut random = Random::new(8);
    let tokens: Vec<u32> = (0..60).map(|_| (random.next_u64() % 256) as u32).collect();
    let vocab = model.config.vocab_size;
    let (mut one, mut many) = (session(&model, 1, 1), session(&model, 1, 16));
    let mut single = Vec::new();
    for token in &tokens {
        one.put(*token).unwrap();
        one.step().unwrap();
        single.extend(one.logits().unwrap());
    }
    let mut largest = 0f32;
    for rows in [2, 3, 4, 8, 11, 16] {
        many.reset();
        for (at, part) in tokens.chunks(rows).enumerate() {
            many.verify(0, part).unwrap();
            let found = many.logits().unwrap();
            for (found, expected) in found.chunks(vocab).zip(single.chunks(vocab).skip(at * rows)).take(part.len()) {
                let scale = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
                let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                largest = largest.max(worst / scale);
            }
        }
    }
    println!("largest relative difference of logits: {largest:e}");
    assert!(largest <= BOUND, "{largest:e} is above {BOUND:e}");
}

#[test]
fn what_a_session_has_no_room_for_is_refused() {
    let model = small(6);
    let layout =
        Layout { capacity: 96, sequences: 2, rows: 2, cache: CacheFormat::F32, ..Layout::single(0, CacheFormat::F32) };
    for bad in [
        Layout { sequences: 0, ..layout },
        Layout { rows: 0, ..layout },
        Layout { rows: 65, ..layout },
        Layout { capacity: 97, ..layout },
        Layout { sequences: usize::MAX, ..layout },
    ] {
        assert!(SessionPlan::with(&model, bad).is_err(), "{bad:?}");
    }
    let mut session = session(&model, 2, 2);
    let row = |sequence| BatchRow { sequence, live: true };
    assert!(session.step_batch(&[row(1), row(0)]).is_err(), "out of order");
    assert!(session.step_batch(&[row(0), row(2)]).is_err(), "no such sequence");
    assert!(session.step_batch(&[]).is_err());
    assert!(session.verify(0, &[1, 2, 3]).is_err(), "more rows than planned");
    assert!(session.rewind(0, 1).is_err(), "nothing to go back from");
    assert!(session.prefill_of(1, &[1; 97]).is_err());
    assert!(session.prefill_of(1, &[261]).is_err());
    session.prefill_of(1, &[1; 96]).unwrap();
    assert!(session.step_batch(&[row(0), row(1)]).is_err(), "the second is full");
    let tokenizer = tokenizer();
    let mut generator = Generator { draft: 4, ..Generator::new(&mut session, &tokenizer) };
    let job = Job { ids: vec![1], cached: 0, max_tokens: 3, sampling: Sampling::GREEDY, seed: 0 };
    assert!(generator.run(&[job], &mut |_, _| {}).is_err(), "drafts in a session of two sequences");
}

/// Recording and planning must not delay the first token: a model of 30 layers with every size of step.
/// No time is asserted; `--nocapture` shows it.
#[test]
fn all_programs_of_a_deep_model_are_planned() {
    let config = preset("bitnet-2b4t").unwrap().config(Family::Bitnet, None, None);
    let model = Model::new(&config, Form::Run, 4096);
    let plan = |rows| {
        let start = std::time::Instant::now();
        let layout = Layout {
            capacity: 4096,
            sequences: 1,
            rows,
            cache: CacheFormat::F32,
            ..Layout::single(0, CacheFormat::F32)
        };
        let plan = SessionPlan::with(&model, layout).unwrap();
        println!("steps of up to {rows} rows: recorded and planned in {:?}", start.elapsed());
        plan
    };
    let (one, many) = (plan(1), plan(16));
    assert_eq!((one.weights(), one.cache()), (many.weights(), many.cache()));
    assert!(one.total() < many.total() && many.total() - one.total() < 1 << 26, "{} {}", one.total(), many.total());
    // A step reads every weight once, of the tied embedding all, and the keys and values of what it sees.
    let row = 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim;
    assert_eq!(one.step_bytes(100.0) - one.step_bytes(0.0), 100.0 * row as f64);
    assert!(one.step_bytes(0.0) <= one.weights() as f64 && one.step_bytes(0.0) > 0.99 * one.weights() as f64);
}
