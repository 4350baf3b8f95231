//! CUDA variants of attention and its gradients: tile shapes, shared and scratch memory.

use super::{Attention, MAX_HEAD};
use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::{Cuda, CudaKernel, CudaLaunch};

/// Variants of the forward row.
pub(super) const FORWARD: &[Cuda<Attention>] = &[
    Cuda {
        name: "decode",
        entries: &[
            "attention_decode1_f32",
            "attention_decode1_f32_f16",
            "attention_decode1_bf16",
            "attention_decode4_f32",
            "attention_decode4_f32_f16",
            "attention_decode4_bf16",
            "attention_decode8_f32",
            "attention_decode8_f32_f16",
            "attention_decode8_bf16",
            "attention_join_f32",
            "attention_join_bf16",
        ],
        hot: true,
        align: 4,
        when: |op, _| splits_keys(op),
        launch: decode,
    },
    Cuda {
        name: "mma",
        entries: &[
            "attention_mma64_64",
            "attention_mma64_128",
            "attention_mma128_64",
            "attention_mma128_128",
            "attention_mma256_64",
        ],
        hot: true,
        align: 16,
        when: |op, operands| takes_mma(op, operands, MAX_HEAD),
        launch: mma,
    },
    Cuda {
        name: "tiled",
        entries: &[
            "attention_tiled64_f32",
            "attention_tiled64_f32_f16",
            "attention_tiled128_f32",
            "attention_tiled128_f32_f16",
            "attention_tiled256_f32",
            "attention_tiled256_f32_f16",
            "attention_tiled256_bf16",
        ],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: tiled,
    },
];

/// Activations and caches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Types {
    F32,
    F32Caches16,
    Bf16,
}

impl Types {
    fn of(operands: &[Spec]) -> Types {
        match (operands[0].dtype, operands[1].dtype) {
            (DType::Bf16, _) => Types::Bf16,
            (_, DType::F16) => Types::F32Caches16,
            _ => Types::F32,
        }
    }

    fn pick<T>(self, [f32, f32_f16, bf16]: [T; 3]) -> T {
        match self {
            Types::F32 => f32,
            Types::F32Caches16 => f32_f16,
            Types::Bf16 => bf16,
        }
    }
}

/// Too few query rows to fill a card with tiles of them.
fn splits_keys(op: &Attention) -> bool {
    op.m <= 4 || (op.m <= 16 && op.t >= 512)
}

/// Most parts of a token's keys, as `DECODE_PARTS` in `attention_decode.cuh`.
const PARTS: usize = 512;

/// Bytes before the parts in scratch memory, four times `DECODE_HEADER` in `attention_decode.cuh`.
const HEADER: u64 = 16;

/// Keys that are worth a block.
const FEWEST_KEYS: usize = 64;

fn decode(op: &Attention, operands: &[Spec], caps: &Caps) -> CudaLaunch {
    let types = Types::of(operands);
    let (heads, entry) = match op.shared() {
        1 => (1, ["attention_decode1_f32", "attention_decode1_f32_f16", "attention_decode1_bf16"]),
        2..=4 => (4, ["attention_decode4_f32", "attention_decode4_f32_f16", "attention_decode4_bf16"]),
        _ => (8, ["attention_decode8_f32", "attention_decode8_f32_f16", "attention_decode8_bf16"]),
    };
    let (m, t, d) = (op.m as usize, op.t as usize, op.d as usize);
    let groups = op.g as usize * op.shared().div_ceil(heads);
    let parts = (2 * processors(caps)).div_ceil(groups * m).min(t.div_ceil(FEWEST_KEYS)).clamp(1, PARTS);
    // Four warps' results, each with the head's size rounded up to lanes of 8 elements.
    let columns = d.div_ceil(8).next_power_of_two() * 8;
    let kernel = CudaKernel::new(types.pick(entry), parts, 128).grid(groups, m).shared(16 * heads * (columns + 2));
    if parts == 1 {
        return CudaLaunch { kernels: vec![kernel], scratch: HEADER };
    }
    let entry = types.pick(["attention_join_f32", "attention_join_f32", "attention_join_bf16"]);
    let rows = m * op.h as usize;
    CudaLaunch {
        kernels: vec![kernel, CudaKernel::new(entry, rows, 128)],
        scratch: HEADER + 4 * (rows * parts * (d + 2)) as u64,
    }
}

/// Can tensor cores take it, in kernels for heads of up to `most` elements? Rows must be whole
/// chunks of 16 bytes, and the largest score must be that of the largest product.
fn takes_mma(op: &Attention, operands: &[Spec], most: u32) -> bool {
    Types::of(operands) == Types::Bf16 && op.d.is_multiple_of(8) && op.d <= most && op.scale > 0.0
}

/// Bytes of `rows` rows of bf16 in shared memory.
fn chunks(head: usize, rows: usize) -> usize {
    2 * head * rows
}

