//! The wgpu backend on the adapters of this machine, software ones included.
//!
//! Without any adapter the tests show as ignored, with the reason in their names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use libtest_mimic::{Arguments, Failed, Trial};
use std::time::Duration;
use tritter_runtime::check::{Placement, check_case, check_placed, check_streamed};
use tritter_runtime::device::{Caps, Support};
use tritter_runtime::gpu::{self, Options};
use tritter_runtime::op::{Row, Size};
use tritter_runtime::ops::fill::{fill, zeros};
use tritter_runtime::ops::rms_norm::{RmsNorm, rms_norm};
use tritter_runtime::ops::rms_norm_grad::RmsNormGrad;
use tritter_runtime::ops::rms_norm_weight_grad::RmsNormWeightGrad;
use tritter_runtime::{DType, Device, Error, Graph, Opened, Tensor};

type Test = fn() -> Result<(), Failed>;

const TESTS: &[(&str, Test)] = &[
    ("every_row_agrees_with_its_reference", every_row),
    ("every_row_agrees_with_uniform_parameters", every_row_uniform),
    ("slices_are_read_and_written_wherever_they_start", slices),
    ("an_operand_above_the_binding_limit_is_cut", sharding),
    ("an_op_that_cannot_be_cut_is_an_error_before_it_runs", unsupported),
    ("cutting_into_submits_changes_no_bit", cutting),
    ("a_read_returns_what_was_there_when_it_began", pipelined_reads),
    ("a_variant_can_be_forced", forced_variant),
    ("memory_is_counted_and_given_back", memory),
    ("a_buffer_of_another_device_is_refused", foreign_buffer),
    ("a_buffer_above_the_device_limit_is_refused", too_large),
    ("pipelines_are_built_once", pipelines),
    ("times_are_given_for_every_node", times),
    ("streamed_weights_give_the_bits_of_resident_ones", streamed),
];

const ALWAYS: &[(&str, Test)] =
    &[("devices_that_are_not_there_are_named", absent), ("device_names_are_understood", names)];

fn main() {
    let arguments = Arguments::from_args();
    let why = match gpu::open(None, true) {
        Opened::Ready(_) => None,
        Opened::Absent { why } => Some(why),
    };
    let trial = |&(name, test): &(&'static str, Test)| match &why {
        None => Trial::test(name, test),
        Some(why) => Trial::test(format!("{name} ({why})"), test).with_ignored_flag(true),
    };
    let mut trials: Vec<Trial> = TESTS.iter().map(trial).collect();
    trials.extend(ALWAYS.iter().map(|&(name, test)| Trial::test(name, test)));
    libtest_mimic::run(&arguments, trials).exit();
}

fn open(options: Options) -> Device {
    match gpu::open_with(Options { allow_software: true, no_pipeline_file: true, ..options }) {
        Opened::Ready(device) => device,
        Opened::Absent { why } => panic!("{why}"),
    }
}

fn device() -> Device {
    open(Options::default())
}

fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<(), Failed> {
    if condition { Ok(()) } else { Err(message().into()) }
}

fn check_rows(device: &Device) -> Result<(), Failed> {
    let cases = Row::all().iter().flat_map(|row| [Size::Small, Size::Ragged].into_iter().flat_map(row.cases));
    for case in cases.filter(|case| case.fits(device.caps())) {
        for placement in [Placement::Aligned, Placement::Sliced] {
            let finding = check_placed(device, &case, 7, placement)?;
            ensure(finding.passed(), || format!("{placement:?}: {finding:?}"))?;
        }
    }
    Ok(())
}

fn every_row() -> Result<(), Failed> {
    check_rows(&device())
}

fn every_row_uniform() -> Result<(), Failed> {
    check_rows(&open(Options { uniform_params: true, ..Options::default() }))
}

/// Values that differ everywhere, around zero.
fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect()
}

/// Norm, its gradients and slices of activations and states that start at any word.
struct Net {
    graph: Graph,
    x: Tensor,
    w: Tensor,
    dw: Tensor,
    out: Tensor,
}

