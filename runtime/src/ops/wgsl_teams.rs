//! WGSL variants in which teams of invocations share four rows of a weight matrix.
//!
//! A workgroup of 256 holds `256 / LANES` teams; a team reads its four rows side by side, so that
//! activations are fetched once for four weights, and adds up in a tree or by subgroups.

use crate::dtype::{DType, Spec};
use crate::op::Launch;

/// Workgroups and the width of teams for `quads` times four rows of weights, each of `units` loads, that meet
/// `blocks` blocks of rows of activations.
///
/// A lane takes two units or more. Where that leaves a device idle (few rows), teams are widened: the
/// depth is split.
pub(super) fn launch(quads: usize, units: usize, blocks: usize) -> Launch {
    const BUSY: usize = 256;
    let mut lanes = (units / 2).next_power_of_two().clamp(8, 64);
    while lanes < 256 && lanes < units && quads * blocks * lanes / 256 < BUSY {
        lanes *= 2;
    }
    Launch::groups(quads.div_ceil(256 / lanes) * blocks).with("LANES", lanes)
}

/// Loads of a row of ternary codes: words, or with `vec` 16 bytes.
pub(super) fn ternary_units(w: &Spec, vec: bool) -> usize {
    w.row_bytes() as usize / if vec { 16 } else { 4 }
}

/// Does a variant for `rows` rows of activations, 1.6-bit codes (`t1`) and loads of 16 bytes (`vec`) take these
/// weights and `m` rows?
pub(super) fn takes(w: &Spec, m: u32, rows: u32, t1: bool, vec: bool) -> bool {
    let dtype = if t1 { DType::T1 } else { DType::T2 };
    w.dtype == dtype && (rows > 1 || m == 1) && (!vec || w.row_bytes().is_multiple_of(16))
}

/// What a variant has no condition or override to add for.
pub(super) fn any<K>(_: &K, _: &[Spec]) -> bool {
    true
}

/// See [`any`].
pub(super) fn plain(launch: Launch, _: &[Spec]) -> Launch {
    launch
}

/// WGSL variants of a ternary row: for one and for four rows of activations; codes in two bits in loads of 16
/// bytes or of words, and in 1.6 bits; with subgroups and without; then those of `$tail`. `$w` is the operand
/// of codes, `$when` a further condition, `$quads` the number of quadruples of rows of codes, `$finish`
/// completes a launch.
macro_rules! ternary_variants {
    ($file:literal, $w:literal, $when:path, $quads:path, $finish:path $(, $tail:expr)* $(,)?) => {
        &[
            ternary_variants!(@ "subgroup.v", $file, $w, 1, 0, 1, 1, $when, $quads, $finish),
            ternary_variants!(@ "subgroup", $file, $w, 1, 0, 0, 1, $when, $quads, $finish),
            ternary_variants!(@ "subgroup.t1", $file, $w, 1, 1, 0, 1, $when, $quads, $finish),
            ternary_variants!(@ "subgroup4.v", $file, $w, 4, 0, 1, 1, $when, $quads, $finish),
            ternary_variants!(@ "subgroup4", $file, $w, 4, 0, 0, 1, $when, $quads, $finish),
            ternary_variants!(@ "subgroup4.t1", $file, $w, 4, 1, 0, 1, $when, $quads, $finish),
            ternary_variants!(@ "matvec.v", $file, $w, 1, 0, 1, 0, $when, $quads, $finish),
            ternary_variants!(@ "matvec", $file, $w, 1, 0, 0, 0, $when, $quads, $finish),
            ternary_variants!(@ "matvec.t1", $file, $w, 1, 1, 0, 0, $when, $quads, $finish),
            ternary_variants!(@ "matvec4.v", $file, $w, 4, 0, 1, 0, $when, $quads, $finish),
            ternary_variants!(@ "matvec4", $file, $w, 4, 0, 0, 0, $when, $quads, $finish),
            ternary_variants!(@ "matvec4.t1", $file, $w, 4, 1, 0, 0, $when, $quads, $finish),
            $($tail),*
        ]
    };
    (@ $name:literal, $file:literal, $w:literal, $rows:literal, $t1:literal, $vec:literal, $sub:literal,
        $when:path, $quads:path, $finish:path) => {
        $crate::op::Wgsl {
            name: $name,
            file: $file,
            needs: if $sub == 1 { $crate::op::Needs::SUBGROUPS } else { $crate::op::Needs::NONE },
            defines: &[("ROWS", $rows), ("T1", $t1), ("VEC", $vec), ("SUBGROUPS", $sub), ("FLOAT", 0)],
            when: |op, s| $crate::ops::wgsl_teams::takes(&s[$w], op.m, $rows, $t1 == 1, $vec == 1) && $when(op, s),
            launch: |op, s| {
                let units = $crate::ops::wgsl_teams::ternary_units(&s[$w], $vec == 1);
                let blocks = (op.m as usize).div_ceil($rows);
                $finish($crate::ops::wgsl_teams::launch($quads(op), units, blocks), s)
            },
        }
    };
}
pub(super) use ternary_variants;

