//! What a plan is held against: a limit, a card's memory, or a device that is here.

use crate::cli::Plan;
use serde::Serialize;
use tritter_runtime::Device;
use tritter_runtime::budget::{Desktop, safe};
use tritter_runtime::error::bytes;

/// What draws the desktop, of `--desktop`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DesktopName {
    /// Keeps 1 GB of a card
    Windows,
    /// Keeps 0.8 GB
    Macos,
    /// Keeps 0.5 GB
    Wayland,
    /// Keeps 0.4 GB
    X11,
    /// Keeps 0.1 GB
    Headless,
}

impl From<DesktopName> for Desktop {
    fn from(name: DesktopName) -> Desktop {
        match name {
            DesktopName::Windows => Desktop::Windows,
            DesktopName::Macos => Desktop::MacOs,
            DesktopName::Wayland => Desktop::Wayland,
            DesktopName::X11 => Desktop::X11,
            DesktopName::Headless => Desktop::Headless,
        }
    }
}

/// The desktop that was named, else the one that this program runs under.
pub(crate) fn desktop(named: Option<DesktopName>) -> Desktop {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match named {
        Some(name) => name.into(),
        None if cfg!(windows) => Desktop::Windows,
        None if cfg!(target_os = "macos") => Desktop::MacOs,
        None if set("WAYLAND_DISPLAY") => Desktop::Wayland,
        None if set("DISPLAY") => Desktop::X11,
        None => Desktop::Headless,
    }
}

/// Bytes that a plan must fit into, and where they come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Budget {
    pub(crate) bytes: u64,
    pub(crate) gib: f64,
    /// All memory of the card, and what the system keeps of it.
    pub(crate) device_memory: Option<u64>,
    pub(crate) reserve: Option<u64>,
    /// How it was found, a sentence.
    pub(crate) by: String,
}

impl Budget {
    /// Of the command line; `None` where it names neither limit, memory nor device.
    pub(crate) fn of(args: &Plan, device: Option<&Device>) -> Option<Budget> {
        let new = |total: u64, card: Option<(u64, u64)>, by: String| Budget {
            bytes: total,
            gib: super::parts::gib(total),
            device_memory: card.map(|(all, _)| all),
            reserve: card.map(|(_, reserve)| reserve),
            by,
        };
        if let Some(limit) = args.cache.memory_limit {
            return Some(new(limit, None, "as --memory-limit says".into()));
        }
        if let Some(all) = args.device_memory {
            let desktop = desktop(args.desktop);
            let reserve = desktop.reserve();
            let by = format!(
                "the safe part of {}: ({:.2} - {:.1} kept by {} - 0.3) * 0.9 - 1 GB",
                bytes(all),
                all as f64 / 1e9,
                reserve as f64 / 1e9,
                name(desktop)
            );
            return Some(new(safe(all, reserve), Some((all, reserve)), by));
        }
        let device = device?;
        let caps = device.caps();
        let by = match caps.memory.filter(|_| caps.discrete) {
            Some(free) => {
                format!("the safe part of {} that {} has free: (free - 0.3) * 0.9 - 1 GB", bytes(free), device.label())
            }
            None => format!("what {} has free, as its system says", device.label()),
        };
        device.budget().map(|bytes| new(bytes, None, by))
    }
}

fn name(desktop: Desktop) -> &'static str {
    match desktop {
        Desktop::Windows => "Windows",
        Desktop::MacOs => "macOS",
        Desktop::Wayland => "Wayland",
        Desktop::X11 => "X11",
        Desktop::Headless => "a system without a desktop",
    }
}
