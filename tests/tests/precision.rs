//! Mixed precision: bf16 activations over f32 master weights.

#![allow(clippy::unwrap_used, clippy::panic)]

use tempfile::tempdir;
use tritter_model::config::{Config, Family};
use tritter_model::demo_text::stories;
use tritter_model::presets::preset;
use tritter_model::seeded::FromSeed;
use tritter_model::weights::{Form, Model};
use tritter_runtime::graph::Origin;
use tritter_runtime::op::{Access, Op};
use tritter_runtime::reference::{Interpreter, decode};
use tritter_runtime::{DType, Device, Graph, Role, Tensor, cpu};
use tritter_tests::devices;
use tritter_tests::program::{made, succeeds, text};
use tritter_trainer::data::Batch;
use tritter_trainer::steps::{Hyper, Precision, Shape, Steps, StepsPlan};

/// The model of `tritter demo` with bytes for tokens.
fn demo_size(family: Family) -> Config {
    preset("test").unwrap().config(family, Some(256), Some(128))
}

/// The same block, smaller.
fn small(family: Family) -> Config {
    let mut config = demo_size(family);
    (config.hidden_size, config.intermediate_size, config.num_layers) = (72, 136, 2);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (6, 2, 12);
    config
}

fn shape(batch: usize, context: usize, precision: Precision) -> Shape {
    Shape { batch, context, z_loss: 1e-4, recompute: false, precision }
}

fn plan(config: &Config, shape: Shape) -> (Model, StepsPlan) {
    let model = Model::new(config, Form::Train, shape.context);
    let plan = StepsPlan::new(&model, shape).unwrap();
    (model, plan)
}

fn open(device: &Device, config: &Config, shape: Shape) -> (Model, Steps) {
    open_seeded(device, config, shape, 5)
}

fn open_seeded(device: &Device, config: &Config, shape: Shape, seed: u64) -> (Model, Steps) {
    let (model, plan) = plan(config, shape);
    model.load(device, &FromSeed::new(config, seed)).unwrap();
    (model, plan.open(device).unwrap())
}

/// Batch `i` of the demo's stories, as bytes.
fn batch(i: usize, rows: usize, context: usize) -> Batch {
    let text: Vec<u32> = stories().flat_map(|story| story.bytes().map(u32::from).collect::<Vec<_>>()).collect();
    let m = rows * context;
    let first = i * m % (text.len() - m - 1);
    Batch {
        tokens: text[first..first + m].to_vec(),
        targets: text[first + 1..first + m + 1].to_vec(),
        positions: (0..m).map(|i| (i % context) as u32).collect(),
        span: (0..m).flat_map(|i| [(i / context * context) as u32, i as u32]).collect(),
        valid: m,
    }
}

fn hyper(t: u64) -> Hyper {
    let lr = 2e-3 * (t as f32 / 10.0).min(1.0);
    Hyper { lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, t, max_norm: 1.0, decay_all: false }
}

/// Initial weights that the comparison is averaged over: one pair of runs differs by up to about 2 % by chance.
const SEEDS: std::ops::Range<u64> = 5..9;

/// Mean loss of the last twenty of 100 steps, over a few initial weights.
fn trained(config: &Config, precision: Precision) -> f64 {
    let loss = |seed: u64| {
        let (_model, steps) = open_seeded(&cpu::open(), config, shape(4, 64, precision), seed);
        let losses = (1..=100).map(|t| steps.step(&[batch(t as usize, 4, 64)], &hyper(t)).unwrap().loss);
        losses.skip(80).sum::<f64>() / 20.0
    };
    SEEDS.map(loss).sum::<f64>() / SEEDS.count() as f64
}

/// The two runs part after a few steps, as any two do that round differently; where they end must not.
#[test]
fn bf16_reaches_the_loss_of_f32_within_two_percent() {
    for family in [Family::Bitnet, Family::Llama] {
        let config = demo_size(family);
        let (f32, bf16) = (trained(&config, Precision::F32), trained(&config, Precision::Bf16));
        println!("{family:?}: f32 {f32:.4}, bf16 {bf16:.4}");
        assert!(f32 < 3.3, "{family:?}: f32 learnt nothing: {f32}");
        assert!((bf16 / f32 - 1.0).abs() < 0.02, "{family:?}: f32 {f32}, bf16 {bf16}");
    }
}

