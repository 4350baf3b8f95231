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
//! | `i6` | `q + 32`, `q ∈ [−32, 31]`: 16 in three words, see below | `12·⌈k/16⌉` bytes, padding `q` = 0 |
//! | `i4` | `q + 8`, `q ∈ [−8, 7]`: 8 in a word, lowest bits first | `4·⌈k/8⌉` bytes, padding `q` = 0 |
//! | `t2` | ternary code `t+1 ∈ {0,1,2}`, 16 in a word, lowest bits first | `4·⌈k/16⌉` bytes, padding code 1 (zero) |
//! | `t1` | ternary codes, 20 in a word, five in a byte, see below | `4·⌈k/20⌉` bytes, padding code 1 |
//! | `t2x16`, `t1x16` | ternary codes, 16 rows interleaved, see below | as `t2` and `t1`, rows padded to 16 |
//!
//! The `i8` row is padded to 16 so that one word of `t2` always meets four whole
//! words of `i8`.
//!
//! **`i6`**: of 16 elements words 0 and 1 hold the low four bits (element `i` at bits `4·(i mod 8)`
//! of word `i / 8`), word 2 the high two (element `i` at bits `2i`).
//!
//! **`t1`**, 1.6 bits a weight: byte `j` of a word holds the trits `4s + j`, `s < 5`, as
//! `⌈v · 256 / 243⌉` with `v = Σ_s code(4s+j) · 3^(4−s)`. The byte is `v / 243` in fixed point, so
//! multiplying it by 3 carries the digits out one after the other: digit `s` is
//! `((byte · 3^s mod 256) · 3) >> 8`. The same digit of a word's four bytes belongs to four
//! consecutive elements, which is what an instruction for four-way int8 products wants.
//!
//! **`t2x16`, `t1x16`**, for vector units of CPUs: word `w` of 16 rows lie side by side, at
//! `(⌊row/16⌋ · words + w) · 16 + row mod 16`, so that a vector holds the same columns of 16
//! rows and no sum has to cross lanes. Missing rows of the last group are code 1. Words of
//! `t1x16` are those of `t1`; in `t2x16` byte `j` holds the codes `4s + j` at bits `2s`.

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
    /// Signed integer of six bits.
    I6,
    /// Signed integer of four bits.
    I4,
    /// Ternary weight in two bits.
    T2,
    /// Ternary weight in 1.6 bits.
    T1,
    /// Ternary weight in two bits, 16 rows interleaved.
    T2x16,
    /// Ternary weight in 1.6 bits, 16 rows interleaved.
    T1x16,
}

/// Rows that the interleaved dtypes hold side by side.
pub const INTERLEAVED: usize = 16;

impl DType {
    /// All dtypes.
    pub const ALL: [DType; 11] = [
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::I8,
        DType::U32,
        DType::I6,
        DType::I4,
        DType::T2,
        DType::T1,
        DType::T2x16,
        DType::T1x16,
    ];

    /// Name in signatures and messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I8 => "i8",
            DType::U32 => "u32",
            DType::I6 => "i6",
            DType::I4 => "i4",
            DType::T2 => "t2",
            DType::T1 => "t1",
            DType::T2x16 => "t2x16",
            DType::T1x16 => "t1x16",
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
            DType::I6 => 12 * k.div_ceil(16),
            DType::I4 => 4 * k.div_ceil(8),
            DType::T2 | DType::T2x16 => 4 * k.div_ceil(16),
            DType::T1 | DType::T1x16 => 4 * k.div_ceil(20),
        }
    }

    /// Elements that a whole row holds, padding included.
    pub const fn padded(self, k: usize) -> usize {
        match self {
            DType::F32 | DType::U32 => k,
            DType::F16 | DType::Bf16 => k.div_ceil(2) * 2,
            DType::I4 => k.div_ceil(8) * 8,
            DType::I8 | DType::I6 | DType::T2 | DType::T2x16 => k.div_ceil(16) * 16,
            DType::T1 | DType::T1x16 => k.div_ceil(20) * 20,
        }
    }

    /// Rows that lie side by side: [`INTERLEAVED`], or 1.
    pub const fn row_group(self) -> usize {
        match self {
            DType::T2x16 | DType::T1x16 => INTERLEAVED,
            _ => 1,
        }
    }

    /// Is it a layout that only the CPU computes with?
    pub const fn only_cpu(self) -> bool {
        self.row_group() > 1
    }

    /// Does it hold ternary codes?
    pub const fn is_ternary(self) -> bool {
        matches!(self, DType::T2 | DType::T1 | DType::T2x16 | DType::T1x16)
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
        self.rows().next_multiple_of(self.dtype.row_group()) as u64 * self.row_bytes()
    }

    /// Refuses empty tensors and sizes that overflow a 47-bit address.
    pub fn check(&self, name: &str) -> Result<()> {
        let mut n: u64 = 16;
        for &extent in &self.shape {
            n = n.saturating_mul(extent as u64);
        }
        // Room for the padding of interleaved rows, which is at most 16 times.
        let most = if self.dtype.row_group() > 1 { 1 << 43 } else { 1 << 47 };
        if n == 0 || n > most || self.shape.is_empty() {
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
