//! CUDA variants of attention over a paged cache: how rows, heads and parts become blocks.

use super::Shape;
use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::{Cuda, CudaKernel, CudaLaunch};
use crate::ops::attention::cuda::{Tiles, head_size};
use crate::ops::paged_attention::PagedAttention;
use crate::ops::quantized_attention::QuantizedAttention;

/// Threads of a decode block.
const THREADS: usize = 128;

/// Bytes of shared memory in which a thread's keys and values wait, as in `attention_decode.cuh`.
const STAGING: usize = 3 * 128;

/// Variants of [`PagedAttention`].
pub(crate) const PAGED: &[Cuda<PagedAttention>] = &[
    Cuda {
        name: "decode",
        entries: &[
            "paged_attention_decode1_f32",
            "paged_attention_decode1_f16",
            "paged_attention_decode4_f32",
            "paged_attention_decode4_f16",
            "paged_attention_decode8_f32",
            "paged_attention_decode8_f16",
        ],
        hot: true,
        align: 4,
        when: |op, _| op.prompt == 0,
        launch: decode,
    },
    Cuda {
        name: "mma",
        entries: &["paged_attention_mma64_f16", "paged_attention_mma128_f16"],
        hot: true,
        align: 16,
        when: |op, operands| op.prompt != 0 && half(operands) && PROMPT_HEADS.contains(&op.d),
        launch: |op, _, _| {
            let entry = if op.d == 64 { "paged_attention_mma64_f16" } else { "paged_attention_mma128_f16" };
            prompt(&op.shape(), entry, 0)
        },
    },
    Cuda {
        name: "tiled",
        entries: &[
            "paged_attention_tiled64_f32",
            "paged_attention_tiled64_f16",
            "paged_attention_tiled128_f32",
            "paged_attention_tiled128_f16",
            "paged_attention_tiled256_f32",
            "paged_attention_tiled256_f16",
        ],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, operands, _| {
            let entries = if half(operands) {
                ["paged_attention_tiled64_f16", "paged_attention_tiled128_f16", "paged_attention_tiled256_f16"]
            } else {
                ["paged_attention_tiled64_f32", "paged_attention_tiled128_f32", "paged_attention_tiled256_f32"]
            };
            tiled(&op.shape(), entries)
        },
    },
];

/// Variants of [`QuantizedAttention`].
pub(crate) const QUANTIZED: &[Cuda<QuantizedAttention>] = &[
    Cuda {
        name: "decode",
        entries: &[
            "quantized_attention_decode2_64",
            "quantized_attention_decode2_128",
            "quantized_attention_decode4_64",
            "quantized_attention_decode4_128",
            "quantized_attention_decode8_64",
            "quantized_attention_decode8_128",
        ],
        hot: true,
        align: 16,
        when: |op, _| op.prompt == 0 && [64, 128].contains(&op.d) && decode_codes_shared(op) <= 99 << 10,
        launch: decode_codes,
    },
    Cuda {
        name: "mma",
        entries: &[
            "quantized_attention_mma2_64",
            "quantized_attention_mma4_64",
            "quantized_attention_mma4_128",
            "quantized_attention_mma8_64",
            "quantized_attention_mma8_128",
        ],
        hot: true,
        align: 16,
        when: |op, _| op.prompt != 0 && PROMPT_HEADS.contains(&op.d) && !two_bits_of_128(op),
        launch: prompt_codes,
    },
    Cuda {
        name: "mma2",
        entries: &["quantized_attention_mma2_128"],
        // One word of a block is kept in local memory on sm_120, outside all loops.
        hot: false,
        align: 16,
        when: |op, _| op.prompt != 0 && two_bits_of_128(op),
        launch: prompt_codes,
    },
    Cuda {
        name: "tiled",
        entries: &["quantized_attention_tiled64", "quantized_attention_tiled128", "quantized_attention_tiled256"],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: |op, _, _| {
            let entries =
                ["quantized_attention_tiled64", "quantized_attention_tiled128", "quantized_attention_tiled256"];
            tiled(&op.shape(), entries)
        },
    },
];

/// A cache in f16?
fn half(operands: &[Spec]) -> bool {
    operands[2].dtype == DType::F16
}

fn decode(op: &PagedAttention, operands: &[Spec], _: &Caps) -> CudaLaunch {
    let shape = op.shape();
    let (heads, entries) = match shape.shared() {
        1 => (1, ["paged_attention_decode1_f32", "paged_attention_decode1_f16"]),
        2..=4 => (4, ["paged_attention_decode4_f32", "paged_attention_decode4_f16"]),
        _ => (8, ["paged_attention_decode8_f32", "paged_attention_decode8_f16"]),
    };
    // The results of four warps take the place of what waited.
    let shared = (THREADS * STAGING).max(4 * kept(&shape, heads));
    blocks(&shape, heads, entries[usize::from(half(operands))], shared).into()
}