const ROWS: usize = 23;
const COLS: usize = 67;

impl Net {
    fn new() -> Net {
        let x = Tensor::input("x", [ROWS, COLS], DType::F32);
        let w = Tensor::weight("w", [COLS], DType::F32);
        let dw = Tensor::state("dw", [5 * COLS], DType::F32);
        let out = Tensor::state("out", [ROWS, COLS], DType::F32);
        let mut g = Graph::new("net");
        let (vx, vw, vdw, vout) = (g.bind(&x), g.bind(&w), g.bind(&dw), g.bind(&out));
        let all = rms_norm(&mut g, vx, vw, 1e-5).unwrap();
        let part = g.rows(all, 3, 7).unwrap();
        let again = rms_norm(&mut g, part, vw, 1e-3).unwrap();
        fill(&mut g, vout, 0.5).unwrap();
        let r = zeros(&mut g, [7usize]).unwrap();
        let target = g.rows(vout, 5, 7).unwrap();
        g.record(RmsNorm { m: 7, k: COLS as u32, eps: 1e-5 }, &[again, vw, target, r]).unwrap();
        let r_part = g.elements(r, 1, 5).unwrap();
        let (x_part, dy_part) = (g.rows(again, 1, 5).unwrap(), g.rows(all, 11, 5).unwrap());
        let gradient = RmsNormGrad { m: 5, k: COLS as u32 };
        let dx = g.apply(gradient, &[x_part, vw, r_part, dy_part]).unwrap();
        let dw_part = g.elements(vdw, 2 * COLS, COLS).unwrap();
        let gradient = RmsNormWeightGrad { m: 5, k: COLS as u32 };
        g.record(gradient, &[x_part, r_part, dx, dw_part]).unwrap();
        Net { graph: g, x, w, dw, out }
    }

    /// Runs three times, because `dw` accumulates and submits are cut anew after being watched, and
    /// returns `out` and `dw`.
    fn run(self, device: &Device) -> (Vec<f32>, Vec<f32>) {
        let program = device.prepare(&self.graph).unwrap();
        device.write(&self.x, &ramp(ROWS * COLS)).unwrap();
        device.write(&self.w, &ramp(COLS)).unwrap();
        device.write(&self.dw, &ramp(5 * COLS)).unwrap();
        for _ in 0..3 {
            program.submit().unwrap();
            device.backend().wait().unwrap();
        }
        (device.read(&self.out).unwrap(), device.read(&self.dw).unwrap())
    }
}