/// The gradients of a graph in f64 by the rows' references, which round nothing but the casts of weights.
fn reference_gradients(device: &Device, graph: &Graph, wanted: &[Tensor]) -> Vec<Vec<f64>> {
    let mut interpreter = Interpreter::default();
    let bound = |v| match graph.origin(v) {
        Origin::Bound(tensor) => Some((v, tensor.clone())),
        _ => None,
    };
    let bound: Vec<_> = graph.values().filter_map(bound).collect();
    for (value, tensor) in &bound {
        let words: Vec<u32> = device.read(tensor).unwrap();
        let values = decode(tensor.spec(), &words);
        // Gradients and the loss of this batch are states that start at zero.
        let zero = tensor.role() == Role::State;
        interpreter.set(*value, if zero { vec![0.0; values.len()] } else { values });
    }
    interpreter.run(graph, false).unwrap();
    let value = |t: &Tensor| bound.iter().find(|(_, b)| b.id() == t.id()).unwrap().0;
    wanted.iter().map(|t| interpreter.get(value(t)).unwrap().to_vec()).collect()
}

/// `‖a − b‖ / ‖b‖`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let square = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>();
    (square(&mut a.iter().zip(b).map(|(a, b)| a - b)) / square(&mut b.iter().copied()).max(1e-60)).sqrt()
}

/// Dense, so that no code flips. A bf16 is within 2^-8 of what it stands for, and about 2^-9 on average; a
/// gradient has passed some thirty of them, whose errors add up like a random walk: about
/// 30^½ · 2^-9 = 1 %, and 3 % at most.
#[test]
fn gradients_in_bf16_are_within_three_percent_of_f64() {
    let config = small(Family::Llama);
    for candidate in devices() {
        let Ok(device) = &candidate.device else { continue };
        for (precision, bound) in [(Precision::F32, 2e-5), (Precision::Bf16, 3e-2)] {
            let shape = shape(2, 16, precision);
            let (model, plan) = plan(&config, shape);
            model.load(device, &FromSeed::new(&config, 5)).unwrap();
            let graph = plan.micro_step().clone();
            let steps = plan.open(device).unwrap();
            steps.gradients(&batch(0, 2, 16)).unwrap();
            let wanted: Vec<Tensor> = steps.parameters().iter().map(|p| p.gradient.clone()).collect();
            let expected = reference_gradients(device, &graph, &wanted);
            let mut worst = 0f64;
            for (tensor, expected) in wanted.iter().zip(&expected) {
                let found: Vec<f32> = device.read(tensor).unwrap();
                let found: Vec<f64> = found.into_iter().map(f64::from).collect();
                let error = distance(&found, expected);
                worst = worst.max(error);
                assert!(error < bound, "{} {precision:?}: `{}` is off by {error:e}", candidate.label, tensor.name());
            }
            println!("{} {precision:?}: worst {worst:e}", candidate.label);
        }
    }
}

/// Where sums of different order meet a tie, one activation of thousands is rounded the other way, by 2^-8
/// of itself.
#[test]
fn devices_agree_on_the_first_loss_in_bf16() {
    for family in [Family::Llama, Family::Tritter] {
        let config = small(family);
        let first = |device: &Device| {
            let (_model, steps) = open(device, &config, shape(2, 24, Precision::Bf16));
            steps.step(&[batch(3, 2, 24)], &hyper(1)).unwrap().loss
        };
        let expected = first(&cpu::open());
        for candidate in devices() {
            let Ok(device) = &candidate.device else { continue };
            let loss = first(device);
            let error = (loss / expected - 1.0).abs();
            println!("{} {family:?}: {loss} against {expected}", candidate.label);
            assert!(error < 1e-4, "{} {family:?}: {loss}, the CPU has {expected}", candidate.label);
        }
    }
}

