//! Memory that a run takes, by measures that are not its own books.
//!
//! * CPU, Linux: growth of the peak of resident pages that no file backs (`RssAnon` and `RssShmem` of
//!   `/proc/self/status`), looked at fifty times a second. Pages of mapped files are apart: the system takes
//!   them back when it needs them. On other systems it is unknown, and said to be.
//! * CUDA: what the driver calls free before, less what it calls free after. The pool gives nothing back
//!   until it is dropped, so this is the peak.
//! * wgpu: bytes that its allocator has reserved, if the adapter's backend reports them.

use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tritter_runtime::Device;
use tritter_runtime::error::bytes;

const INTERVAL: Duration = Duration::from_millis(20);

/// What a measurement found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    /// `None` where the system does not say.
    pub(crate) bytes: Option<u64>,
    /// What was read.
    pub(crate) by: &'static str,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bytes {
            Some(measured) => write!(f, "{} measured ({})", bytes(measured), self.by),
            None => write!(f, "measured: unknown ({})", self.by),
        }
    }
}

/// A plan and what was measured of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MemoryReport {
    /// Bytes that the plan counts.
    pub(crate) planned_bytes: u64,
    /// Bytes that the run may take beside it, stated in advance.
    pub(crate) overhead_bytes: u64,
    pub(crate) measured: Measured,
}

impl MemoryReport {
    /// Of a run on a device.
    pub(crate) fn of(device: &Device, planned_bytes: u64, measure: &Measure) -> MemoryReport {
        let overhead_bytes = tritter_runtime::budget::overhead(device.caps());
        MemoryReport { planned_bytes, overhead_bytes, measured: measure.so_far() }
    }
}

impl std::fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [planned, overhead] = [self.planned_bytes, self.overhead_bytes].map(bytes);
        write!(f, "memory {planned} planned, at most {overhead} beside it; {}", self.measured)
    }
}

/// A measurement under way; begins before weights are loaded.
pub(crate) struct Measure {
    device: Device,
    free: Option<u64>,
    pages: Option<Watch>,
}

impl Measure {
    /// Begins on an open device.
    pub(crate) fn begin(device: &Device) -> Measure {
        let pages = (device.caps().backend == "cpu").then(Watch::begin).flatten();
        Measure { device: device.clone(), free: device.backend().free(), pages }
    }

    /// What was taken at most since then.
    pub(crate) fn so_far(&self) -> Measured {
        let backend = self.device.backend();
        match self.device.caps().backend {
            "cpu" => match &self.pages {
                Some(watch) => Measured { bytes: Some(watch.growth()), by: "growth of peak RSS without mapped files" },
                None => Measured { bytes: None, by: "this system does not tell mapped files from other pages" },
            },
            "wgpu" => Measured { bytes: backend.memory().reserved, by: "reserved by the allocator" },
            _ => {
                let taken = self.free.zip(backend.free()).map(|(before, now)| before.saturating_sub(now));
                Measured { bytes: taken, by: "the driver's free memory before and after" }
            }
        }
    }
}

/// Looks at the process's pages until it is dropped.
struct Watch {
    before: u64,
    peak: Arc<AtomicU64>,
    ends: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// `None` where the system does not say what is resident.
    fn begin() -> Option<Watch> {
        let before = resident()?;
        let peak = Arc::new(AtomicU64::new(before));
        let (ends, end) = channel();
        let seen = peak.clone();
        let look = move || {
            while end.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                seen.fetch_max(resident().unwrap_or(0), Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("memory".into()).spawn(look).ok();
        Some(Watch { before, peak, ends: Some(ends), thread })
    }

    fn growth(&self) -> u64 {
        let now = resident().unwrap_or(0);
        self.peak.fetch_max(now, Ordering::Relaxed).max(now).saturating_sub(self.before)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.ends.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Bytes of this process that are resident and belong to no file.
#[cfg(target_os = "linux")]
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(field(&status, "RssAnon:")? + field(&status, "RssShmem:")?)
}

#[cfg(not(target_os = "linux"))]
fn resident() -> Option<u64> {
    None
}

/// A field of `/proc/self/status`, which is in kB of 1024 bytes.
#[cfg(target_os = "linux")]
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes_and_absent_ones_are_none() {
        let status = "Name:\tx\nRssAnon:\t   12 kB\nRssFile:\t 3 kB\nRssShmem:\t x kB\n";
        assert_eq!(field(status, "RssAnon:"), Some(12 * 1024));
        assert_eq!(field(status, "RssShmem:"), None);
        assert_eq!(field(status, "RssGone:"), None);
    }

    #[test]
    fn a_peak_is_seen_after_it_is_over() {
        let measure = Measure::begin(&tritter_runtime::cpu::open());
        let large = vec![1u8; 64 << 20];
        assert!(std::hint::black_box(&large).iter().all(|&b| b == 1));
        let during = measure.so_far().bytes.unwrap();
        drop(large);
        assert!(during >= 64 << 20, "{during}");
        assert!(measure.so_far().bytes.unwrap() >= during);
    }
}
