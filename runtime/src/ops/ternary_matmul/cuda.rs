//! CUDA variants of the ternary product. Sizes are those of `cuda/kernels/include/ternary_*.cuh`.

use super::TernaryMatmul;
use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::{Cuda, CudaKernel};

/// Most rows of `x` for which reading `w` anew for every eight of them beats tiles that stay mostly empty.
const FEW: u32 = 16;
/// Most rows of `x` of a block of `matvec`.
const TOKENS: usize = 8;
/// Codes of a row of `w` that a warp of `matvec` takes at a time, and how many times that are under way.
const UNIT: usize = 256;
const AHEAD: usize = 2;
/// Most warps of a block of `matvec`.
const WARPS: usize = 14;

pub(super) const VARIANTS: &[Cuda<TernaryMatmul>] = &[
    Cuda {
        name: "matvec",
        entries: &[
            "ternary_matmul_matvec_f32",
            "ternary_matmul_matvec_bf16",
            "ternary_matmul_matvec8_f32",
            "ternary_matmul_matvec8_bf16",
        ],
        hot: true,
        align: 16,
        when: |op, s| s[0].dtype == DType::T2 && op.m <= FEW && op.k % 64 == 0 && tokens(op) > 0,
        launch: |op, operands, _| matvec(op, operands).into(),
    },
    Cuda {
        name: "mma",
        entries: &[
            "ternary_matmul_mma128_f32",
            "ternary_matmul_mma128_bf16",
            "ternary_matmul_mma64_f32",
            "ternary_matmul_mma64_bf16",
        ],
        hot: true,
        align: 16,
        when: |op, s| s[0].dtype == DType::T2 && op.k % 64 == 0,
        launch: |op, operands, caps| {
            let (tile, entry) = if large_tiles(op, caps) {
                (128, of_dtype(operands, "ternary_matmul_mma128_f32", "ternary_matmul_mma128_bf16"))
            } else {
                (64, of_dtype(operands, "ternary_matmul_mma64_f32", "ternary_matmul_mma64_bf16"))
            };
            CudaKernel::new(entry, tiles(op, tile), 128).into()
        },
    },
    Cuda {
        name: "mma_words",
        entries: &["ternary_matmul_mma64_words_f32", "ternary_matmul_mma64_words_bf16"],
        hot: true,
        align: 16,
        when: |op, s| s[0].dtype == DType::T2 && op.m > FEW,
        launch: |op, operands, _| {
            let entry = of_dtype(operands, "ternary_matmul_mma64_words_f32", "ternary_matmul_mma64_words_bf16");
            CudaKernel::new(entry, tiles(op, 64), 128).into()
        },
    },
    Cuda {
        name: "plain",
        entries: &["ternary_matmul_plain_f32", "ternary_matmul_plain_bf16"],
        hot: false,
        align: 4,
        when: |_, s| s[0].dtype == DType::T2,
        launch: |op, operands, _| {
            let entry = of_dtype(operands, "ternary_matmul_plain_f32", "ternary_matmul_plain_bf16");
            let groups = (op.m as usize).div_ceil(4).min(65_535);
            CudaKernel::new(entry, (op.n as usize).div_ceil(8), 256).grid(groups, 1).into()
        },
    },
];

/// The entry for the dtype of `y`.
fn of_dtype(operands: &[Spec], f32: &'static str, bf16: &'static str) -> &'static str {
    if operands.get(4).is_some_and(|y| y.dtype == DType::Bf16) { bf16 } else { f32 }
}

/// Warps that share the rows of a block of `matvec`, and units that each takes.
fn shares(op: &TernaryMatmul) -> (usize, usize) {
    let all = (op.k as usize).div_ceil(UNIT);
    let units = all.div_ceil(AHEAD * WARPS) * AHEAD;
    (all.div_ceil(units), units)
}

/// Bytes of shared memory that `matvec` takes for a row of `x`: the row, results and sums of each warp, two scales.
fn token_bytes(op: &TernaryMatmul) -> usize {
    let (warps, units) = shares(op);
    warps * units * UNIT + 64 + warps * (16 + 1) * 4 + 8
}

/// Rows of `x` of a block of `matvec`; 0 if not even one fits into shared memory.
fn tokens(op: &TernaryMatmul) -> usize {
    let m = op.m as usize;
    let most = TOKENS.min((99 << 10) / token_bytes(op));
    if most == 0 { 0 } else { m.div_ceil(m.div_ceil(most)) }
}

fn matvec(op: &TernaryMatmul, operands: &[Spec]) -> CudaKernel {
    let tokens = tokens(op).max(1);
    let entry = if tokens == 1 {
        of_dtype(operands, "ternary_matmul_matvec_f32", "ternary_matmul_matvec_bf16")
    } else {
        of_dtype(operands, "ternary_matmul_matvec8_f32", "ternary_matmul_matvec8_bf16")
    };
    let threads = 32 * shares(op).0 as u32;
    CudaKernel::new(entry, (op.n as usize).div_ceil(16), threads)
        .grid((op.m as usize).div_ceil(tokens), 1)
        .shared(tokens * token_bytes(op))
}

/// Square tiles of this side that cover `y`.
fn tiles(op: &TernaryMatmul, side: usize) -> usize {
    (op.m as usize).div_ceil(side) * (op.n as usize).div_ceil(side)
}

/// Are tiles of 128, which need half the traffic to shared memory, enough to keep all processors busy to
/// the end? A processor holds two of them.
fn large_tiles(op: &TernaryMatmul, caps: &Caps) -> bool {
    let processors = if caps.processors == 0 { 8 } else { caps.processors as usize };
    let (tiles, places) = (tiles(op, 128), 2 * processors);
    op.m > 64 && op.n > 64 && 10 * tiles >= 7 * places * tiles.div_ceil(places)
}