#[test]
fn two_runs_in_bf16_are_equal_bit_for_bit_with_and_without_recomputing() {
    let config = small(Family::Tritter);
    let device = cpu::open();
    let run = |recompute| {
        let shape = Shape { recompute, ..shape(2, 24, Precision::Bf16) };
        let (model, steps) = open(&device, &config, shape);
        let outcomes: Vec<_> = (1..=3).map(|t| steps.step(&[batch(t as usize, 2, 24)], &hyper(t)).unwrap()).collect();
        let weights = model.parameters().iter().map(|t| device.read::<u32>(t).unwrap()).collect::<Vec<_>>();
        (outcomes, weights)
    };
    let first = run(false);
    assert!(first == run(false), "two equal runs differ");
    assert!(first == run(true), "recomputing changes the results");
}

/// On a device with native kernels, whose graph is the recorded one.
#[test]
fn activations_in_bf16_take_about_half() {
    for family in [Family::Bitnet, Family::Llama, Family::Tritter] {
        let config = demo_size(family);
        let arena = |precision| plan(&config, shape(4, 128, precision)).1.arena() as f64;
        let (f32, bf16) = (arena(Precision::F32), arena(Precision::Bf16));
        println!("{family:?}: {bf16} of {f32} bytes, {:.2}", bf16 / f32);
        assert!(bf16 < 0.75 * f32, "{family:?}: {bf16} of {f32} bytes");
        let (_, widened) = plan(&config, shape(4, 128, Precision::Bf16));
        let widened = widened.on(&cpu::open()).unwrap().arena() as f64;
        println!("{family:?}: {widened} through f32, {:.2}", widened / f32);
        assert!(widened > bf16, "copies in f32 take room");
    }
}

/// Activations and their gradients are bf16; what belongs to a weight, a row's scale or the loss is f32.
#[test]
fn what_a_token_has_is_bf16_and_what_a_weight_has_is_f32() {
    let config = small(Family::Tritter);
    let (_, plan) = plan(&config, shape(2, 24, Precision::Bf16));
    let graph = plan.micro_step();
    for node in graph.nodes() {
        let operands = node.op.row().signature.operands.iter().zip(&node.operands);
        for (operand, &value) in operands.filter(|(o, _)| o.access != Access::In) {
            let spec = graph.spec(value);
            let token = spec.shape[0] == 48 && spec.elements() > 48 * 12;
            let at = format!("{} `{}` {spec}", node.op.row().name, operand.name);
            assert!(!token || spec.dtype != DType::F32, "{at} should be bf16");
            if let Origin::Bound(tensor) = graph.origin(graph.root(value).0) {
                assert_eq!(tensor.spec().dtype, DType::F32, "{at}");
            }
        }
    }
    let products = graph.nodes().iter().filter(|n| matches!(n.op, Op::MatmulTn(_)));
    let sums: Vec<_> = products.map(|n| graph.spec(n.operands[2]).dtype).collect();
    assert!(!sums.is_empty() && sums.iter().all(|&d| d == DType::F32));
}

#[test]
fn a_resumed_run_in_bf16_equals_one_that_was_not_stopped() {
    let folder = tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let (data, tokenizer) = (text(), made().tokenizer.clone());
    let train = |out: &std::path::Path, more: &[&str]| {
        let mut arguments = vec!["train", "--data", data.to_str().unwrap(), "--tokenizer", tokenizer.to_str().unwrap()];
        arguments.extend(["--preset", "test", "--batch", "1", "--context", "32", "--schedule", "constant"]);
        arguments.extend(["--warmup", "1", "--precision", "bf16", "--out", out.to_str().unwrap()]);
        arguments.extend(more);
        succeeds(&arguments);
    };
    train(&whole, &["--steps", "5"]);
    train(&parts, &["--steps", "2"]);
    train(&parts, &["--steps", "5", "--resume"]);
    for file in ["model.safetensors", "state-5.safetensors"] {
        let [a, b] = [&whole, &parts].map(|run| std::fs::read(run.join(file)).unwrap());
        assert!(a == b, "{file} differs");
    }
}
