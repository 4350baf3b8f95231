//! Element types and how they lie in memory.
//!
//! Tensors are contiguous and row-major. The last axis is a *row*; every row is
//! padded to whole 32-bit words, so that one layout serves CPU, WGSL and CUDA:
//!
//! | dtype | element | row of `k` elements |
//! |---|---|---|
//! | `f32`, `u32` | 4 bytes | `4k` bytes |
//! | `f16` | IEEE half, two in a word, low half first | `4·⌈k/2⌉` bytes, padding 0 |
//! | `bf16` | the upper half of an `f32`, rounded to even, two in a word, low half first | as `f16` |
//! | `i8` | four in a word, lowest byte first | `16·⌈k/16⌉` bytes, padding 0 |
//! | `t2` | ternary code `t+1 ∈ {0,1,2}`, 16 in a word, lowest bits first | `4·⌈k/16⌉` bytes, padding code 1 (zero) |
//!
//! The `i8` row is padded to 16 so that one word of `t2` always meets four whole
//! words of `i8`.

use crate::error::{Error, Result};

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Upper half of an IEEE single (8 bits of exponent, 7 of mantissa).
    Bf16,
    /// Signed byte.
    I8,
    /// Unsigned word (token ids, positions, random state).
    U32,
    /// Ternary weight in two bits.
    T2,
}

impl DType {
    /// All dtypes.
    pub const ALL: [DType; 6] = [DType::F32, DType::F16, DType::Bf16, DType::I8, DType::U32, DType::T2];

    /// Name in signatures and messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I8 => "i8",
            DType::U32 => "u32",
            DType::T2 => "t2",
        }
    }

    /// The dtype of a name in a signature.
    pub fn parse(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Bytes of a row of `k` elements, padding included.
    pub const fn row_bytes(self, k: usize) -> usize {
        match self {
            DType::F32 | DType::U32 => 4 * k,
            DType::F16 | DType::Bf16 => 4 * k.div_ceil(2),
            DType::I8 => 16 * k.div_ceil(16),
            DType::T2 => 4 * k.div_ceil(16),
        }
    }

    /// Elements that a whole row holds, padding included.
    pub const fn padded(self, k: usize) -> usize {
        match self {
            DType::F32 | DType::U32 => k,
            DType::F16 | DType::Bf16 => k.div_ceil(2) * 2,
            DType::I8 | DType::T2 => k.div_ceil(16) * 16,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Shape and dtype.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Extents, outermost first; a scalar is `[1]`.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
}

impl Spec {
    /// A spec of these extents.
    pub fn new(shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        Spec { shape: shape.into(), dtype }
    }

    /// Extent of the last axis.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all extents but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Number of logical elements.
    pub fn elements(&self) -> usize {
        self.rows() * self.cols()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        self.dtype.row_bytes(self.cols()) as u64
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        self.rows() as u64 * self.row_bytes()
    }

    /// Refuses empty tensors and sizes that overflow a 47-bit address.
    pub fn check(&self, name: &str) -> Result<()> {
        let mut n: u64 = 16;
        for &extent in &self.shape {
            n = n.saturating_mul(extent as u64);
        }
        if n == 0 || n > 1 << 47 || self.shape.is_empty() {
            return Err(Error::Record {
                graph: name.to_string(),
                message: format!("a tensor of {self} is empty or too large"),
            });
        }
        Ok(())
    }
}

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}
