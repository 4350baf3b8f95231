//! Budgets: how much of a card may be planned with, and what a run takes beside what its plan counts.
//!
//! A plan counts tensors. The system, the driver's context, other programs and the allocators take memory
//! too, so a card is never planned to its last byte.

use crate::device::Caps;

/// 10^9 bytes.
const GB: u64 = 1_000_000_000;
/// 2^20 bytes.
const MIB: u64 = 1 << 20;

/// What draws the desktop, and so what it keeps of a card where no driver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desktop {
    /// Windows: 0.5 to 1.5 GB with the number of screens; 1 GB is taken.
    Windows,
    /// macOS: 0.8 GB.
    MacOs,
    /// Linux with Wayland: 0.5 GB.
    Wayland,
    /// Linux with X11: 0.4 GB.
    X11,
    /// No desktop: 0.1 GB.
    Headless,
}

impl Desktop {
    /// Bytes of a card that it keeps.
    pub fn reserve(self) -> u64 {
        match self {
            Desktop::Windows => GB,
            Desktop::MacOs => 8 * GB / 10,
            Desktop::Wayland => 5 * GB / 10,
            Desktop::X11 => 4 * GB / 10,
            Desktop::Headless => GB / 10,
        }
    }
}

/// Bytes of a card that may be planned with: `(total - reserve - 0.3 GB) * 0.9 - 1 GB`, where the reserve is
/// what others hold, as the driver says or by [`Desktop::reserve`]. 0.3 GB are for the driver's context, a
/// tenth for blocks of allocators that are not full, and 1 GB for what the desktop may ask for later.
pub fn safe(total: u64, reserve: u64) -> u64 {
    let free = total.saturating_sub(reserve).saturating_sub(3 * GB / 10);
    (free / 10 * 9).saturating_sub(GB)
}

/// Bytes that a run may take beside its plan, stated before it starts.
///
/// * CPU: recorded programs and buffers of the process; for each thread its stack, its tiles of products and
///   attention, and a chunk of a file that is loaded.
/// * wgpu: pipelines, writes that wait to be submitted (64 MiB) and their staging, and a block of device
///   memory (64 MiB) and of host memory (32 MiB) that are not full.
/// * CUDA: modules, scratch memory of kernels and a pool that grows in blocks.
pub fn overhead(caps: &Caps) -> u64 {
    match caps.backend {
        "cpu" => 32 * MIB + 8 * MIB * caps.threads as u64,
        "wgpu" => 224 * MIB,
        _ => 256 * MIB,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_of_16_gb_has_12_to_13_gb_for_plans() {
        let desktops = [Desktop::Windows, Desktop::MacOs, Desktop::Wayland, Desktop::X11];
        for desktop in desktops {
            let budget = safe(16 * GB, desktop.reserve());
            assert!((12 * GB..=13 * GB).contains(&budget), "{desktop:?}: {budget}");
        }
        // (16 - 0.5 - 0.3) * 0.9 - 1
        assert_eq!(safe(16 * GB, Desktop::Wayland.reserve()), 12_680_000_000);
    }

    #[test]
    fn small_cards_have_nothing_and_do_not_wrap_around() {
        for total in [0, GB / 10, GB, 14 * GB / 10] {
            assert_eq!(safe(total, Desktop::Headless.reserve()), 0);
        }
        assert!(safe(u64::MAX, 0) < u64::MAX);
    }
}
