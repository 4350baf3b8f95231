//! Gradient rules against central differences of the surrogate, all in f64.

use super::{reference, values};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gradient::{Given, GradCx};
use crate::graph::{Graph, Value};
use crate::op::{Case, Gradient};
use crate::random::Random;
use crate::reference::Interpreter;
use crate::tensor::Tensor;

/// What a gradient check of one case found.
#[derive(Clone, Debug)]
pub struct GradientFinding {
    /// Row.
    pub row: &'static str,
    /// Label of the case.
    pub case: String,
    /// Largest difference from the finite differences, relative to the largest gradient.
    pub error: f64,
    /// Elements compared.
    pub compared: usize,
    /// What is wrong; `None` if nothing is.
    pub fault: Option<String>,
}

/// Largest relative difference: a central difference with step 1e-5 errs by 1e-10 of the third
/// derivative and 1e-11 of the value.
const BOUND: f64 = 1e-6;
const STEP: f64 = 1e-5;
/// Elements of an operand that are compared at most.
const PROBES: usize = 48;

/// Checks the gradient rule of a row on a case. `None` if the row has no gradient.
pub fn check_gradient(case: &Case, seed: u64) -> Result<Option<GradientFinding>> {
    let row = case.op.row();
    if row.gradient != Gradient::Rule {
        return Ok(None);
    }
    let inputs = values(case, seed);
    let mut random = Random::new(seed ^ 0x6772_6164);
    let signature = &row.signature;
    let weights: Vec<Option<Vec<f64>>> = (0..inputs.len())
        .map(|i| {
            let operand = &signature.operands[i];
            let flows = operand.access.writes() && !row.saved.contains(&operand.name);
            flows.then(|| (0..case.operands[i].spec.elements()).map(|_| random.normal()).collect())
        })
        .collect();
    let gradients = by_rule(case, &inputs, &weights)?;
    let mut finding = GradientFinding { row: row.name, case: case.label.clone(), error: 0.0, compared: 0, fault: None };
    for i in (0..inputs.len()).filter(|&i| differentiable(case, i)) {
        let name = signature.operands[i].name;
        let Some(gradient) = &gradients[i] else {
            finding.fault.get_or_insert(format!("the rule gives no gradient for `{name}`"));
            continue;
        };
        let largest = gradient.iter().fold(1e-3f64, |a, g| a.max(g.abs()));
        for _ in 0..gradient.len().min(PROBES) {
            let j = if gradient.len() <= PROBES {
                finding.compared % gradient.len()
            } else {
                random.below(gradient.len() as u64) as usize
            };
            let difference = (central_difference(case, &inputs, &weights, i, j) - gradient[j]).abs() / largest;
            finding.compared += 1;
            finding.error = finding.error.max(difference);
            if difference.is_nan() || difference > BOUND {
                finding.fault.get_or_insert(format!(
                    "d/d{name}[{j}] is {} by the rule, off by {difference:.2e} of the largest",
                    gradient[j]
                ));
            }
        }
    }
    Ok(Some(finding))
}

/// Is a gradient of operand `i` expected?
fn differentiable(case: &Case, i: usize) -> bool {
    let row = case.op.row();
    let operand = &row.signature.operands[i];
    operand.access.reads() && case.operands[i].spec.dtype != DType::U32 && !row.constant.contains(&operand.name)
}

fn by_rule(case: &Case, inputs: &[Vec<f64>], weights: &[Option<Vec<f64>>]) -> Result<Vec<Option<Vec<f64>>>> {
    let mut graph = Graph::new("gradient check");
    let mut interpreter = Interpreter::default();
    let mut operands = Vec::new();
    for ((operand, info), data) in case.operands.iter().zip(&case.op.row().signature.operands).zip(inputs) {
        let spec = &operand.spec;
        let value = if info.access.reads() {
            let value = graph.bind(&Tensor::state(info.name, spec.shape.clone(), spec.dtype));
            interpreter.set(value, data.clone());
            value
        } else {
            graph.activation(spec.shape.clone(), spec.dtype)
        };
        operands.push(value);
    }
    graph.record(case.op, &operands)?;
    let mut upstream = Vec::new();
    for (weight, operand) in weights.iter().zip(&case.operands) {
        upstream.push(weight.as_ref().map(|data| {
            // Gradients of codes travel in f32, those of floats in their own dtype.
            let dtype = if operand.spec.dtype == DType::Bf16 { DType::Bf16 } else { DType::F32 };
            let value = graph.bind(&Tensor::input("upstream", operand.spec.shape.clone(), dtype));
            interpreter.set(value, data.clone());
            value
        }));
    }
    let wanted: Vec<bool> = (0..operands.len()).map(|i| differentiable(case, i)).collect();
    let accumulators = vec![None; operands.len()];
    let mut cx = GradCx::new(&mut graph, &operands, &upstream, &wanted, &accumulators);
    case.op.gradient(&mut cx)?;
    let given = cx.finish();
    interpreter.run(&graph, true)?;
    let data = |value: Value| -> Result<Vec<f64>> { Ok(interpreter.tensor(&graph, value)?.data) };
    let collect = |given: &Option<Given>| match given {
        Some(Given::Value(value)) => Ok(Some(data(*value)?)),
        Some(Given::Added) => Err(Error::Record { graph: "gradient check".into(), message: "added to nothing".into() }),
        None => Ok(None),
    };
    given.iter().map(collect).collect()
}

/// Central difference of the weighted sum of outputs with respect to element `j` of operand `i`.
fn central_difference(case: &Case, inputs: &[Vec<f64>], weights: &[Option<Vec<f64>>], i: usize, j: usize) -> f64 {
    let scale = case.operands[i].scaled_by.map_or(1.0, |s| {
        let scales = &inputs[s];
        scales[if scales.len() == 1 { 0 } else { j / case.operands[i].spec.cols() }]
    });
    let loss = |step: f64| -> f64 {
        let mut moved = inputs.to_vec();
        moved[i][j] += step / scale;
        let outputs = reference(case, &moved, true);
        let weighted = weights.iter().zip(&outputs).filter_map(|(w, t)| Some((w.as_ref()?, t)));
        weighted.map(|(w, t)| w.iter().zip(&t.data).map(|(w, y)| w * y).sum::<f64>()).sum()
    };
    (loss(STEP) - loss(-STEP)) / (2.0 * STEP)
}
