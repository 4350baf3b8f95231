//! What an op is: one row with everything that CPU, GPU, tests and benches need.
//!
//! A row is a `#[repr(C)]` parameter struct that implements [`Kernel`]. The list
//! in [`crate::ops`] makes them one closed enum, [`Op`], and one table of
//! [`Row`]s; from the table alone come the tests on every device, the gradient
//! check, the benches, `tritter check` and the coverage table.

mod args;
mod case;
mod cuda;
mod shader;
mod signature;

pub use args::Args;
pub(crate) use case::default_fill as case_fill;
pub use case::{Case, Fill, Operand as CaseOperand, Size};
pub use cuda::{Cuda, CudaChoice, CudaKernel, CudaLaunch, CudaRow};
pub use shader::{Choice, Launch, Needs, Wgsl, fold_groups};
pub use signature::{Access, Operand, Signature};

use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::gradient::GradCx;
pub use crate::ops::Op;
use crate::reference::RefTensor;

/// Bytes moved and arithmetic done by one run of an op.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes that must be read.
    pub read: u64,
    /// Bytes that must be written.
    pub written: u64,
    /// Arithmetic operations (a multiply-add is two).
    pub ops: u64,
}

/// How far a device may be from the f64 reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Stored bytes are equal, padding included.
    Exact,
    /// A quantiser: codes are equal at least 1e-3 of a code away from a tie and differ by at
    /// most one code elsewhere; float outputs (scales) are within `float` of the reference.
    OneCode {
        /// Largest error of float outputs relative to the largest reference value.
        float: f64,
    },
    /// Largest error, relative to the largest reference value of that output, and why.
    Float {
        /// The bound.
        max: f64,
        /// Where it comes from.
        why: &'static str,
    },
    /// As [`Tolerance::Float`] for sums, whose terms may cancel until next to nothing is left: relative to the root of
    /// the sum of a value's squared terms where that is larger. It is the root of what the reference gives for squared
    /// inputs, so only rows may ask for it whose outputs are sums of products of their inputs, without differences.
    Sum {
        /// The bound.
        max: f64,
        /// Where it comes from.
        why: &'static str,
    },
}

/// What an output holds whose words are codes and parameters together.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    /// Codes.
    pub codes: Vec<f64>,
    /// Their values before rounding, in codes.
    pub preimages: Vec<f64>,
    /// Parameters.
    pub floats: Vec<f64>,
}

/// Whether a row has a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// [`Kernel::gradient`] records it.
    Rule,
    /// It has none, and why.
    None(&'static str),
}

/// A piece of an op whose operands are too large to bind whole.
#[derive(Clone, Debug)]
pub struct Piece<K> {
    /// The op on the piece.
    pub op: K,
    /// For each operand the rows `(first, count)` that the piece binds.
    pub rows: Vec<(usize, usize)>,
}

