//! Test cases: one object that serves correctness, gradient, benches and support listing.

use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::Op;
use crate::random::Random;

/// Which cases are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A few elements, all edges reachable; gradient checks run on these.
    Small,
    /// Sizes that divide nothing, single rows, single columns.
    Ragged,
    /// Sizes of the 125M preset and above.
    Bench,
}

/// Values of an operand before the op runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in `[low, high)`.
    Uniform(f64, f64),
    /// Integers in `[low, high)`.
    Integers(i64, i64),
    /// All the same.
    Constant(f64),
    /// These, row-major.
    Values(Vec<f64>),
}

/// An operand of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// Shape and dtype.
    pub spec: Spec,
    /// Values; ignored for outputs, which tests poison.
    pub fill: Fill,
    /// For an operand that holds codes: the operand with their scales. Gradients of codes are
    /// those of `code × scale`, so finite differences step by `h / scale`.
    pub scaled_by: Option<usize>,
}

/// An op on operands with values.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub label: String,
    /// The op.
    pub op: Op,
    /// Operands in the order of the signature.
    pub operands: Vec<Operand>,
    /// Outputs must equal the reference bit for bit here, whatever the row's tolerance.
    pub exact: bool,
}

impl Case {
    /// A case with the signature's first dtypes and fitting random values: `f32`/`f16`/`bf16` standard
    /// normal, `i8` in ±127, `i6` and `i4` in all their range, ternary codes in {-1, 0, 1}, `u32` zero.
    pub fn new(label: impl Into<String>, op: impl Into<Op>) -> Case {
        let op = op.into();
        let operands = op.specs().into_iter();
        let operands = operands.map(|spec| Operand { fill: default_fill(spec.dtype), spec, scaled_by: None });
        Case { label: label.into(), op, operands: operands.collect(), exact: false }
    }

    /// Asks for outputs equal to the reference bit for bit.
    pub fn exact(mut self) -> Case {
        self.exact = true;
        self
    }

    /// Sets the values of an operand.
    pub fn fill(mut self, operand: &str, fill: Fill) -> Case {
        if let Some(i) = self.op.row().signature.index(operand) {
            self.operands[i].fill = fill;
        }
        self
    }

    /// Sets the dtype of an operand (one that the signature lists).
    pub fn dtype(mut self, operand: &str, dtype: DType) -> Case {
        if let Some(i) = self.op.row().signature.index(operand) {
            self.operands[i].spec.dtype = dtype;
        }
        self
    }

    /// Says that one operand's codes are scaled by another operand (one scale a row, or one in all).
    pub fn scaled_by(mut self, codes: &str, scales: &str) -> Case {
        let signature = &self.op.row().signature;
        if let (Some(c), Some(s)) = (signature.index(codes), signature.index(scales)) {
            self.operands[c].scaled_by = Some(s);
        }
        self
    }

    /// Specs of the operands.
    pub fn specs(&self) -> Vec<Spec> {
        self.operands.iter().map(|o| o.spec.clone()).collect()
    }

    /// Is it for such a device? Interleaved layouts are for the CPU alone.
    pub fn fits(&self, caps: &Caps) -> bool {
        caps.backend == "cpu" || !self.operands.iter().any(|o| o.spec.dtype.only_cpu())
    }

    /// Values of operand `i` for a seed.
    pub fn values(&self, i: usize, random: &mut Random) -> Vec<f64> {
        let operand = &self.operands[i];
        let n = operand.spec.elements();
        let round = |v: f64| if operand.spec.dtype == DType::F32 { f64::from(v as f32) } else { v };
        match &operand.fill {
            Fill::Normal(std) => (0..n).map(|_| round(std * random.normal())).collect(),
            Fill::Uniform(low, high) => (0..n).map(|_| round(low + (high - low) * random.uniform())).collect(),
            Fill::Integers(low, high) => {
                (0..n).map(|_| (low + random.below((high - low) as u64) as i64) as f64).collect()
            }
            Fill::Constant(v) => vec![round(*v); n],
            Fill::Values(values) => values.iter().map(|&v| round(v)).collect(),
        }
    }
}

/// The cases, and after them every case in f32 again, with the operands in bf16 that may be.
pub(super) fn with_bf16(mut cases: Vec<Case>) -> Vec<Case> {
    let narrow = |case: &Case| {
        let mut case = case.clone();
        let signature = case.op.row().signature.operands.iter();
        let (mut narrowed, mut only_f32) = (false, true);
        for (operand, _) in case.operands.iter_mut().zip(signature).filter(|(_, o)| o.dtypes.contains(&DType::Bf16)) {
            only_f32 &= operand.spec.dtype == DType::F32;
            operand.spec.dtype = DType::Bf16;
            narrowed = true;
        }
        case.label += " bf16";
        (narrowed && only_f32 && (case.op.row().check_dtypes)(&case.specs()).is_ok()).then_some(case)
    };
    let narrowed: Vec<Case> = cases.iter().filter_map(narrow).collect();
    cases.extend(narrowed);
    cases
}

/// Random values that fit a dtype.
pub(crate) fn default_fill(dtype: DType) -> Fill {
    match dtype {
        DType::F32 | DType::F16 | DType::Bf16 => Fill::Normal(1.0),
        DType::I8 => Fill::Integers(-127, 128),
        DType::I6 => Fill::Integers(-32, 32),
        DType::I4 => Fill::Integers(-8, 8),
        DType::T2 | DType::T1 | DType::T2x16 | DType::T1x16 => Fill::Integers(-1, 2),
        DType::U32 => Fill::Constant(0.0),
    }
}