fn close(got: &[f32], wanted: &[f32], what: &str) -> Result<(), Failed> {
    let largest = wanted.iter().fold(0f32, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let same_length = got.len() == wanted.len();
    ensure(same_length && largest > 0.1 && worst <= 1e-5 * largest, || format!("{what}: off by {worst} of {largest}"))
}

fn slices() -> Result<(), Failed> {
    let wanted = Net::new().run(&tritter_runtime::cpu::open());
    for uniform_params in [false, true] {
        let got = Net::new().run(&open(Options { uniform_params, ..Options::default() }));
        close(&got.0, &wanted.0, "out")?;
        close(&got.1, &wanted.1, "dw")?;
    }
    Ok(())
}

fn sharding() -> Result<(), Failed> {
    // Rows of 33 words start where no device with an alignment above 4 can bind.
    let device = open(Options { max_binding: Some(1000), ..Options::default() });
    let tensor = Tensor::state("y", [50, 33], DType::F32);
    let mut g = Graph::new("shards");
    let y = g.bind(&tensor);
    let part = g.rows(y, 1, 48)?;
    fill(&mut g, part, 1.5)?;
    let program = device.prepare(&g)?;
    device.write(&tensor, &vec![f32::NAN; 50 * 33])?;
    program.submit()?;
    let got: Vec<f32> = device.read(&tensor)?;
    let inside = got[33..49 * 33].iter().all(|&v| v == 1.5);
    let outside = got[..33].iter().chain(&got[49 * 33..]).all(|v| v.is_nan());
    ensure(inside && outside, || format!("{got:?}"))?;
    ensure(program.dispatches() == 48usize.div_ceil(7), || format!("{} dispatches", program.dispatches()))
}

fn unsupported() -> Result<(), Failed> {
    let device = open(Options { max_binding: Some(1000), ..Options::default() });
    let error = device.prepare(&Net::new().graph).err();
    let Some(Error::Unsupported { op, operands, reason, .. }) = error else {
        return Err(format!("{error:?}").into());
    };
    ensure(op == "rms_norm" && operands.contains("x:f32[23, 67]") && reason.contains("1000 bytes"), || {
        format!("{op} / {operands} / {reason}")
    })?;
    let op = RmsNorm { m: 23, k: 67, eps: 0.0 }.into();
    let support = device.backend().supports(&op, &op.specs());
    ensure(matches!(&support, Support::Missing(why) if why.contains("1000 bytes")), || format!("{support:?}"))
}

fn cutting() -> Result<(), Failed> {
    let wanted = Net::new().run(&device());
    for budget in [Duration::from_nanos(1), Duration::from_micros(5), Duration::from_millis(1)] {
        let got = Net::new().run(&open(Options { submit_budget: Some(budget), ..Options::default() }));
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let same = bits(&got.0) == bits(&wanted.0) && bits(&got.1) == bits(&wanted.1);
        ensure(same, || format!("with a budget of {budget:?} the results differ"))?;
    }
    Ok(())
}

fn pipelined_reads() -> Result<(), Failed> {
    let device = device();
    let dw = Tensor::state("dw", [64], DType::F32);
    let one = Tensor::input("one", [1, 64], DType::F32);
    let r = Tensor::input("r", [1], DType::F32);
    let mut g = Graph::new("count");
    let (vone, vr, vdw) = (g.bind(&one), g.bind(&r), g.bind(&dw));
    g.record(RmsNormWeightGrad { m: 1, k: 64 }, &[vone, vr, vone, vdw])?;
    let program = device.prepare(&g)?;
    device.write(&one, &[1f32; 64])?;
    let mut reads = Vec::new();
    for step in 1..=20 {
        device.write(&r, &[step as f32])?;
        program.submit()?;
        reads.push((step * (step + 1) / 2, device.fetch(&dw)?));
    }
    drop(reads.remove(3));
    for (wanted, read) in reads.into_iter().rev() {
        let bytes = read.wait()?;
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        ensure(got == vec![wanted as f32; 64], || format!("{wanted}: {got:?}"))?;
    }
    Ok(())
}

fn forced_variant() -> Result<(), Failed> {
    for row in Row::all() {
        for (i, &variant) in row.wgsl.iter().enumerate() {
            let device = open(Options { variant: Some(variant.into()), ..Options::default() });
            for case in [Size::Small, Size::Ragged].into_iter().flat_map(row.cases) {
                match device.backend().supports(&case.op, &case.specs()) {
                    // The first variant is what every other test runs.
                    Support::Variant(name) if name == variant && i > 0 => {
                        let finding = check_case(&device, &case, 7)?;
                        ensure(finding.passed() && finding.variant == variant, || format!("{finding:?}"))?;
                    }
                    Support::Variant(name) => {
                        ensure(name == variant, || format!("{}: {name}, not {variant}", row.name))?
                    }
                    Support::Missing(why) => ensure(why.contains(variant), || format!("{}: {why}", row.name))?,
                }
            }
        }
    }
    Ok(())
}

fn memory() -> Result<(), Failed> {
    let device = device();
    let before = device.backend().memory().buffers;
    let tensor = Tensor::state("t", [1000, 1000], DType::F32);
    device.allocate(&tensor)?;
    let during = device.backend().memory();
    ensure(during.buffers == before + 4_000_000, || format!("{during:?}"))?;
    ensure(during.reserved.is_none_or(|r| r >= during.buffers), || format!("{during:?}"))?;
    let fresh: Vec<f32> = device.read(&tensor)?;
    ensure(fresh.iter().all(|&v| v == 0.0), || "fresh memory is not zero".into())?;
    drop(tensor);
    let after = device.backend().memory().buffers;
    ensure(after == before, || format!("{before} bytes before, {after} after"))
}

fn foreign_buffer() -> Result<(), Failed> {
    let (one, other) = (device(), device());
    let tensor = Tensor::state("t", [4], DType::F32);
    one.allocate(&tensor)?;
    for outcome in [other.write(&tensor, &[0f32; 4]).err(), other.read::<f32>(&tensor).err()] {
        let told = matches!(&outcome, Some(Error::Device { message, .. }) if message.contains("another device"));
        ensure(told, || format!("{outcome:?}"))?;
    }
    Ok(())
}

fn too_large() -> Result<(), Failed> {
    let tensor = Tensor::state("huge", [1 << 21, 1 << 21], DType::F32);
    let outcome = device().allocate(&tensor);
    ensure(matches!(outcome, Err(Error::DoesNotFit { .. })), || format!("{outcome:?}"))
}

fn streamed() -> Result<(), Failed> {
    let device = device();
    let before = device.backend().memory().buffers;
    for seed in 1..4 {
        let bytes = check_streamed(&device, seed)?;
        ensure(bytes > Some(0), || format!("{bytes:?}"))?;
    }
    device.backend().wait()?;
    let after = device.backend().memory().buffers;
    ensure(before == after, || format!("{before} bytes before, {after} after"))
}

fn pipelines() -> Result<(), Failed> {
    let device = device();
    Net::new().run(&device);
    let first = device.backend().pipelines();
    Net::new().run(&device);
    let second = device.backend().pipelines();
    ensure(first == 4 && second == first, || format!("{first}, then {second}"))
}

fn times() -> Result<(), Failed> {
    let device = device();
    let net = Net::new();
    let nodes = net.graph.nodes().len();
    let timings = device.prepare(&net.graph)?.time(3)?;
    ensure(timings.total.len() == 3 && timings.total.iter().all(|t| !t.is_zero()), || format!("{timings:?}"))?;
    let wanted = if device.caps().timestamps { nodes } else { 0 };
    ensure(timings.nodes.len() == wanted, || format!("{timings:?}"))?;
    let sum: Duration = timings.nodes.iter().sum();
    ensure(wanted == 0 || (!sum.is_zero() && sum < Duration::from_secs(10)), || format!("{timings:?}"))
}

fn absent() -> Result<(), Failed> {
    for name in ["wgpu:9999", "cuda", "cuda:0"] {
        let outcome = Device::open(name).err();
        let told = matches!(&outcome, Some(Error::Absent { name: n, why }) if n == name && !why.is_empty());
        ensure(told, || format!("{name}: {outcome:?}"))?;
    }
    for name in ["wgpu:", "wgpu:x", "cpu:0", "auto:1", "cuda:x", "gpu", ""] {
        let outcome = Device::open(name).err();
        ensure(matches!(outcome, Some(Error::UnknownDevice { .. })), || format!("{name}: {outcome:?}"))?;
    }
    Ok(())
}

fn names() -> Result<(), Failed> {
    ensure(Device::open("cpu")?.caps().backend == "cpu", || "cpu is not the CPU".into())?;
    let choice = Device::choose("auto")?;
    ensure(!choice.device.caps().software && !choice.reason.is_empty(), || format!("{choice:?}"))?;
    let list: Vec<Caps> = gpu::list();
    for (i, caps) in list.iter().enumerate() {
        ensure(caps.id == format!("wgpu:{i}") && caps.max_binding >= 128 << 20, || format!("{caps:?}"))?;
    }
    let software: Vec<bool> = list.iter().map(|c| c.software).collect();
    ensure(software.is_sorted(), || format!("software adapters are not last: {list:?}"))?;
    if let Some(first) = list.first() {
        let choice = Device::choose("wgpu")?;
        ensure(choice.device.caps().id == "wgpu:0", || format!("{choice:?}"))?;
        ensure(choice.reason.contains("software") == first.software, || choice.reason.clone())?;
    }
    Ok(())
}
