//! Whole programs on every device: training, decoding, packing, and what they must agree on.

use libtest_mimic::{Arguments, Failed, Trial};
use tritter_model::cache::CacheFormat;
use tritter_model::config::{Config, Family};
use tritter_model::presets::preset;
use tritter_model::save::{Floats, Layout, packed_config, write_folder};
use tritter_model::score::Scorer;
use tritter_model::seeded::FromSeed;
use tritter_model::session::{Draw, Session, SessionPlan};
use tritter_model::source::FromCheckpoint;
use tritter_model::tensors::Checkpoint;
use tritter_model::weights::{Form, Model};
use tritter_runtime::budget::overhead;
use tritter_runtime::random::Random;
use tritter_runtime::{DType, Device, Opened, Tensor};
use tritter_tests::{devices, fresh_seed};
use tritter_trainer::data::Batch;
use tritter_trainer::steps::{Hyper, Outcome, Precision, Shape, Steps, StepsPlan};

type Check = fn(&Device) -> Result<(), Failed>;

fn main() {
    let arguments = Arguments::from_args();
    let checks: [(&str, Check); 10] = [
        ("decoding step by step gives the logits of one pass", decode_equals_one_pass),
        ("fifty prompts build no pipeline after the first", fifty_prompts_build_nothing),
        ("a packed model gives the same logits", packing_keeps_logits),
        ("two training runs are equal bit for bit", training_repeats),
        ("recomputed layers change nothing", recomputing_changes_nothing),
        ("two micro-batches equal one of twice the size", accumulation_adds_up),
        ("a non-finite gradient changes nothing", non_finite_is_skipped),
        ("20 training steps agree with the CPU", training_agrees_with_the_cpu),
        ("a session keeps its budget, and outlives what would break it", a_session_keeps_its_budget),
        ("training keeps its budget, and is refused below it", training_keeps_its_budget),
    ];
    let mut trials = Vec::new();
    for candidate in devices() {
        for (name, check) in checks {
            let name = format!("{}::{name}", candidate.label);
            trials.push(match candidate.device.clone() {
                Ok(device) => Trial::test(name, move || check(&device)),
                Err(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
            });
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// A ternary model with every part of the `tritter` block, small and with ragged sizes.
fn small(family: Family) -> Config {
    let mut config = preset("test").map(|p| p.config(family, Some(201), Some(128))).unwrap_or_else(|| unreachable!());
    (config.hidden_size, config.intermediate_size, config.num_layers) = (72, 136, 2);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (6, 2, 12);
    config
}

fn loaded(device: &Device, config: &Config, form: Form, seed: u64) -> Result<Model, Failed> {
    let model = Model::new(config, form, config.max_positions);
    model.load(device, &FromSeed::new(config, seed))?;
    Ok(model)
}

fn ids(random: &mut Random, n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|_| random.below(vocab as u64) as u32).collect()
}

fn largest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Dense, so that no code can flip between the two orders of computing.
fn decode_equals_one_pass(device: &Device) -> Result<(), Failed> {
    let seed = fresh_seed();
    let mut random = Random::new(seed);
    let config = small(Family::Llama);
    let model = loaded(device, &config, Form::Run, seed)?;
    let tokens = ids(&mut random, 40, config.vocab_size);
    let whole = Scorer::new(device, &model, tokens.len(), false)?.run(&tokens, 1)?;
    let mut session = SessionPlan::new(&model, tokens.len(), CacheFormat::F32)?.open(device)?;
    let start = 1 + random.below(30) as usize;
    session.prefill(&tokens[..start])?;
    for at in start..=tokens.len() {
        let row = &whole[(at - 1) * config.vocab_size..at * config.vocab_size];
        let error = largest(&session.logits()?, row);
        if error > 2e-5 {
            return Err(format!("seed {seed}: after {at} tokens logits differ by {error}").into());
        }
        if at < tokens.len() {
            session.put(tokens[at])?;
            session.step()?;
        }
    }
    Ok(())
}

fn fifty_prompts_build_nothing(device: &Device) -> Result<(), Failed> {
    // A device of its own: the other tests count on the shared one.
    let device = &match device.caps().backend {
        "cpu" => tritter_runtime::cpu::open(),
        _ => match tritter_runtime::gpu::open(None, true) {
            Opened::Ready(device) => device,
            Opened::Absent { why } => return Err(why.into()),
        },
    };
    let seed = fresh_seed();
    let mut random = Random::new(seed);
    let config = small(Family::Bitnet);
    let model = loaded(device, &config, Form::Run, seed)?;
    let mut session = SessionPlan::new(&model, 128, CacheFormat::F16)?.open(device)?;
    session.set_draw(Draw { temperature: 0.8, top_k: 20, seed: 3, ..Draw::GREEDY })?;
    let mut talk = |session: &mut Session, n: usize| -> Result<u32, Failed> {
        session.reset();
        session.prefill(&ids(&mut random, n, config.vocab_size))?;
        session.step()?;
        Ok(session.token()?.wait()?)
    };
    talk(&mut session, 100)?;
    let (pipelines, memory) = (device.backend().pipelines(), device.backend().memory().buffers);
    for n in 1..=50 {
        let token = talk(&mut session, 2 * n)?;
        if token as usize >= config.vocab_size {
            return Err(format!("seed {seed}: token {token} is outside the vocabulary").into());
        }
    }
    let now = (device.backend().pipelines(), device.backend().memory().buffers);
    if now != (pipelines, memory) {
        return Err(format!("pipelines and bytes were {pipelines} and {memory}, now {now:?}").into());
    }
    Ok(())
}

/// A device of the same kind, of which no other test counts the memory.
fn another(device: &Device) -> Result<Device, Failed> {
    let same = |candidate: &tritter_tests::Candidate| {
        candidate.device.as_ref().is_ok_and(|d| d.caps().backend == device.caps().backend)
    };
    let found = devices().into_iter().find(same).and_then(|candidate| candidate.device.ok());
    found.ok_or_else(|| "the device was there before".into())
}

fn a_session_keeps_its_budget(shared: &Device) -> Result<(), Failed> {
    let seed = fresh_seed();
    let config = small(Family::Bitnet);
    let tokens = ids(&mut Random::new(seed), 30, config.vocab_size);
    let course = |session: &mut Session| -> Result<Vec<f32>, Failed> {
        session.reset();
        session.prefill(&tokens)?;
        session.step()?;
        Ok(session.logits()?)
    };
    let free = loaded(shared, &config, Form::Run, seed)?;
    let expected = course(&mut SessionPlan::new(&free, 64, CacheFormat::F16)?.open(shared)?)?;

    let model = Model::new(&config, Form::Run, config.max_positions);
    let plan = SessionPlan::new(&model, 64, CacheFormat::F16)?;
    let device = another(shared)?;
    let budget = plan.total() + overhead(device.caps());
    let device = device.with_budget(budget - 1);
    let refused = |outcome: Option<tritter_model::Error>| {
        let told = outcome.as_ref().is_some_and(|error| error.to_string().contains("but"));
        if told { Ok(()) } else { Err(Failed::from(format!("seed {seed}: {outcome:?}"))) }
    };
    model.load(&device, &FromSeed::new(&config, seed))?;
    refused(SessionPlan::new(&model, 64, CacheFormat::F16)?.open(&device).err())?;
    let device = device.with_budget(budget);
    let mut session = plan.open(&device)?;
    if course(&mut session)? != expected {
        return Err(format!("seed {seed}: a budget changes logits").into());
    }

    // Nothing more than a clock or the staging of a read: what asks for it is refused by name, the session goes on.
    let ledger = device.backend().ledger();
    ledger.set_limit(Some(ledger.used() + (64 << 10)));
    let beyond = Tensor::state("beyond", [1 << 20], DType::F32);
    match device.allocate(&beyond) {
        Err(tritter_runtime::Error::OverBudget { what, needed: 0x40_0000, used, budget, .. })
            if what == "`beyond`" && used <= budget => {}
        other => return Err(format!("{other:?}").into()),
    }
    refused(SessionPlan::new(&model, 64, CacheFormat::F16)?.open(&device).err())?;
    if course(&mut session)? != expected {
        return Err(format!("seed {seed}: a refusal changes logits").into());
    }
    ledger.set_limit(Some(budget));
    device.allocate(&beyond)?;
    match ledger.peak() {
        peak if peak <= budget => Ok(()),
        peak => Err(format!("{peak} bytes at the peak of a budget of {budget}").into()),
    }
}

fn training_keeps_its_budget(shared: &Device) -> Result<(), Failed> {
    let config = small(Family::Tritter);
    let model = Model::new(&config, Form::Train, config.max_positions);
    let shape = Shape { batch: 2, context: 16, z_loss: 0.0, recompute: false, precision: Precision::F32 };
    let device = another(shared)?;
    let plan = StepsPlan::new(&model, shape)?.on(&device)?;
    let planned = model.bytes() + plan.total();
    let budget = planned + overhead(device.caps());
    let device = device.with_budget(budget);
    model.load(&device, &FromSeed::new(&config, 1))?;
    let steps = plan.open(&device)?;
    let tokens = ids(&mut Random::new(1), 32, config.vocab_size);
    let batch = Batch {
        targets: tokens.clone(),
        tokens,
        positions: (0..32).map(|i| i % 16).collect(),
        span: (0..32).flat_map(|i| [i / 16 * 16, i]).collect(),
        valid: 32,
    };
    for t in 1..4 {
        steps.step(std::slice::from_ref(&batch), &hyper(t))?;
    }
    let memory = device.backend().memory();
    if memory.peak > budget || memory.buffers < planned / 2 {
        return Err(format!("{memory:?} of a budget of {budget}, {planned} planned").into());
    }
    drop(steps);
    let device = device.with_budget(planned);
    let again = StepsPlan::new(&model, shape)?.on(&device)?.open(&device);
    match again.err() {
        Some(error) if error.to_string().contains("training with batch 2") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn packing_keeps_logits(device: &Device) -> Result<(), Failed> {
    let seed = fresh_seed();
    let config = small(Family::Tritter);
    let model = loaded(device, &config, Form::Run, seed)?;
    let tokens = ids(&mut Random::new(seed), 16, config.vocab_size);
    let before = Scorer::new(device, &model, 16, false)?.run(&tokens, 2)?;
    let folder = tempfile::tempdir()?;
    let layout = Layout { floats: Floats::F32, shard: None };
    write_folder(folder.path(), &packed_config(&config), &FromSeed::new(&config, seed), layout)?;
    let packed = Config::load(folder.path())?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let again = Model::new(&packed, Form::Run, packed.max_positions);
    again.load(device, &FromCheckpoint { checkpoint: &checkpoint, quantization: packed.quantization })?;
    let after = Scorer::new(device, &again, 16, false)?.run(&tokens, 2)?;
    if before == after {
        Ok(())
    } else {
        Err(format!("seed {seed}: logits changed by {}", largest(&before, &after)).into())
    }
}

fn batch(random: &mut Random, batch: usize, context: usize, vocab: usize) -> Batch {
    let m = batch * context;
    Batch {
        tokens: ids(random, m, vocab),
        targets: ids(random, m, vocab),
        positions: (0..m).map(|i| (i % context) as u32).collect(),
        span: (0..m).flat_map(|i| [(i / context * context) as u32, i as u32]).collect(),
        valid: m,
    }
}

fn hyper(t: u64) -> Hyper {
    Hyper { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, t, max_norm: 1.0, decay_all: false }
}

struct Training {
    model: Model,
    steps: Steps,
}

fn training(device: &Device, config: &Config, rows: usize, recompute: bool) -> Result<Training, Failed> {
    let model = loaded(device, config, Form::Train, 5)?;
    let shape = Shape { batch: rows, context: 24, z_loss: 1e-4, recompute, precision: Precision::F32 };
    let steps = StepsPlan::new(&model, shape)?.open(device)?;
    Ok(Training { model, steps })
}

impl Training {
    fn run(&self, batches: &[Batch], count: u64) -> Result<Vec<Outcome>, Failed> {
        (1..=count).map(|t| Ok(self.steps.step(batches, &hyper(t))?)).collect()
    }

    fn weights(&self, device: &Device) -> Result<Vec<f32>, Failed> {
        let mut all = Vec::new();
        for tensor in self.model.parameters() {
            all.extend(device.read::<f32>(&tensor)?);
        }
        Ok(all)
    }
}

fn training_repeats(device: &Device) -> Result<(), Failed> {
    let config = small(Family::Tritter);
    let batches = [batch(&mut Random::new(fresh_seed()), 2, 24, config.vocab_size)];
    let mut results = Vec::new();
    for _ in 0..2 {
        let training = training(device, &config, 2, false)?;
        results.push((training.run(&batches, 4)?, training.weights(device)?));
    }
    if results[0] == results[1] { Ok(()) } else { Err("losses or weights differ between two equal runs".into()) }
}

fn recomputing_changes_nothing(device: &Device) -> Result<(), Failed> {
    let config = small(Family::Tritter);
    let batches = [batch(&mut Random::new(fresh_seed()), 2, 24, config.vocab_size)];
    let kept = training(device, &config, 2, false)?;
    let again = training(device, &config, 2, true)?;
    if kept.run(&batches, 3)? == again.run(&batches, 3)? && kept.weights(device)? == again.weights(device)? {
        Ok(())
    } else {
        Err("recomputed layers give other losses or weights".into())
    }
}

fn accumulation_adds_up(device: &Device) -> Result<(), Failed> {
    let config = small(Family::Llama);
    let mut random = Random::new(fresh_seed());
    let (a, b) = (batch(&mut random, 1, 24, config.vocab_size), batch(&mut random, 1, 24, config.vocab_size));
    let join = |f: fn(&Batch) -> &Vec<u32>, shift: u32| -> Vec<u32> {
        f(&a).iter().copied().chain(f(&b).iter().map(|v| v + shift)).collect()
    };
    let both = Batch {
        tokens: join(|b| &b.tokens, 0),
        targets: join(|b| &b.targets, 0),
        positions: join(|b| &b.positions, 0),
        span: join(|b| &b.span, 24),
        valid: 48,
    };
    let apart = training(device, &config, 1, false)?.run(&[a, b], 1)?[0];
    let joined = training(device, &config, 2, false)?.run(&[both], 1)?[0];
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
    if close(apart.loss, joined.loss) && close(apart.norm, joined.norm) {
        Ok(())
    } else {
        Err(format!("{apart:?} against {joined:?}").into())
    }
}

fn non_finite_is_skipped(device: &Device) -> Result<(), Failed> {
    let config = small(Family::Bitnet);
    let batches = [batch(&mut Random::new(1), 1, 24, config.vocab_size)];
    let training = training(device, &config, 1, false)?;
    training.run(&batches, 1)?;
    let before = training.weights(device)?;
    let poisoned = &training.steps.parameters()[3].gradient;
    device.write_at(poisoned, 0, &f32::INFINITY.to_le_bytes())?;
    let outcome = training.run(&batches, 1)?[0];
    if outcome.applied() || before != training.weights(device)? {
        return Err(format!("the update was applied: {outcome:?}").into());
    }
    let next = training.run(&batches, 1)?[0];
    if next.applied() { Ok(()) } else { Err("the next step was not clean".into()) }
}

/// Losses of 20 steps of a dense model, in which no code can flip, agree closely; of a ternary one, in
/// which a code near a tie may differ by one and moves all that follows, roughly.
fn training_agrees_with_the_cpu(device: &Device) -> Result<(), Failed> {
    for (family, first_bound, worst_bound) in [(Family::Llama, 1e-5, 1e-4), (Family::Tritter, 2e-3, 0.2)] {
        let seed = fresh_seed();
        let config = small(family);
        let batches = [batch(&mut Random::new(seed), 2, 24, config.vocab_size)];
        let cpu = tritter_runtime::cpu::open();
        let here = training(device, &config, 2, false)?.run(&batches, 20)?;
        let there = training(&cpu, &config, 2, false)?.run(&batches, 20)?;
        let fell = there[0].loss - there[19].loss;
        if fell < 0.5 {
            return Err(format!("{family:?}, seed {seed}: the loss fell by {fell} only: nothing was learnt").into());
        }
        let pairs = here.iter().zip(&there).map(|(a, b)| (a.loss - b.loss).abs());
        let worst = pairs.fold(0.0, f64::max);
        let first = (here[0].loss - there[0].loss).abs();
        if first > first_bound || worst > worst_bound {
            return Err(format!("{family:?}, seed {seed}: first {first:e}, worst {worst:e}").into());
        }
    }
    Ok(())
}
