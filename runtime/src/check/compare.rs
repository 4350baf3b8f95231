//! Holding stored outputs to the reference.

use super::guarded::Stored;
use super::{Finding, reference};
use crate::dtype::DType;
use crate::op::{Case, CaseOperand, Tolerance};
use crate::reference::{RefTensor, decode, encode};

/// Distance from a tie, in codes, from which on quantisers must agree exactly.
const TIE: f64 = 1e-3;

pub(super) fn compare(case: &Case, inputs: &[Vec<f64>], expected: &[RefTensor], got: &[Stored]) -> Finding {
    let row = case.op.row();
    let tolerance = if case.exact { Tolerance::Exact } else { case.op.tolerance() };
    let (mut error, mut bound, mut fault) = (0f64, 0f64, None);
    for (i, info) in row.signature.operands.iter().enumerate() {
        let (stored, spec) = (&got[i], &case.operands[i].spec);
        if !stored.intact {
            fault.get_or_insert(format!("`{}`: the guard around it was overwritten", info.name));
        }
        if !info.access.writes() {
            if stored.words != encode(spec, &inputs[i]) {
                fault.get_or_insert(format!("`{}` is an input and was changed", info.name));
            }
            continue;
        }
        let outcome = match tolerance {
            Tolerance::Exact => exact(&expected[i], &stored.words),
            Tolerance::OneCode { float } if spec.dtype == DType::U32 => {
                packed(case, inputs, &expected[i], i, stored, float)
            }
            Tolerance::OneCode { .. } if spec.dtype == DType::I8 || spec.dtype.is_ternary() => {
                codes(&expected[i], stored, &preimage(case, inputs, expected, i))
            }
            Tolerance::OneCode { float: max } | Tolerance::Float { max, .. } => {
                // What is added to counts too: rounding is relative to the terms of a sum, which may cancel.
                let start = if info.access.reads() { inputs[i].as_slice() } else { &[] };
                float(&expected[i], stored, max, largest(&expected[i].data).max(largest(start)))
            }
            Tolerance::Sum { max, .. } => {
                float(&expected[i], stored, max, largest(&expected[i].data).max(terms(case, inputs, i)))
            }
        };
        error = error.max(outcome.error);
        bound = bound.max(outcome.bound);
        if let Some(message) = outcome.fault {
            fault.get_or_insert(format!("`{}`: {message}", info.name));
        }
    }
    Finding { row: row.name, case: case.label.clone(), variant: String::new(), error, bound, fault }
}

struct Outcome {
    error: f64,
    bound: f64,
    fault: Option<String>,
}

fn exact(expected: &RefTensor, words: &[u32]) -> Outcome {
    let wanted = encode(&expected.spec, &expected.data);
    let differs = wanted.iter().zip(words).position(|(a, b)| a != b);
    let fault = differs.map(|at| format!("word {at} is {:#010x}, must be {:#010x}", words[at], wanted[at]));
    let (a, b) = (decode(&expected.spec, words), decode(&expected.spec, &wanted));
    let error = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    Outcome { error, bound: 0.0, fault }
}

/// Values before rounding, in codes, where the case says which operand scales them.
fn preimage(case: &Case, inputs: &[Vec<f64>], expected: &[RefTensor], i: usize) -> Option<Vec<f64>> {
    let scale = &expected[case.operands[i].scaled_by?];
    let smooth = reference(case, inputs, true);
    let (cols, scales) = (smooth[i].spec.cols(), scale.data.len());
    let at = |j: usize| if scales == 1 { scale.data[0] } else { scale.data[j / cols % scales] };
    Some(smooth[i].data.iter().enumerate().map(|(j, v)| v / at(j)).collect())
}

fn codes(expected: &RefTensor, stored: &Stored, preimage: &Option<Vec<f64>>) -> Outcome {
    let got = decode(&expected.spec, &stored.words);
    let mut fault = padding(expected, stored, &got);
    let mut error = 0f64;
    for (j, (got, wanted)) in got.iter().zip(&expected.data).enumerate() {
        let difference = (got - wanted).abs();
        error = error.max(difference);
        let near_tie = preimage.as_ref().is_none_or(|p| ((p[j] - p[j].floor()) - 0.5).abs() < TIE);
        if difference > 1.0 || (difference > 0.0 && !near_tie) {
            fault.get_or_insert(format!("code {j} is {got}, must be {wanted}"));
        }
    }
    Outcome { error, bound: 1.0, fault }
}