/// Heads of a block over codes, half of which go through the ring at a time, as in `quantized_decode.cuh`.
const CODE_HEADS: usize = 8;

fn decode_codes(op: &QuantizedAttention, _: &[Spec], _: &Caps) -> CudaLaunch {
    let entry = match (op.bits, op.d) {
        (2, 64) => "quantized_attention_decode2_64",
        (2, _) => "quantized_attention_decode2_128",
        (4, 64) => "quantized_attention_decode4_64",
        (4, _) => "quantized_attention_decode4_128",
        (_, 64) => "quantized_attention_decode8_64",
        _ => "quantized_attention_decode8_128",
    };
    blocks(&op.shape(), CODE_HEADS, entry, decode_codes_shared(op)).into()
}

/// Bytes of shared memory of a block over codes: the queries; then what each of 4 warps folds (8 words for each
/// element of a head) and two turns of 32 tokens (rows of values are 4 words longer), whose place the results of the
/// warps and what the ring needs take later.
fn decode_codes_shared(op: &QuantizedAttention) -> usize {
    let (block, warps) = (op.block(), THREADS / 32);
    let entry = if block.precise { 2 } else { 1 };
    let turn = 32 * (2 * block.row_words() + 4) + block.d * entry + 32 * block.groups() * entry;
    let turns = 4 * warps * (8 * block.d + 2 * turn);
    let ring = 2 * warps * kept(&op.shape(), CODE_HEADS / 2) + THREADS * STAGING;
    4 * CODE_HEADS * (block.d + 4) + turns.max(ring)
}

/// Bytes of a warp's results for `heads` heads, whose size is rounded up to threads of 8 elements, with a maximum
/// and a sum.
fn kept(shape: &Shape, heads: usize) -> usize {
    4 * heads * (shape.d.div_ceil(8).next_power_of_two() * 8 + 2)
}

/// The one kernel for prompts that ptxas gives a word of local memory.
fn two_bits_of_128(op: &QuantizedAttention) -> bool {
    (op.bits, op.d) == (2, 128)
}

/// Head sizes of the tensor-core kernels for prompts.
const PROMPT_HEADS: [u32; 2] = [64, 128];

/// Query rows of a block, and rows of its tiles of keys and of values, as in `prompt_mma.cuh`.
const PROMPT_TILE: usize = 64;

fn prompt_codes(op: &QuantizedAttention, _: &[Spec], _: &Caps) -> CudaLaunch {
    let entry = match (op.bits, op.d) {
        (2, 64) => "quantized_attention_mma2_64",
        (2, _) => "quantized_attention_mma2_128",
        (4, 64) => "quantized_attention_mma4_64",
        (4, _) => "quantized_attention_mma4_128",
        (_, 64) => "quantized_attention_mma8_64",
        _ => "quantized_attention_mma8_128",
    };
    // A scale and a zero in f32 for each channel of up to two pages, and for each group of a token's channels; those
    // of one side and its codes on their way.
    let (d, bits) = (op.d as usize, op.bits as usize);
    prompt(&op.shape(), entry, (2 + 1) * 2 * 8 * d + PROMPT_TILE * d * bits / 8)
}

/// A prompt's tiles on tensor cores: queries in f32, keys and values in f16, and `more` bytes of shared memory.
fn prompt(shape: &Shape, entry: &'static str, more: usize) -> CudaLaunch {
    let blocks = (shape.m * shape.shared()).div_ceil(PROMPT_TILE) * shape.g;
    CudaKernel::new(entry, blocks, 128).shared(PROMPT_TILE * shape.d * (4 + 2 + 2) + more).into()
}

/// Decode blocks: parts, key-value heads times groups of `heads` sharing heads, rows.
fn blocks(shape: &Shape, heads: usize, entry: &'static str, shared: usize) -> CudaKernel {
    let groups = shape.g * shape.shared().div_ceil(heads);
    CudaKernel::new(entry, shape.parts, THREADS as u32).grid(groups, shape.m).shared(shared)
}

/// The f32 tiles; of rows that are independent, a block takes one and a part of its keys. `entries` for heads of up
/// to 64, 128, 256 elements.
fn tiled(shape: &Shape, entries: [&'static str; 3]) -> CudaLaunch {
    let head = head_size(shape.d as u32);
    let tiles = Tiles::forward(head, entries);
    let (tokens, parts, rows) = if shape.prompt { (shape.m, 1, 1) } else { (1, shape.parts, shape.m) };
    let kernel = tiles.launch(tokens * shape.shared(), shape.g as u32, head, tiles.kept + 2 * tiles.passing);
    kernel.grid(parts, rows).into()
}
