//! Timing rows, and the peaks of a device that their times are held against.
//!
//! A peak is measured, not read from a data sheet: *copy* by the `copy` row over buffers
//! larger than any cache, *arithmetic* by the dense `matmul_nt` row at a square size, in f32 and,
//! where the device has kernels for it, in bf16, which ops on 16-bit floats and codes are held against. The
//! share of a row is the larger of its two shares (a roofline: Williams, Waterman and
//! Patterson 2009) and is not clamped: more than 100 % says that a cache was measured.

use crate::check::values;
use crate::device::{Device, Program, Runs};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::op::{Access, Case, Cost};
use crate::reference::encode;
use crate::tensor::Tensor;
use std::cmp::Ordering;
use std::time::{Duration, Instant};

/// Peaks of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peaks {
    /// Bytes read and written per second by a large copy.
    pub copy: f64,
    /// f32 operations per second of a dense matrix product.
    pub arithmetic: f64,
    /// The same in bf16, or in f32 where there are no kernels for bf16.
    pub narrow: f64,
}

/// One measured case.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Row.
    pub row: &'static str,
    /// Label of the case.
    pub case: String,
    /// Kernel variant.
    pub variant: String,
    /// Median time of one run.
    pub time: Duration,
    /// What the run must move and compute.
    pub cost: Cost,
    /// It reads 16-bit floats or codes, which matrix units multiply faster than f32.
    pub narrow: bool,
}

impl Measured {
    /// Bytes per second.
    pub fn bandwidth(&self) -> f64 {
        (self.cost.read + self.cost.written) as f64 / self.time.as_secs_f64().max(1e-12)
    }

    /// Operations per second.
    pub fn arithmetic(&self) -> f64 {
        self.cost.ops as f64 / self.time.as_secs_f64().max(1e-12)
    }

    /// The larger of the two shares of a device's peaks.
    pub fn share(&self, peaks: &Peaks) -> f64 {
        let arithmetic = if self.narrow { peaks.narrow } else { peaks.arithmetic };
        (self.bandwidth() / peaks.copy).max(self.arithmetic() / arithmetic)
    }
}

/// Distinct sets of operands that a timing rotates over at most, so that caches do not hold them.
const SETS: u64 = 8;
/// Bytes that the sets should exceed together: twice the largest last-level cache in common use.
const SPREAD: u64 = 256 << 20;

/// A case compiled for timing: the op once on each of several sets of operands.
pub struct Prepared {
    device: Device,
    program: Box<dyn Program>,
    sets: u64,
}

impl Prepared {
    /// Allocates, fills and compiles.
    pub fn new(device: &Device, case: &Case) -> Result<Prepared> {
        let specs = case.specs();
        let bytes: u64 = specs.iter().map(|s| s.bytes()).sum();
        let sets = (SPREAD / bytes.max(1) + 1).clamp(1, SETS);
        let inputs = values(case, 1);
        let mut graph = Graph::new(format!("bench {}", case.op.row().name));
        for _ in 0..sets {
            let mut bound: Vec<Value> = Vec::new();
            let operands = case.op.row().signature.operands.iter().zip(&specs).zip(&inputs);
            for ((info, spec), input) in operands {
                let tensor = Tensor::state(info.name, spec.shape.clone(), spec.dtype);
                device.allocate(&tensor)?;
                if info.access != Access::Out {
                    device.write(&tensor, &encode(spec, input))?;
                }
                bound.push(graph.bind(&tensor));
            }
            graph.record(case.op, &bound)?;
        }
        Ok(Prepared { device: device.clone(), program: device.prepare(&graph)?, sets })
    }

    /// Ops in one run.
    pub fn sets(&self) -> u64 {
        self.sets
    }

