//! CUDA variants of attention and its gradients: tile shapes, shared and scratch memory.

use super::{Attention, MAX_HEAD};
use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::op::{Cuda, CudaKernel, CudaLaunch};

/// Variants of the forward row.
pub(super) const FORWARD: &[Cuda<Attention>] = &[
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
            "attention_tiled128_f32",
            "attention_tiled256_f32",
            "attention_tiled256_bf16",
        ],
        hot: true,
        align: 4,
        when: |_, _| true,
        launch: tiled,
    },
];

/// Activations in bf16?
fn bf16(operands: &[Spec]) -> bool {
    operands[0].dtype == DType::Bf16
}

/// Can tensor cores take it, in kernels for heads of up to `most` elements? Rows must be whole
/// chunks of 16 bytes, and the largest score must be that of the largest product.
fn takes_mma(op: &Attention, operands: &[Spec], most: u32) -> bool {
    bf16(operands) && op.d.is_multiple_of(8) && op.d <= most && op.scale > 0.0
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
pub(crate) struct Tiles {
    pub(crate) entry: &'static str,
    pub(crate) kept: usize,
    pub(crate) passing: usize,
    pub(crate) of_thread: usize,
}

impl Tiles {
    /// A launch over `rows` rows of each of `g` heads. Tiles of a kernel lie in shared memory in
    /// rows of `head + 4`, weights in rows of `passing + 4`.
    pub(crate) fn launch(&self, rows: usize, g: u32, head: usize, tiles: usize) -> CudaKernel {
        let blocks = rows.div_ceil(self.kept) * g as usize;
        let shared = 4 * (tiles * (head + 4) + self.kept * (self.passing + 4));
        CudaKernel::new(self.entry, blocks, (self.kept / self.of_thread * 16) as u32).shared(shared)
    }

    /// The forward kernels' tiles for heads of up to `head` elements; `entries` for up to 64, 128, 256.
    pub(crate) fn forward(head: usize, entries: [&'static str; 3]) -> Tiles {
        let (kept, passing, entry) = match head {
            64 => (64, 64, entries[0]),
            128 => (64, 32, entries[1]),
            _ => (32, 16, entries[2]),
        };
        Tiles { entry, kept, passing, of_thread: 4 }
    }
}

/// Head size of the smallest tiled kernels that take this one.
pub(crate) fn head_size(d: u32) -> usize {
    match d {
        0..=64 => 64,
        65..=128 => 128,
        _ => 256,
    }
}

fn tiled(op: &Attention, operands: &[Spec], _: &Caps) -> CudaLaunch {
    let (head, entries) = if bf16(operands) {
        (256, ["", "", "attention_tiled256_bf16"])
    } else {
        (head_size(op.d), ["attention_tiled64_f32", "attention_tiled128_f32", "attention_tiled256_f32"])
    };
    let tiles = Tiles::forward(head, entries);
    tiles.launch(op.m as usize * op.shared(), op.g, head, tiles.kept + 2 * tiles.passing).into()
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
    let wide = bf16(operands);
    let head = if wide { 256 } else { head_size(op.d) };
    let (kept, passing, of_thread) = match head {
        64 => (64, 64, 4),
        128 => (32, 32, 4),
        _ => (16, 16, 2),
    };
    let entry = match (side, head, wide) {
        (Side::Queries, 64, _) => "attention_grad_q_tiled64_f32",
        (Side::Queries, 128, _) => "attention_grad_q_tiled128_f32",
        (Side::Queries, _, true) => "attention_grad_q_tiled256_bf16",
        (Side::Queries, ..) => "attention_grad_q_tiled256_f32",
        (Side::Keys, 64, _) => "attention_grad_kv_tiled64_f32",
        (Side::Keys, 128, _) => "attention_grad_kv_tiled128_f32",
        (Side::Keys, _, true) => "attention_grad_kv_tiled256_bf16",
        (Side::Keys, ..) => "attention_grad_kv_tiled256_f32",
    };
    let rows = match side {
        Side::Queries => op.m as usize * op.shared(),
        Side::Keys => op.t as usize,
    };
    Tiles { entry, kept, passing, of_thread }.launch(rows, op.g, head, 2 * (kept + passing)).into()
}