/// WGSL variants of `$head`, then those of a product of f32 activations with weights kept in few bits: by teams
/// for few rows of activations, by tiles for more. Each kind of weights has a suffix of names, its number in
/// `weights.wgsl` and its dtype; `$when` is a further condition.
macro_rules! weights_variants {
    ($grouped:literal, $when:path, [$($head:expr),* $(,)?] $(, ($name:literal, $weights:literal, $dtype:expr))+) => {
        &[
            $($head,)*
            $(
                weights_variants!(@ concat!("subgroup.", $name), $grouped, $when, $weights, 1, 1, $dtype),
                weights_variants!(@ concat!("subgroup4.", $name), $grouped, $when, $weights, 4, 1, $dtype),
                weights_variants!(@ concat!("gemv.", $name), $grouped, $when, $weights, 1, 0, $dtype),
                weights_variants!(@ concat!("gemv4.", $name), $grouped, $when, $weights, 4, 0, $dtype),
                $crate::op::Wgsl {
                    name: concat!("tiled.", $name),
                    file: "weights_matmul",
                    needs: $crate::op::Needs::NONE,
                    defines: &[("WEIGHTS", $weights), ("GROUPED", $grouped), ("BF16", 0)],
                    when: |op, s| s[1].dtype == $dtype && $when(op, s),
                    launch: |op, _| $crate::ops::matmul::tiles(op.m, op.n),
                },
            )+
        ]
    };
    (@ $name:expr, $grouped:literal, $when:path, $weights:literal, $rows:literal, $sub:literal, $dtype:expr) => {
        $crate::op::Wgsl {
            name: $name,
            file: "weights_gemv",
            needs: if $sub == 1 { $crate::op::Needs::SUBGROUPS } else { $crate::op::Needs::NONE },
            defines: &[("WEIGHTS", $weights), ("GROUPED", $grouped), ("ROWS", $rows), ("SUBGROUPS", $sub), ("FLOAT", 1)],
            when: |op, s| op.m <= if $rows == 1 { 1 } else { 8 } && s[1].dtype == $dtype && $when(op, s),
            launch: |op, _| {
                let (quads, units) = ((op.n as usize).div_ceil(4), (op.k as usize).div_ceil(16));
                $crate::ops::wgsl_teams::launch(quads, units, (op.m as usize).div_ceil($rows))
            },
        }
    };
}
pub(super) use weights_variants;

/// WGSL variants of `$head`, then those of look-ups in tables kept in few bits.
macro_rules! table_variants {
    ($grouped:literal, $columns:ident, [$($head:expr),* $(,)?] $(, ($name:literal, $weights:literal, $dtype:expr))+) => {
        &[
            $($head,)*
            $(
                $crate::op::Wgsl {
                    name: $name,
                    file: "weights_gather",
                    needs: $crate::op::Needs::NONE,
                    defines: &[("WEIGHTS", $weights), ("GROUPED", $grouped)],
                    when: |_, s| s[0].dtype == $dtype && s.last().is_some_and(|y| y.dtype == $crate::dtype::DType::F32),
                    launch: |op, _| $crate::op::Launch::groups((op.m as usize * op.$columns as usize).div_ceil(256)),
                },
            )+
        ]
    };
}
pub(super) use table_variants;