fn mma(op: &Attention, _: &[Spec], caps: &Caps) -> CudaLaunch {
    let (rows, g) = (op.m as usize * op.shared(), op.g as usize);
    let blocks = |of: usize| rows.div_ceil(of) * g;
    // Blocks of 128 rows read shared memory half as often, but need enough rows for two on each
    // processor, and 100 KiB of shared memory (compute capability 12) would hold only one for
    // heads of 128.
    let many = blocks(128) >= 2 * processors(caps);
    let (entry, head, kept, passing) = match op.d {
        0..=64 if many => ("attention_mma64_128", 64, 128, 64),
        0..=64 => ("attention_mma64_64", 64, 64, 64),
        65..=128 if many && caps.compute.0 < 12 => ("attention_mma128_128", 128, 128, 64),
        65..=128 => ("attention_mma128_64", 128, 64, 64),
        _ => ("attention_mma256_64", 256, 64, 32),
    };
    CudaKernel::new(entry, blocks(kept), 128).shared(chunks(head, kept + 2 * passing)).into()
}

/// Streaming multiprocessors; some number where the driver does not say.
fn processors(caps: &Caps) -> usize {
    if caps.processors == 0 { 8 } else { caps.processors as usize }
}

/// Shape of the f32 tiles: rows that a block keeps (R a thread of 16 that share them) and rows
/// that pass by.
struct Tiles {
    entry: &'static str,
    kept: usize,
    passing: usize,
    of_thread: usize,
}

impl Tiles {
    /// A launch over `rows` rows of each of `g` heads. Tiles of a kernel lie in shared memory in
    /// rows of `head + 4`, weights in rows of `passing + 4`.
    fn launch(&self, rows: usize, g: u32, head: usize, tiles: usize) -> CudaLaunch {
        let blocks = rows.div_ceil(self.kept) * g as usize;
        let shared = 4 * (tiles * (head + 4) + self.kept * (self.passing + 4));
        CudaKernel::new(self.entry, blocks, (self.kept / self.of_thread * 16) as u32).shared(shared).into()
    }
}

/// Head size of the smallest tiled kernels that take this one.
fn head_size(d: u32, types: Types) -> usize {
    match (d, types) {
        (0..=64, Types::F32 | Types::F32Caches16) => 64,
        (65..=128, Types::F32 | Types::F32Caches16) => 128,
        _ => 256,
    }
}

fn tiled(op: &Attention, operands: &[Spec], _: &Caps) -> CudaLaunch {
    let types = Types::of(operands);
    let head = head_size(op.d, types);
    let (kept, passing, entry) = match head {
        64 => (64, 64, ["attention_tiled64_f32", "attention_tiled64_f32_f16", ""]),
        128 => (64, 32, ["attention_tiled128_f32", "attention_tiled128_f32_f16", ""]),
        _ => (32, 16, ["attention_tiled256_f32", "attention_tiled256_f32_f16", "attention_tiled256_bf16"]),
    };
    let tiles = Tiles { entry: types.pick(entry), kept, passing, of_thread: 4 };
    tiles.launch(op.m as usize * op.shared(), op.g, head, kept + 2 * passing)
}

/// Whether a gradient is for queries or for keys and values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// `attention_grad_q`: query rows are kept.
    Queries,
    /// `attention_grad_kv`: keys are kept.
    Keys,
}

/// Do tensor cores take a gradient?
pub(crate) fn mma_takes_gradient(op: &Attention, operands: &[Spec]) -> bool {
    takes_mma(op, operands, 128)
}

/// A gradient on tensor cores: 64 query rows or 64 keys a block; of the other side one stage for
/// queries, two for keys.
pub(crate) fn mma_gradient(side: Side, op: &Attention) -> CudaLaunch {
    let head = if op.d <= 64 { 64 } else { 128 };
    let passing = if op.d <= 64 { 64 } else { 32 };
    let (entry, rows, stages) = match (side, head) {
        (Side::Queries, 64) => ("attention_grad_q_mma64", op.m as usize * op.shared(), 1),
        (Side::Queries, _) => ("attention_grad_q_mma128", op.m as usize * op.shared(), 1),
        (Side::Keys, 64) => ("attention_grad_kv_mma64", op.t as usize, 2),
        (Side::Keys, _) => ("attention_grad_kv_mma128", op.t as usize, 2),
    };
    let blocks = rows.div_ceil(64) * op.g as usize;
    CudaKernel::new(entry, blocks, 128).shared(chunks(head, 2 * 64 + 2 * passing * stages)).into()
}

/// The f32 tiles of a gradient.
pub(crate) fn tiled_gradient(side: Side, op: &Attention, operands: &[Spec]) -> CudaLaunch {
    let types = Types::of(operands);
    let head = head_size(op.d, types);
    let (kept, passing, of_thread) = match head {
        64 => (64, 64, 4),
        128 => (32, 32, 4),
        _ => (16, 16, 2),
    };
    let entry = match (side, head, types) {
        (Side::Queries, 64, _) => "attention_grad_q_tiled64_f32",
        (Side::Queries, 128, _) => "attention_grad_q_tiled128_f32",
        (Side::Queries, _, Types::Bf16) => "attention_grad_q_tiled256_bf16",
        (Side::Queries, ..) => "attention_grad_q_tiled256_f32",
        (Side::Keys, 64, _) => "attention_grad_kv_tiled64_f32",
        (Side::Keys, 128, _) => "attention_grad_kv_tiled128_f32",
        (Side::Keys, _, Types::Bf16) => "attention_grad_kv_tiled256_bf16",
        (Side::Keys, ..) => "attention_grad_kv_tiled256_f32",
    };
    let rows = match side {
        Side::Queries => op.m as usize * op.shared(),
        Side::Keys => op.t as usize,
    };
    Tiles { entry, kept, passing, of_thread }.launch(rows, op.g, head, 2 * (kept + passing))
}