/// Words that hold codes and parameters together.
fn packed(case: &Case, inputs: &[Vec<f64>], expected: &RefTensor, i: usize, stored: &Stored, max: f64) -> Outcome {
    let unpack = |words: &[u32]| case.op.packed(i, words, inputs);
    let (Some(wanted), Some(got)) = (unpack(&encode(&expected.spec, &expected.data)), unpack(&stored.words)) else {
        return exact(expected, &stored.words);
    };
    let (mut error, mut fault) = (0f64, None);
    let codes = got.codes.iter().zip(&wanted.codes).zip(&wanted.preimages);
    for (j, ((got, wanted), preimage)) in codes.enumerate() {
        let difference = (got - wanted).abs();
        error = error.max(difference);
        let near_tie = ((preimage - preimage.floor()) - 0.5).abs() < TIE;
        if difference > 1.0 || (difference > 0.0 && !near_tie) {
            fault.get_or_insert(format!("code {j} is {got}, must be {wanted} ({preimage} before rounding)"));
        }
    }
    let largest = largest(&wanted.floats);
    for (j, (got, wanted)) in got.floats.iter().zip(&wanted.floats).enumerate() {
        let relative = (got - wanted).abs() / largest;
        if relative > max || relative.is_nan() {
            fault.get_or_insert(format!("parameter {j} is {got}, must be {wanted} (largest {largest}, bound {max:e})"));
        }
    }
    Outcome { error, bound: 1.0, fault }
}

/// Padding must be what encoding writes.
fn padding(expected: &RefTensor, stored: &Stored, got: &[f64]) -> Option<String> {
    (encode(&expected.spec, got) != stored.words).then(|| "row padding is not what the layout asks for".into())
}

/// Storing rounds to the nearest: half a unit of 8 significant bits (11 of f16) is at most 2^-8 of the value. Twice
/// that, because a value that is a little off may round to the other neighbour, and because kernels
/// that multiply on matrix units round what they make on the way (weights of attention) as well.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => 0.0,
    }
}

/// The largest finite magnitude.
fn largest(values: &[f64]) -> f64 {
    values.iter().filter(|v| v.is_finite()).fold(1e-30, |largest, v| v.abs().max(largest))
}

/// Largest root of the sum of squared terms of an output: what a sum of such terms comes to if signs fall at random.
fn terms(case: &Case, inputs: &[Vec<f64>], i: usize) -> f64 {
    let square = |(input, operand): (&Vec<f64>, &CaseOperand)| match operand.spec.dtype {
        DType::U32 => input.clone(),
        _ => input.iter().map(|v| v * v).collect(),
    };
    let squares: Vec<Vec<f64>> = inputs.iter().zip(&case.operands).map(square).collect();
    largest(&reference(case, &squares, false)[i].data).sqrt()
}

/// Errors relative to `largest`.
fn float(expected: &RefTensor, stored: &Stored, max: f64, largest: f64) -> Outcome {
    let got = decode(&expected.spec, &stored.words);
    let mut fault = match expected.spec.dtype {
        DType::F32 | DType::U32 => None,
        _ => padding(expected, stored, &got),
    };
    let max = max + rounding(expected.spec.dtype);
    let mut error = 0f64;
    for (j, (got, wanted)) in got.iter().zip(&expected.data).enumerate() {
        let same = got == wanted || (got.is_nan() && wanted.is_nan());
        let relative = if same { 0.0 } else { (got - wanted).abs() / largest };
        if relative > error || relative.is_nan() {
            error = relative;
        }
        if relative > max || relative.is_nan() {
            fault.get_or_insert(format!("element {j} is {got}, must be {wanted} (largest {largest}, bound {max:e})"));
        }
    }
    Outcome { error, bound: max, fault }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Fill;
    use crate::ops::matmul_nt::MatmulNt;

    #[test]
    fn a_sum_is_held_to_its_terms_where_they_cancel() {
        let op = MatmulNt { m: 1, n: 1, k: 2, n0: 0, l: 1 };
        let factors = vec![1.0, -1.0 + 2f64.powi(-20)];
        let case = Case::new("1x1x2", op).fill("x", Fill::Values(vec![1.0, 1.0])).fill("w", Fill::Values(factors));
        let inputs = super::super::values(&case, 1);
        let expected = reference(&case, &inputs, false);
        let finding = |error: f32| {
            let stored = |i: usize| match i {
                2 => vec![(expected[2].data[0] as f32 + error).to_bits()],
                _ => encode(&case.operands[i].spec, &inputs[i]),
            };
            let stored: Vec<Stored> = (0..3).map(|i| Stored { words: stored(i), intact: true }).collect();
            compare(&case, &inputs, &expected, &stored)
        };
        assert!(finding(1e-6).passed(), "as large as the sum, but less than 1e-5 of its terms");
        assert!(!finding(2e-5).passed(), "more than 1e-5 of the root of two squares of about 1");
    }
}
