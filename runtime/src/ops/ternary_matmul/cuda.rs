//! CUDA variants of the ternary product. Sizes are those of `cuda/kernels/include/ternary_*.cuh`.

use super::TernaryMatmul;
use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::{Cuda, CudaKernel};
use crate::ops::ternary_few::{FEW, Few};

pub(super) const VARIANTS: &[Cuda<TernaryMatmul>] = &[
    Cuda {
        name: "matvec",
        entries: &[
            "ternary_matmul_few1_t2_f32",
            "ternary_matmul_few1_t2_bf16",
            "ternary_matmul_few8_t2_f32",
            "ternary_matmul_few8_t2_bf16",
            "ternary_matmul_few1_t1_f32",
            "ternary_matmul_few1_t1_bf16",
            "ternary_matmul_few8_t1_f32",
            "ternary_matmul_few8_t1_bf16",
        ],
        hot: true,
        align: 16,
        when: |op, operands| op.m <= FEW && matvec(op, operands).is_some(),
        launch: |op, operands, caps| {
            let entries = match (operands[0].dtype, operands[4].dtype) {
                (DType::T1, DType::Bf16) => ["ternary_matmul_few1_t1_bf16", "ternary_matmul_few8_t1_bf16"],
                (DType::T1, _) => ["ternary_matmul_few1_t1_f32", "ternary_matmul_few8_t1_f32"],
                (_, DType::Bf16) => ["ternary_matmul_few1_t2_bf16", "ternary_matmul_few8_t2_bf16"],
                _ => ["ternary_matmul_few1_t2_f32", "ternary_matmul_few8_t2_f32"],
            };
            let few = matvec(op, operands);
            few.map(|few| few.launch(op.m, op.n.div_ceil(2), entries, caps).into()).unwrap_or_default()
        },
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
            let (tile, entry) = if op.n > 64 && large_tiles(op, [128, 128], caps) {
                (128, of_dtype(operands, "ternary_matmul_mma128_f32", "ternary_matmul_mma128_bf16"))
            } else {
                (64, of_dtype(operands, "ternary_matmul_mma64_f32", "ternary_matmul_mma64_bf16"))
            };
            CudaKernel::new(entry, tiles(op, [tile, tile]), 128).into()
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
            CudaKernel::new(entry, tiles(op, [64, 64]), 128).into()
        },
    },
    Cuda {
        name: "fifths",
        entries: &[
            "ternary_matmul_fifths128_f32",
            "ternary_matmul_fifths128_bf16",
            "ternary_matmul_fifths64_f32",
            "ternary_matmul_fifths64_bf16",
        ],
        hot: true,
        align: 16,
        when: |op, s| s[0].dtype == DType::T1 && op.m > FEW,
        launch: |op, operands, caps| {
            let (rows, entry) = if large_tiles(op, [128, 64], caps) {
                (128, of_dtype(operands, "ternary_matmul_fifths128_f32", "ternary_matmul_fifths128_bf16"))
            } else {
                (64, of_dtype(operands, "ternary_matmul_fifths64_f32", "ternary_matmul_fifths64_bf16"))
            };
            // Two stages of 160 bytes of x and 32 of w a row.
            let kernel = CudaKernel::new(entry, tiles(op, [rows, 64]), 128);
            kernel.shared(2 * (rows * 160 + 64 * 32)).into()
        },
    },
    Cuda {
        name: "plain",
        entries: &[
            "ternary_matmul_plain_t2_f32",
            "ternary_matmul_plain_t2_bf16",
            "ternary_matmul_plain_t1_f32",
            "ternary_matmul_plain_t1_bf16",
        ],
        hot: false,
        align: 4,
        when: |_, s| !s[0].dtype.only_cpu(),
        launch: |op, operands, _| {
            let entry = match operands[0].dtype {
                DType::T1 => of_dtype(operands, "ternary_matmul_plain_t1_f32", "ternary_matmul_plain_t1_bf16"),
                _ => of_dtype(operands, "ternary_matmul_plain_t2_f32", "ternary_matmul_plain_t2_bf16"),
            };
            let groups = (op.m as usize).div_ceil(4).min(65_535);
            CudaKernel::new(entry, (op.n as usize).div_ceil(8), 256).grid(groups, 1).into()
        },
    },
];

/// The entry for the dtype of `y`.
fn of_dtype(operands: &[Spec], f32: &'static str, bf16: &'static str) -> &'static str {
    if operands.get(4).is_some_and(|y| y.dtype == DType::Bf16) { bf16 } else { f32 }
}

/// The plan for few rows of `x`: rows `j` and `j + ⌈n/2⌉` of `w` are a pair.
fn matvec(op: &TernaryMatmul, operands: &[Spec]) -> Option<Few> {
    let few = Few::new(operands[0].dtype, op.k)?;
    let halves = op.n.is_multiple_of(2) && few.pairs_alike(op.n / 2);
    (halves || few.pairs_alike(1)).then_some(few)
}

/// Tiles of `y` with these rows and columns.
fn tiles(op: &TernaryMatmul, [rows, cols]: [usize; 2]) -> usize {
    (op.m as usize).div_ceil(rows) * (op.n as usize).div_ceil(cols)
}

/// Are large tiles, which need less traffic to shared memory, enough to keep all processors busy to
/// the end? A processor holds two of them.
fn large_tiles(op: &TernaryMatmul, tile: [usize; 2], caps: &Caps) -> bool {
    let processors = if caps.processors == 0 { 8 } else { caps.processors as usize };
    let (tiles, places) = (tiles(op, tile), 2 * processors);
    op.m > 64 && 10 * tiles >= 7 * places * tiles.div_ceil(places)
}
