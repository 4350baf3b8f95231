//! What elementwise rows share.

use crate::op::Size;

/// Elements that one CPU task takes: 16 KiB of each operand.
pub(super) const BLOCK: usize = 4096;

/// `(m, k)` of test cases.
pub(super) fn shapes(size: Size) -> Vec<(u32, u32)> {
    match size {
        Size::Small => vec![(3, 4)],
        Size::Ragged => vec![(1, 1), (5, 67), (3, 5003)],
        Size::Bench => vec![(1, 768), (512, 768), (512, 6912)],
    }
}