/// One row. `Self` is the parameter struct, at most 64 bytes of 4-byte scalars,
/// which the CPU kernel, the WGSL and the CUDA source all see as it is.
pub trait Kernel: bytemuck::Pod + std::fmt::Debug + Send + Sync {
    /// Field-standard name; also the name of the folder and of the `.wgsl` and `.cu` files.
    const NAME: &'static str;
    /// Operands: `x[m,k]:f32 w[k]:f32|f16 -> y[m,k]:f32 &state[1]:f32`. Before the arrow is
    /// read, after it written, `&` marks read and written. Dimension names come from [`Kernel::dims`].
    const SIGNATURE: &'static str;
    /// Has it a gradient?
    const GRADIENT: Gradient;
    /// Outputs that only gradients read: no gradient flows back through them.
    const SAVED: &'static [&'static str] = &[];
    /// Float inputs that no gradient flows to: tables, scales of codes, targets.
    const CONSTANT: &'static [&'static str] = &[];
    /// WGSL variants, best first; the last one runs on every device. None of them ever sees an
    /// operand in bf16; f16 they may see where the signature lists it, so there `when` looks at dtypes.
    const WGSL: &'static [Wgsl<Self>];
    /// WGSL variants for operands of which some are in bf16, best first. Where there is none, such
    /// operands go through f32 ([`Graph::widened`](crate::graph::Graph::widened)).
    const WGSL_BF16: &'static [Wgsl<Self>] = &[];
    /// CUDA variants, best first; the last one takes all operands that the signature allows.
    const CUDA: &'static [Cuda<Self>];

    /// Extents of the signature's dimension names.
    fn dims(&self) -> Vec<(&'static str, usize)>;

    /// Conditions beyond the signature, e.g. that heads divide.
    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    /// Conditions on dtypes beyond the signature: by default, of the operands that may be bf16
    /// either all are or none is.
    fn check_dtypes(operands: &[Spec]) -> std::result::Result<(), String> {
        all_or_none(&Row::of::<Self>().signature, operands)
    }

    /// Has the row's gradient a rule for operands of these dtypes? Weights in formats for inference have none.
    fn differentiable(operands: &[Spec]) -> bool {
        let _ = operands;
        true
    }

    /// Does the CPU kernel take operands of these dtypes itself? By default it takes no bf16.
    fn cpu_takes(operands: &[Spec]) -> bool {
        operands.iter().all(|s| s.dtype != DType::Bf16)
    }

    /// The definition: f64 in, f64 out, in the order of the signature.
    fn reference(&self, t: &mut [RefTensor]);

    /// The differentiable stand-in that finite differences are taken of; rows that round
    /// override it with the function without the rounding (straight-through).
    fn surrogate(&self, t: &mut [RefTensor]) {
        self.reference(t);
    }

    /// The CPU kernel.
    fn cpu(&self, args: Args<'_>);

    /// Arithmetic operations.
    fn operations(&self) -> u64;

    /// Bytes that must be read and written; by default all operands whole.
    fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
        signature_traffic(&Row::of::<Self>().signature, operands)
    }

    /// Allowed distance from the reference.
    fn tolerance(&self) -> Tolerance;

    /// Codes and parameters of an output whose words hold both, of stored words and the case's inputs.
    fn packed(&self, operand: usize, words: &[u32], inputs: &[Vec<f64>]) -> Option<Packed> {
        let _ = (operand, words, inputs);
        None
    }

    /// Test cases of a size. Those in f32 are tested in bf16 as well ([`Row::cases`]).
    fn cases(size: Size) -> Vec<Case>;

    /// Records the gradient for the wanted operands.
    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// Cuts the op so that no operand binds more than `limit` bytes; `None` if it cannot.
    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let _ = (operands, limit);
        None
    }
}

fn signature_traffic(signature: &Signature, operands: &[Spec]) -> (u64, u64) {
    let sum = |wanted: fn(Access) -> bool| {
        let pairs = signature.operands.iter().zip(operands);
        pairs.filter(|(o, _)| wanted(o.access)).map(|(_, s)| s.bytes()).sum()
    };
    (sum(Access::reads), sum(Access::writes))
}

fn all_or_none(signature: &Signature, operands: &[Spec]) -> std::result::Result<(), String> {
    let may = || signature.operands.iter().zip(operands).filter(|(o, _)| o.dtypes.contains(&DType::Bf16));
    match (may().find(|(_, s)| s.dtype == DType::Bf16), may().find(|(_, s)| s.dtype != DType::Bf16)) {
        (Some((a, _)), Some((b, spec))) => {
            Err(format!("`{}` is bf16 and `{}` {}: both must be bf16 or neither", a.name, b.name, spec.dtype))
        }
        _ => Ok(()),
    }
}

