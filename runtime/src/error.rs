//! The one error type of this crate: what went wrong, where, and what to do.

use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::Op;

/// Errors of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand's shape is not the one that the row's signature asks for.
    #[error("{op}: operand `{operand}` has shape {found:?}, the signature `{signature}` needs {expected:?}")]
    Shape {
        /// Row name.
        op: &'static str,
        /// Operand name in the signature.
        operand: &'static str,
        /// The row's signature.
        signature: &'static str,
        /// Shape that the parameters imply.
        expected: Vec<usize>,
        /// Shape that was given.
        found: Vec<usize>,
    },
    /// An operand's dtype is not among those that the row takes.
    #[error("{op}: operand `{operand}` is {found}, the row takes {expected}")]
    OperandType {
        /// Row name.
        op: &'static str,
        /// Operand name.
        operand: &'static str,
        /// Dtypes that the row takes, joined with `|`.
        expected: String,
        /// Dtype that was given.
        found: DType,
    },
    /// The number of operands is wrong.
    #[error("{op}: takes {expected} operands (`{signature}`), {found} were given")]
    OperandCount {
        /// Row name.
        op: &'static str,
        /// The row's signature.
        signature: &'static str,
        /// Operands in the signature.
        expected: usize,
        /// Operands given.
        found: usize,
    },
    /// A recording mistake: reading what nobody wrote, overlapping operands, a bad slice.
    #[error("graph `{graph}`: {message}")]
    Record {
        /// Graph name.
        graph: String,
        /// What is wrong.
        message: String,
    },
    /// A device cannot run an op.
    #[error("{device} cannot run `{op}` on {operands}: {reason}")]
    Unsupported {
        /// Device name.
        device: String,
        /// Row name.
        op: &'static str,
        /// Operand shapes and dtypes.
        operands: String,
        /// Why not.
        reason: String,
    },
    /// The plan asks for more memory than there is.
    #[error("{what} needs {} but {device} has {}: {advice}", bytes(*.needed), bytes(*.available))]
    DoesNotFit {
        /// What was asked for.
        what: String,
        /// Device name.
        device: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
        /// What to do.
        advice: String,
    },
    /// An allocation would go beyond the budget that a device was given.
    #[error(
        "{what} needs {} more, but {} of the {} that {device} may take are in use: use a larger --memory-limit, or a \
         smaller context, batch or model",
        bytes(*.needed), bytes(*.used), bytes(*.budget)
    )]
    OverBudget {
        /// What was to be allocated.
        what: String,
        /// Device name.
        device: String,
        /// Bytes asked for.
        needed: u64,
        /// Bytes in use.
        used: u64,
        /// Bytes that may be.
        budget: u64,
    },
    /// A tensor is used on a device before it was allocated there.
    #[error("tensor `{tensor}` has no memory on {device}: allocate it before it is written, read or compiled")]
    NotAllocated {
        /// Tensor name.
        tensor: String,
        /// Device name.
        device: String,
    },
    /// A host buffer does not have the size of the tensor.
    #[error("tensor `{tensor}`: {found} bytes at offset {offset} do not fit its {size} bytes")]
    Range {
        /// Tensor name.
        tensor: String,
        /// Byte offset.
        offset: u64,
        /// Bytes given.
        found: u64,
        /// Bytes of the tensor.
        size: u64,
    },
    /// The name of a device is not understood.
    #[error("unknown device `{name}`: use auto, cpu, wgpu, wgpu:N, cuda or cuda:N (`tritter devices` lists them)")]
    UnknownDevice {
        /// The name as given.
        name: String,
    },
    /// A device that was asked for is not there.
    #[error("device `{name}` is not available: {why}")]
    Absent {
        /// The name as given.
        name: String,
        /// Why it is absent.
        why: String,
    },
    /// The driver reported an error.
    #[error("{device}: {message}")]
    Device {
        /// Device name.
        device: String,
        /// The driver's words, or ours.
        message: String,
    },
    /// The device is gone (reset, unplugged, driver update).
    #[error("{device} was lost ({message}); restart the program, and resume training from the last checkpoint")]
    Lost {
        /// Device name.
        device: String,
        /// The driver's words.
        message: String,
    },
}

impl Error {
    /// A device cannot run an op on these operands.
    pub fn unsupported(caps: &Caps, op: &Op, operands: &[Spec], reason: impl Into<String>) -> Error {
        Error::Unsupported {
            device: format!("{} ({})", caps.id, caps.name),
            op: op.row().name,
            operands: op.describe(operands),
            reason: reason.into(),
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Bytes for people: `1.75 GB`, `12.0 MB`, `640 B` (powers of ten).
pub fn bytes(n: u64) -> String {
    let x = n as f64;
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", x / 1e6),
        _ => format!("{:.2} GB", x / 1e9),
    }
}
