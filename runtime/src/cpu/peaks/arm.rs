//! A loop that does nothing but multiply.

use super::Loop;
use std::arch::aarch64::*;
use std::arch::asm;
use std::hint::black_box;

/// Accumulators: enough that none waits for its own last sum.
const CHAINS: usize = 12;

/// The best int8 instruction: a loop of so many rounds that gives the operations it did, and its name.
pub(super) fn dot() -> Option<Loop> {
    // SAFETY: the feature is there.
    std::arch::is_aarch64_feature_detected!("dotprod").then_some((|rounds| unsafe { sdot(rounds) }, "sdot, 16 bytes"))
}

/// # Safety
/// The CPU must have the dot product instructions.
unsafe fn sdot(rounds: usize) -> u64 {
    // SAFETY: every aarch64 CPU has NEON; the caller promises the dot product; it touches registers only.
    unsafe {
        let (a, b) = (black_box(vdupq_n_s8(1)), black_box(vdupq_n_s8(3)));
        let mut acc = [vdupq_n_s32(0); CHAINS];
        for _ in 0..rounds {
            for acc in &mut acc {
                asm!(
                    ".arch_extension dotprod",
                    "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                    inout(vreg) *acc, in(vreg) a, in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
        black_box(acc);
    }
    (rounds * CHAINS * 32) as u64
}
