//! WGSL variants of attention over caches: tiles for a prompt, on cooperative matrices where keys are f16 or codes;
//! for other rows a workgroup for each part of the keys, by loads of 16 bytes where rows allow it, with subgroups and
//! without.

use super::Shape;
use super::codes::Block;
use crate::dtype::{DType, Spec};
use crate::op::{Launch, Needs, Wgsl};
use crate::ops::paged_attention::PagedAttention;
use crate::ops::quantized_attention::QuantizedAttention;

/// Invocations that share a key, of the 128 of a workgroup.
const LANES: usize = 4;

/// Tiles of 16 rows of queries.
fn prompt_launch(shape: &Shape) -> Launch {
    Launch::groups(shape.g * (shape.m * shape.shared()).div_ceil(16)).with("DEPTHS", shape.d.div_ceil(32))
}

/// Workgroups of a decode, over tiles of `tile` keys, with queries of `elements` of which an invocation takes `spread`
/// at a time.
fn decode_launch(shape: &Shape, tile: usize, elements: usize, spread: usize) -> Launch {
    // Eight heads side by side leave room in 16 KiB for queries of 128 elements.
    let quads = if shape.shared() > 4 && shape.d <= 128 { 2 } else { 1 };
    let blocks = shape.shared().div_ceil(4 * quads);
    // Neighbours are apart already where an invocation takes one or two elements.
    let spread = if spread < 4 { elements } else { spread };
    let launch = Launch::groups(shape.parts * shape.m * shape.g * blocks);
    let launch = launch.with("QUADS", quads).with("TILE", tile).with("EACH", tile * LANES / 128).with("LANES", LANES);
    launch.with("QUERY", (elements + elements / spread) * quads).with("SPREAD", spread)
}

/// Does a decode variant take a cache of this dtype? `vec`: by loads of 16 bytes.
fn takes(op: &PagedAttention, operands: &[Spec], half: bool, vec: bool) -> bool {
    let dtype = if half { DType::F16 } else { DType::F32 };
    op.prompt == 0 && operands[2].dtype == dtype && (!vec || op.d.is_multiple_of(if half { 8 } else { 4 }))
}

macro_rules! paged_decode {
    ($name:literal, $half:literal, $vec:literal, $sub:literal) => {
        Wgsl {
            name: $name,
            file: "paged_attention",
            needs: if $sub == 1 { Needs::SUBGROUPS } else { Needs::NONE },
            defines: &[("HALF", $half), ("VEC", $vec), ("SUBGROUPS", $sub), ("FLOAT", 1)],
            when: |op, operands| takes(op, operands, $half == 1, $vec == 1),
            launch: |op, _| {
                let of_load = if $vec == 1 { 4 } else { 1 } * if $half == 1 { 2 } else { 1 };
                decode_launch(&op.shape(), 64, op.d as usize, of_load)
            },
        }
    };
}

macro_rules! paged_prompt {
    ($name:literal, $half:literal, $dtype:expr) => {
        paged_prompt!(@ $name, $half, $dtype, 0, Needs::NONE)
    };
    ($name:literal, $side:literal) => {
        paged_prompt!(@ $name, 1, DType::F16, $side, Needs::matrix($side))
    };
    (@ $name:literal, $half:literal, $dtype:expr, $side:literal, $needs:expr) => {
        Wgsl {
            name: $name,
            file: "paged_prompt",
            needs: $needs,
            defines: &[("HALF", $half), ("SIDE", $side), ("PLAIN", ($side == 0) as i64)],
            when: |op, operands| op.prompt == 1 && operands[2].dtype == $dtype,
            launch: |op, _| prompt_launch(&op.shape()),
        }
    };
}

