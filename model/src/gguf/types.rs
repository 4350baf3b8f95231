//! Element types of GGUF tensors: number in the file, size of a block, name.
//!
//! Numbers and block sizes are those of ggml (`include/ggml.h` and `src/ggml-common.h` at
//! ggml-org/ggml d99724f), except for two types that live in forks:
//!
//! - `I2_S` (36) is bitnet.cpp's (`microsoft/BitNet`, `src/ggml-bitnet-mad.cpp`). Upstream once gave
//!   the number 36 to a repacked `IQ4_NL` and withdrew it, so no current file uses it otherwise.
//! - `PQ2_0` (142) is PrismML's `Q2_0` with groups of 128. Before upstream took `Q2_0` (42) with
//!   groups of 64 (llama.cpp pull request 24448), the same fork wrote groups of 128 under 42.
//!   Which of the two a tensor of type 42 has follows from the bytes that the file gives it.

/// An element type that this program reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// IEEE half floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// 4-bit integers less 8, an f16 scale for 32.
    Q4_0,
    /// 8-bit integers, an f16 scale for 32.
    Q8_0,
    /// 6-bit integers less 32, an int8 scale for 16 and an f16 scale for 256.
    Q6K,
    /// Five trits a byte, an f16 scale for 256.
    Tq1_0,
    /// Four codes a byte, an f16 scale for 256.
    Tq2_0,
    /// Four codes a byte, one f32 scale a tensor (bitnet.cpp on x86).
    I2S,
    /// Four codes a byte, an f16 scale for 64.
    Q2_0,
    /// As [`TensorType::Q2_0`] with an f16 scale for 128, under the same number.
    Q2_0G128,
    /// As [`TensorType::Q2_0G128`] under a number of its own.
    Pq2_0,
}

/// Every type that is read.
pub const TYPES: [TensorType; 12] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::Bf16,
    TensorType::Q4_0,
    TensorType::Q8_0,
    TensorType::Q6K,
    TensorType::Tq1_0,
    TensorType::Tq2_0,
    TensorType::I2S,
    TensorType::Q2_0,
    TensorType::Q2_0G128,
    TensorType::Pq2_0,
];

/// Bytes after the codes of an `I2_S` tensor: the f32 scale and 28 that nobody reads.
pub const I2S_TAIL: usize = 32;

impl TensorType {
    /// The type of that number; 42 is taken as [`TensorType::Q2_0`] until the tensor's size is known.
    pub fn from_number(number: u32) -> Option<Self> {
        TYPES.into_iter().find(|t| t.number() == number)
    }

    /// The number that stands in files.
    pub fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Q6K => 14,
            Self::Bf16 => 30,
            Self::Tq1_0 => 34,
            Self::Tq2_0 => 35,
            Self::I2S => 36,
            Self::Q2_0 | Self::Q2_0G128 => 42,
            Self::Pq2_0 => 142,
        }
    }

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q6K => "Q6_K",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
            Self::I2S => "I2_S",
            Self::Q2_0 => "Q2_0",
            Self::Q2_0G128 => "Q2_0 (groups of 128)",
            Self::Pq2_0 => "PQ2_0",
        }
    }

    /// Elements and bytes of a block. A row is a whole number of blocks. `I2_S` has [`I2S_TAIL`] bytes
    /// more for each tensor.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q8_0 => (32, 34),
            Self::Q6K => (256, 210),
            Self::Tq1_0 => (256, 54),
            Self::Tq2_0 => (256, 66),
            Self::I2S => (128, 32),
            Self::Q2_0 => (64, 18),
            Self::Q2_0G128 | Self::Pq2_0 => (128, 34),
        }
    }

    /// Whether it holds nothing but −1, 0 and 1 times a scale.
    pub fn is_ternary(self) -> bool {
        matches!(self, Self::Tq1_0 | Self::Tq2_0 | Self::I2S | Self::Q2_0 | Self::Q2_0G128 | Self::Pq2_0)
    }

    /// Bytes of a row of `width` elements; `None` where it is not a whole number of blocks.
    pub fn row_bytes(self, width: usize) -> Option<usize> {
        let (elements, bytes) = self.block();
        if !width.is_multiple_of(elements) {
            return None;
        }
        (width / elements).checked_mul(bytes)
    }

    /// Bytes of `rows` rows of `width` elements, with what follows them; `None` as in
    /// [`TensorType::row_bytes`] or where the size overflows.
    pub fn bytes(self, rows: usize, width: usize) -> Option<usize> {
        let bytes = self.row_bytes(width)?.checked_mul(rows)?;
        if self == Self::I2S { bytes.checked_add(I2S_TAIL) } else { Some(bytes) }
    }
}

/// The names of ggml's types that are not read here, for messages.
pub(crate) fn foreign_name(number: u32) -> &'static str {
    match number {
        3 => " (Q4_1)",
        6 => " (Q5_0)",
        7 => " (Q5_1)",
        9 => " (Q8_1)",
        10 => " (Q2_K)",
        11 => " (Q3_K)",
        12 => " (Q4_K)",
        13 => " (Q5_K)",
        15 => " (Q8_K)",
        16..=23 | 29 => " (one of the IQ types)",
        24..=28 => " (integers or f64)",
        37 => " (IQ4_NL_4_8, or I8_S of bitnet.cpp)",
        38 => " (TL1 of bitnet.cpp, made for one processor and one model)",
        39 => " (MXFP4, or TL2 of bitnet.cpp)",
        40 => " (NVFP4)",
        41 => " (Q1_0)",
        134 => " (IQ1_BN of ik_llama.cpp)",
        135 => " (IQ2_BN of ik_llama.cpp)",
        143 => " (PTQ1_0 of PrismML)",
        _ => "",
    }
}

/// The names of all types that are read, for messages.
pub(crate) fn known_names() -> String {
    let names: Vec<_> = TYPES.iter().filter(|t| **t != TensorType::Q2_0G128).map(|t| t.name()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_are_found_again_and_rows_are_whole_blocks() {
        for t in TYPES {
            let found = TensorType::from_number(t.number()).unwrap();
            assert!(found == t || (t == TensorType::Q2_0G128 && found == TensorType::Q2_0));
            let (elements, bytes) = t.block();
            assert_eq!(t.row_bytes(elements * 3), Some(bytes * 3));
            assert_eq!(t.row_bytes(elements * 3 + 1).is_none(), elements > 1);
            assert_eq!(t.bytes(usize::MAX / 2, elements * 16), None);
        }
        assert_eq!(TensorType::from_number(12), None);
        assert_eq!(TensorType::I2S.bytes(2, 128), Some(96));
    }
}
