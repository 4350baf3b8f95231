//! Self-test of devices: any row, any case, against its f64 reference.
//!
//! What the tests run and what `tritter check` runs on a user's machine is the same:
//! operands lie between sentinels, outputs start as NaN, every run is done twice and
//! must give the same bits, and errors are held to the row's tolerance.

mod compare;
mod gradient;
mod guarded;
mod streamed;

pub use gradient::{GradientFinding, check_gradient};
pub use streamed::check_streamed;

use crate::device::{Device, MemoryUse, Runs};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::Graph;
use crate::op::{Case, Row, Size};
use crate::random::Random;
use crate::reference::{RefTensor, decode, encode};
use crate::tensor::Tensor;
use guarded::Guarded;

/// What a check of one case found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Row.
    pub row: &'static str,
    /// Label of the case.
    pub case: String,
    /// Kernel variant that ran.
    pub variant: String,
    /// Largest error over all outputs, relative to what the tolerance names: the largest reference value of the output
    /// (codes: in codes).
    pub error: f64,
    /// The bound that it is held to.
    pub bound: f64,
    /// What is wrong; `None` if nothing is.
    pub fault: Option<String>,
}

impl Finding {
    /// Did it pass?
    pub fn passed(&self) -> bool {
        self.fault.is_none()
    }
}

/// Where operands lie between their sentinels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// At multiples of [`crate::plan::ALIGN`], as values that a program does not slice.
    Aligned,
    /// One row after the start of a buffer, as slices: at any multiple of 4 bytes.
    Sliced,
}

/// Checks one case on a device with values from a seed.
pub fn check_case(device: &Device, case: &Case, seed: u64) -> Result<Finding> {
    check_placed(device, case, seed, Placement::Aligned)
}

/// Checks one case with its operands placed so.
pub fn check_placed(device: &Device, case: &Case, seed: u64, placement: Placement) -> Result<Finding> {
    let specs = case.specs();
    let variant = match device.runs(&case.op, &specs) {
        Runs::Missing(reason) => return Err(crate::Error::unsupported(device.caps(), &case.op, &specs, reason)),
        runs => runs.to_string(),
    };
    let inputs = values(case, seed);
    let expected = reference(case, &inputs, false);
    let operands: Vec<Guarded> = specs.iter().enumerate().map(|(i, s)| Guarded::new(i, s, placement)).collect();
    let mut graph = Graph::new(format!("check {}", case.op.row().name));
    let mut bound = Vec::new();
    for operand in &operands {
        device.allocate(&operand.tensor)?;
        bound.push(operand.bind(&mut graph)?);
    }
    graph.record(case.op, &bound)?;
    let program = device.prepare(&graph)?;
    let mut outputs = Vec::new();
    for _ in 0..2 {
        for ((operand, input), info) in operands.iter().zip(&inputs).zip(&case.op.row().signature.operands) {
            operand.write(device, info.access.reads().then_some(input.as_slice()))?;
        }
        program.submit()?;
        outputs.push(operands.iter().map(|o| o.read(device)).collect::<Result<Vec<_>>>()?);
    }
    let mut finding = compare::compare(case, &inputs, &expected, &outputs[0]);
    finding.variant = variant;
    if finding.fault.is_none() && outputs[0] != outputs[1] {
        finding.fault = Some("two runs on the same operands differ".into());
    }
    Ok(finding)
}

/// Checks the wanted cases of the small and ragged sizes, with aligned and with sliced operands;
/// calls `report` for each and gives the numbers of passed and failed ones. An op that the device
/// does not support counts as failed.
pub fn check_rows(
    device: &Device,
    seed: u64,
    wanted: impl Fn(&Case) -> bool,
    report: &mut dyn FnMut(&Finding),
) -> Result<(usize, usize)> {
    let (mut passed, mut failed) = (0, 0);
    let sizes = [Size::Small, Size::Ragged];
    let cases = Row::all().iter().flat_map(|row| sizes.into_iter().flat_map(row.cases));
    for case in cases.filter(|case| case.fits(device.caps()) && wanted(case)) {
        for placement in [Placement::Aligned, Placement::Sliced] {
            let finding = match check_placed(device, &case, seed, placement) {
                Ok(finding) => finding,
                Err(error @ crate::Error::Lost { .. }) => return Err(error),
                Err(error) => failure(&case, error.to_string()),
            };
            if finding.passed() {
                passed += 1
            } else {
                failed += 1
            }
            report(&finding);
        }
    }
    Ok((passed, failed))
}

/// Runs a program of the first small case of every row `times` times and gives the memory in use
/// after the first run and after the last: equal, or something grows.
pub fn check_replays(device: &Device, times: usize) -> Result<(MemoryUse, MemoryUse)> {
    let mut graph = Graph::new("replays");
    for case in
        Row::all().iter().filter_map(|row| (row.cases)(Size::Small).into_iter().find(|case| case.fits(device.caps())))
    {
        let inputs = values(&case, 1);
        let operands = case.specs().into_iter().zip(&inputs).enumerate();
        let bound = operands.map(|(i, (spec, input))| {
            let tensor = Tensor::state(format!("operand {i}"), spec.shape.clone(), spec.dtype);
            device.allocate(&tensor)?;
            device.write(&tensor, &encode(&spec, input))?;
            Ok(graph.bind(&tensor))
        });
        let bound = bound.collect::<Result<Vec<_>>>()?;
        graph.record(case.op, &bound)?;
    }
    let program = device.prepare(&graph)?;
    let mut memory = Vec::new();
    for _ in 0..times {
        program.submit()?;
        if memory.len() < 2 {
            device.backend().wait()?;
            memory.push(device.backend().memory());
        }
    }
    device.backend().wait()?;
    Ok((memory.last().copied().unwrap_or_default(), device.backend().memory()))
}

fn failure(case: &Case, fault: String) -> Finding {
    Finding {
        row: case.op.row().name,
        case: case.label.clone(),
        variant: String::new(),
        error: f64::NAN,
        bound: 0.0,
        fault: Some(fault),
    }
}

/// Values of all operands as a device stores them (rounded to the dtype).
pub(crate) fn values(case: &Case, seed: u64) -> Vec<Vec<f64>> {
    let mut random = Random::new(seed);
    let stored = |i: usize, values: Vec<f64>| {
        let spec = &case.operands[i].spec;
        if matches!(spec.dtype, DType::F16 | DType::Bf16) { decode(spec, &encode(spec, &values)) } else { values }
    };
    (0..case.operands.len()).map(|i| stored(i, case.values(i, &mut random))).collect()
}

/// All operands after the reference has run on `inputs`; outputs start as NaN.
fn reference(case: &Case, inputs: &[Vec<f64>], surrogate: bool) -> Vec<RefTensor> {
    let signature = &case.op.row().signature;
    let tensor = |((operand, input), info): ((&crate::op::CaseOperand, &Vec<f64>), &crate::op::Operand)| {
        let spec = operand.spec.clone();
        if info.access.reads() { RefTensor::new(spec, input.clone()) } else { RefTensor::filled(spec, f64::NAN) }
    };
    let mut tensors: Vec<RefTensor> = case.operands.iter().zip(inputs).zip(&signature.operands).map(tensor).collect();
    if surrogate {
        case.op.surrogate(&mut tensors)
    } else {
        case.op.reference(&mut tensors)
    }
    tensors
}