/// Variants of `paged_attention`.
pub(crate) const PAGED: &[Wgsl<PagedAttention>] = &[
    paged_prompt!("prompt.matrix16", 16),
    paged_prompt!("prompt.matrix8", 8),
    paged_prompt!("prompt.f16", 1, DType::F16),
    paged_prompt!("prompt", 0, DType::F32),
    paged_decode!("subgroup.f16.v", 1, 1, 1),
    paged_decode!("subgroup.f16", 1, 0, 1),
    paged_decode!("subgroup.v", 0, 1, 1),
    paged_decode!("subgroup", 0, 0, 1),
    paged_decode!("decode.f16.v", 1, 1, 0),
    paged_decode!("decode.f16", 1, 0, 0),
    paged_decode!("decode.v", 0, 1, 0),
    paged_decode!("decode", 0, 0, 0),
];

/// The block's format for a shader.
pub(crate) fn with_block(launch: Launch, block: &Block) -> Launch {
    launch.with("BITS", block.bits).with("PRECISE", usize::from(block.precise))
}

/// Do keys fill loads of 16 bytes, and these the invocations that share a key?
fn wide(block: &Block) -> bool {
    block.row_words().is_multiple_of(4) && block.row_words() / 4 >= LANES
}

macro_rules! quantized_decode {
    ($name:literal, $vec:literal, $sub:literal) => {
        Wgsl {
            name: $name,
            file: "quantized_attention",
            needs: if $sub == 1 { Needs::SUBGROUPS } else { Needs::NONE },
            defines: &[("VEC", $vec), ("SUBGROUPS", $sub), ("FLOAT", 1)],
            when: |op, _| op.prompt == 0 && ($vec == 0 || wide(&op.block())),
            launch: |op, _| {
                let (block, words) = (op.block(), if $vec == 1 { 4 } else { 1 });
                let of_word = 32 / block.bits;
                let launch = decode_launch(&op.shape(), block.page, block.row_words() * of_word, words * of_word);
                with_block(launch, &block)
            },
        }
    };
}

/// Codes on matrices, keys of the ring in f32 all the same.
macro_rules! quantized_prompt {
    ($name:literal, $side:literal, $needs:expr) => {
        Wgsl {
            name: $name,
            file: "quantized_prompt",
            needs: $needs,
            defines: &[("VEC", 0), ("SIDE", $side), ("PLAIN", 1)],
            when: |op, _| op.prompt == 1,
            launch: |op, _| with_block(prompt_launch(&op.shape()), &op.block()),
        }
    };
}

/// Variants of `quantized_attention`.
pub(crate) const QUANTIZED: &[Wgsl<QuantizedAttention>] = &[
    quantized_prompt!("prompt.matrix16", 16, Needs::matrix(16)),
    quantized_prompt!("prompt.matrix8", 8, Needs::matrix(8)),
    quantized_prompt!("prompt", 0, Needs::NONE),
    quantized_decode!("subgroup.v", 1, 1),
    quantized_decode!("subgroup", 0, 1),
    quantized_decode!("decode.v", 1, 0),
    quantized_decode!("decode", 0, 0),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::Mask;

    #[test]
    fn queries_of_a_decode_leave_room_for_the_rest_of_16_kib() {
        for (d, shared) in (2..=256).step_by(2).flat_map(|d| [1, 4, 5, 9].map(|shared| (d, shared))) {
            let (m, page, e) = (1, 32, 1);
            let mask = Mask::WHOLE;
            let shape = Shape { m, h: shared, d, g: 1, scale: 1.0, mask, page, e, parts: 1, prompt: false };
            let of = |elements, spread| {
                let launch = decode_launch(&shape, page, elements, spread);
                launch.overrides.iter().find(|(name, _)| *name == "QUERY").map_or(f64::MAX, |(_, n)| *n)
            };
            assert!([1, 2, 4, 8].iter().all(|&spread| of(d, spread) <= 320.0), "{d} elements, {shared} heads");
            for (bits, words) in [2, 4, 8].into_iter().flat_map(|bits| [(bits, 1), (bits, 4)]) {
                let block = Block { page, d, bits, precise: true };
                let elements = block.row_words() * 32 / bits;
                assert!(of(elements, words * 32 / bits) <= 320.0, "{block:?}, {shared} heads");
            }
        }
    }
}