/// The facts of a row that need no instance.
#[derive(Debug)]
pub struct Row {
    /// Field-standard name.
    pub name: &'static str,
    /// Parsed signature.
    pub signature: Signature,
    /// Gradient, or why there is none.
    pub gradient: Gradient,
    /// Outputs that only gradients read.
    pub saved: &'static [&'static str],
    /// Float inputs that no gradient flows to.
    pub constant: &'static [&'static str],
    /// Names of the WGSL variants, best first, those for bf16 last.
    pub wgsl: Vec<&'static str>,
    /// See [`Kernel::differentiable`].
    pub differentiable: fn(&[Spec]) -> bool,
    /// See [`Kernel::cpu_takes`].
    pub cpu_takes: fn(&[Spec]) -> bool,
    /// See [`Kernel::check_dtypes`].
    pub check_dtypes: fn(&[Spec]) -> std::result::Result<(), String>,
    /// CUDA variants, best first.
    pub cuda: Vec<CudaRow>,
    /// Test cases of a size: the row's own, and after them those in f32 again in bf16, where the row
    /// takes it.
    pub cases: fn(Size) -> Vec<Case>,
}

impl Row {
    /// The row of a kernel.
    pub(crate) fn new<K: Kernel>() -> Row {
        Row {
            name: K::NAME,
            signature: Signature::parse(K::SIGNATURE),
            gradient: K::GRADIENT,
            saved: K::SAVED,
            constant: K::CONSTANT,
            wgsl: K::WGSL.iter().chain(K::WGSL_BF16).map(|v| v.name).collect(),
            differentiable: K::differentiable,
            cpu_takes: K::cpu_takes,
            check_dtypes: K::check_dtypes,
            cuda: K::CUDA.iter().map(Cuda::row).collect(),
            cases: |size| case::with_bf16(K::cases(size)),
        }
    }

    fn of<K: Kernel>() -> &'static Row {
        Row::named(K::NAME)
    }

    /// All rows, in the order of the list.
    pub fn all() -> &'static [Row] {
        crate::ops::rows()
    }

    /// The row of a name; the first row if there is no such name, which the list rules out.
    fn named(name: &str) -> &'static Row {
        let rows = Row::all();
        rows.iter().find(|r| r.name == name).unwrap_or(&rows[0])
    }
}

impl Op {
    /// The op's row.
    pub fn row(&self) -> &'static Row {
        &Row::all()[self.index()]
    }

    /// Bytes and arithmetic of one run on these operands.
    pub fn cost(&self, operands: &[Spec]) -> Cost {
        let (read, written) = self.traffic(operands);
        Cost { read, written, ops: self.operations() }
    }

    /// The spec of an operand as the parameters imply it, in its first dtype.
    pub fn specs(&self) -> Vec<Spec> {
        let dims = self.dims();
        let operands = self.row().signature.operands.iter();
        operands.map(|o| Spec::new(o.shape(&dims), o.dtypes[0])).collect()
    }

    /// Operands with names, shapes and dtypes, for messages.
    pub fn describe(&self, operands: &[Spec]) -> String {
        let names = self.row().signature.operands.iter().map(|o| o.name);
        names.zip(operands).map(|(name, spec)| format!("{name}:{spec}")).collect::<Vec<_>>().join(" ")
    }

    /// Checks operands against the signature and the row's own conditions.
    pub fn check_operands(&self, operands: &[Spec]) -> Result<()> {
        let row = self.row();
        let signature = &row.signature;
        let name = row.name;
        if operands.len() != signature.operands.len() {
            return Err(Error::OperandCount {
                op: name,
                signature: signature.text,
                expected: signature.operands.len(),
                found: operands.len(),
            });
        }
        let dims = self.dims();
        for (operand, spec) in signature.operands.iter().zip(operands) {
            let expected = operand.shape(&dims);
            if expected != spec.shape {
                let found = spec.shape.clone();
                return Err(Error::Shape {
                    op: name,
                    operand: operand.name,
                    signature: signature.text,
                    expected,
                    found,
                });
            }
            if !operand.dtypes.contains(&spec.dtype) {
                let expected = operand.dtypes.iter().map(|d| d.name()).collect::<Vec<_>>().join("|");
                return Err(Error::OperandType { op: name, operand: operand.name, expected, found: spec.dtype });
            }
        }
        let conditions = (row.check_dtypes)(operands).and_then(|()| self.check());
        conditions.map_err(|message| Error::Record { graph: name.into(), message })
    }
}