    /// Time of one op when runs follow each other without a pause, as the device's queue allows: the
    /// median of five series of about `seconds` each.
    pub fn paced(&self, seconds: f64) -> Result<Duration> {
        let series = |times: u32| -> Result<Duration> {
            let start = Instant::now();
            for _ in 0..times {
                self.program.submit()?;
            }
            self.device.backend().wait()?;
            Ok(start.elapsed() / times / self.sets as u32)
        };
        self.warm()?;
        let once = series(1)?.as_secs_f64() * self.sets as f64;
        let times = (seconds / once.max(1e-6)).clamp(3.0, 10_000.0) as u32;
        let all = (0..5).map(|_| series(times)).collect::<Result<Vec<_>>>()?;
        Ok(median(all, Duration::cmp))
    }

    /// Runs for a fifth of a second: a card that was idle takes so long to raise its clocks.
    fn warm(&self) -> Result<()> {
        let start = Instant::now();
        while self.device.caps().discrete && start.elapsed() < Duration::from_millis(200) {
            self.run()?;
        }
        Ok(())
    }

    /// Runs once and waits.
    pub fn run(&self) -> Result<()> {
        self.program.submit()?;
        self.device.backend().wait()
    }
}

/// Has the device kernels of its own for a case? One that goes through f32 measures the casts as well.
pub fn native(device: &Device, case: &Case) -> bool {
    matches!(device.runs(&case.op, &case.specs()), Runs::Native(_))
}

/// Measures one case for about `seconds`.
pub fn measure(device: &Device, case: &Case, seconds: f64) -> Result<Measured> {
    let prepared = Prepared::new(device, case)?;
    prepared.warm()?;
    let Prepared { program, sets, .. } = prepared;
    let first = program.time(1)?;
    let once = first.total.first().copied().unwrap_or_default().as_secs_f64();
    let repeats = (seconds / once.max(1e-6)).clamp(3.0, 200.0) as u32;
    let timings = program.time(repeats)?;
    let whole = median(timings.total, Duration::cmp) / sets as u32;
    // Where casts stand between the ops, the time of an op is that of all its nodes.
    let one = native(device, case) && !timings.nodes.is_empty();
    let time = if one { median(timings.nodes, Duration::cmp) } else { whole };
    let specs = case.specs();
    let variant = device.runs(&case.op, &specs).to_string();
    let narrow = specs.iter().any(|s| !matches!(s.dtype, DType::F32 | DType::U32));
    let cost = case.op.cost(&specs);
    Ok(Measured { row: case.op.row().name, case: case.label.clone(), variant, time, cost, narrow })
}

/// The median of figures, of an even number the upper of the two in the middle; 0 if there are none.
pub fn median<T: Default>(mut figures: Vec<T>, order: impl FnMut(&T, &T) -> Ordering) -> T {
    figures.sort_unstable_by(order);
    let middle = figures.len() / 2;
    figures.into_iter().nth(middle).unwrap_or_default()
}

/// Measures the bytes that a large copy reads and writes per second, for about `seconds`.
pub fn copy_peak(device: &Device, seconds: f64) -> Result<f64> {
    let rows = if device.caps().software { 4096 } else { 16 * 1024 };
    let copy = Case::new("copy peak", crate::ops::copy::Copy { m: rows, k: 2048 });
    Ok(measure(device, &copy, seconds)?.bandwidth())
}

/// Measures the peaks of a device for about `seconds` each.
pub fn peaks(device: &Device, seconds: f64) -> Result<Peaks> {
    use crate::ops::matmul_nt::MatmulNt;
    let copy = copy_peak(device, seconds)?;
    let side = match (device.caps().software, device.caps().discrete) {
        (true, _) => 512,
        (_, true) => 4096,
        _ => 2048,
    };
    let square = |side| Case::new("matmul peak", MatmulNt::whole(side, side, side));
    let product = measure(device, &square(side), seconds)?;
    let half = ["x", "w", "y"].into_iter().fold(square(side), |case, operand| case.dtype(operand, DType::Bf16));
    let arithmetic = product.arithmetic();
    let narrow = if native(device, &half) { measure(device, &half, seconds)?.arithmetic() } else { arithmetic };
    Ok(Peaks { copy, arithmetic, narrow })
}
