//! What a program of many small dispatches costs the host on a wgpu device.
//!
//! Prints microseconds a dispatch of encoding and submitting without waiting, with
//! activations in slabs and in a buffer each, by immediates and by uniform, and what
//! reading four bytes back takes.
//!
//! `cargo run -p tritter-runtime --example encode_cost [wgpu index]`

use std::time::{Duration, Instant};
use tritter_runtime::gpu::{self, Options};
use tritter_runtime::ops::rms_norm::{RmsNorm, rms_norm};
use tritter_runtime::{DType, Device, Error, Graph, Opened, Result, Tensor, Value};

const DISPATCHES: usize = 200;
const RUNS: usize = 200;
const COLS: usize = 64;

fn main() -> Result<()> {
    let index = std::env::args().nth(1).and_then(|n| n.parse().ok());
    for uniform_params in [false, true] {
        let device = open(Options { index, allow_software: true, uniform_params, ..Options::default() })?;
        let by = if uniform_params { "uniform" } else { "immediates" };
        println!("{}, parameters by {by}", device.label());
        for slabs in [true, false] {
            let place = if slabs { "slabs" } else { "a buffer each" };
            let graph = chain(slabs)?;
            let (least, median) = submit_cost(&device, &graph)?;
            let each = |t: Duration| t.as_secs_f64() * 1e6 / DISPATCHES as f64;
            println!("  activations in {place}: {:.2} µs a dispatch at best, {:.2} median", each(least), each(median));
        }
        let (least, median) = read_cost(&device)?;
        println!("  reading 4 bytes back: {least:.1?} at best, {median:.1?} median");
    }
    Ok(())
}

fn open(options: Options) -> Result<Device> {
    match gpu::open_with(options) {
        Opened::Ready(device) => Ok(device),
        Opened::Absent { why } => Err(Error::Absent { name: "wgpu".into(), why }),
    }
}

/// Norm after norm, each reading what the last one wrote.
fn chain(slabs: bool) -> Result<Graph> {
    let mut g = Graph::new("chain");
    let weight = g.bind(&Tensor::weight("w", [COLS], DType::F32));
    let mut x = g.bind(&Tensor::input("x", [1, COLS], DType::F32));
    for i in 0..DISPATCHES {
        x = if slabs { rms_norm(&mut g, x, weight, 1e-5)? } else { own_buffers(&mut g, i, x, weight)? };
    }
    Ok(g)
}

fn own_buffers(g: &mut Graph, i: usize, x: Value, weight: Value) -> Result<Value> {
    let y = g.bind(&Tensor::state(format!("y{i}"), [1, COLS], DType::F32));
    let r = g.bind(&Tensor::state(format!("r{i}"), [1], DType::F32));
    g.record(RmsNorm { m: 1, k: COLS as u32, eps: 1e-5 }, &[x, weight, y, r])?;
    Ok(y)
}

fn submit_cost(device: &Device, graph: &Graph) -> Result<(Duration, Duration)> {
    let program = device.prepare(graph)?;
    for _ in 0..5 {
        program.submit()?;
        device.backend().wait()?;
    }
    measure(|| {
        let start = Instant::now();
        program.submit()?;
        let elapsed = start.elapsed();
        device.backend().wait()?;
        Ok(elapsed)
    })
}

fn read_cost(device: &Device) -> Result<(Duration, Duration)> {
    let tensor = Tensor::state("four bytes", [1], DType::F32);
    device.allocate(&tensor)?;
    measure(|| {
        let start = Instant::now();
        device.read::<f32>(&tensor)?;
        Ok(start.elapsed())
    })
}

/// Least and median over runs.
fn measure(mut run: impl FnMut() -> Result<Duration>) -> Result<(Duration, Duration)> {
    let mut times = (0..RUNS).map(|_| run()).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok((times[0], times[RUNS / 2]))
}
