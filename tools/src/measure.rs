//! Memory that a run takes, by measures that are not its own books.
//!
//! * CPU, Linux: growth of the peak of resident pages that no file backs; pages of mapped files are apart, because
//!   the system takes them back when it needs them. The kernel keeps the highest mark of all resident pages
//!   together (`VmHWM` of `/proc/self/status`), but none without those of files. So it is read and set back
//!   (`/proc/self/clear_refs`) fifty times a second: in each of these intervals the mark less the pages of files
//!   is the peak of the others, however short it was, if the pages of files stayed what they were. While those
//!   come and go (loading, streamed layers), and where marks cannot be set back, it is the most that was seen at
//!   these looks. On other systems it is unknown, and said to be.
//! * CUDA: what the driver calls free before, less what it calls free after. The pool gives nothing back
//!   until it is dropped, so this is the peak.
//! * wgpu: bytes that its allocator has reserved, if the adapter's backend reports them.

use parking_lot::Mutex;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tritter_runtime::Device;
use tritter_runtime::error::bytes;

const INTERVAL: Duration = Duration::from_millis(20);
/// Pages of files that may come or go between two looks without a mark being in doubt.
const STEADY: u64 = 4 << 20;
/// Looks without more of a change before and after a mark for it to be trusted: between two looks some may have come
/// while as many went, as in a step that streams.
const CALM: usize = 5;

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
                Some(watch) => watch.growth(),
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
    seen: Arc<Mutex<Seen>>,
    ends: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen of the process's pages so far.
struct Seen {
    /// Bytes of mapped files at the last look.
    files: u64,
    /// The most bytes of other pages.
    peak: u64,
    /// Looks since the pages of files changed.
    calm: usize,
    /// What marks say since then, and nothing has contradicted yet.
    pending: VecDeque<u64>,
    /// Whether the kernel's highest mark is set back at every look.
    marks: bool,
}

/// Pages of this process in bytes.
#[derive(Clone, Copy, Debug)]
struct Pages {
    /// Of no file.
    own: u64,
    /// Of mapped files.
    files: u64,
    /// The most of both together since the mark was set back.
    mark: u64,
}

impl Seen {
    fn look(&mut self) {
        let Some(pages) = Pages::now() else { return };
        self.add(pages);
        // What comes between the look and this is seen by neither: a moment of fifty a second.
        self.marks = self.marks && set_back();
    }

    fn add(&mut self, pages: Pages) {
        if pages.files.abs_diff(self.files) > STEADY {
            self.calm = 0;
            self.pending.clear();
        } else {
            self.calm += 1;
            if self.marks && self.calm > CALM {
                self.pending.push_back(pages.mark.saturating_sub(pages.files.max(self.files)));
            }
        }
        if self.pending.len() > CALM {
            self.peak = self.peak.max(self.pending.pop_front().unwrap_or_default());
        }
        self.peak = self.peak.max(pages.own);
        self.files = pages.files;
    }

    /// The most until now; nothing came after the last marks that could contradict them.
    fn so_far(&self) -> u64 {
        self.pending.iter().fold(self.peak, |peak, &mark| peak.max(mark))
    }
}

impl Watch {
    /// `None` where the system does not say what is resident.
    fn begin() -> Option<Watch> {
        let marks = set_back();
        let Pages { own, files, .. } = Pages::now()?;
        let seen = Arc::new(Mutex::new(Seen { files, peak: own, calm: CALM, pending: VecDeque::new(), marks }));
        let (ends, end) = channel();
        let of_thread = seen.clone();
        let look = move || {
            while end.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                of_thread.lock().look();
            }
        };
        let thread = std::thread::Builder::new().name("memory".into()).spawn(look).ok();
        Some(Watch { before: own, seen, ends: Some(ends), thread })
    }

    fn growth(&self) -> Measured {
        let mut seen = self.seen.lock();
        seen.look();
        let by = match seen.marks {
            true => "growth of peak RSS without mapped files",
            false => "growth of peak RSS without mapped files, looked at each 20 ms",
        };
        Measured { bytes: Some(seen.so_far().saturating_sub(self.before)), by }
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

impl Pages {
    /// `None` where the system does not say.
    fn now() -> Option<Pages> {
        Pages::of(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    /// Of the text of `/proc/self/status`, in which they are in kB of 1024 bytes.
    fn of(status: &str) -> Option<Pages> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let own = field("RssAnon:")? + field("RssShmem:")?;
        Some(Pages { own, files: field("RssFile:")?, mark: field("VmHWM:")? })
    }
}

/// Sets the highest mark of resident pages back to what is resident now; whether the system does that.
fn set_back() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nVmHWM:\t  20 kB\nRssAnon:\t   12 kB\nRssFile:\t 3 kB\nRssShmem:\t 1 kB\n";

    #[test]
    fn fields_are_read_in_bytes_and_absent_ones_are_none() {
        let pages = Pages::of(STATUS).unwrap();
        assert_eq!((pages.own, pages.files, pages.mark), (13 << 10, 3 << 10, 20 << 10));
        for broken in [STATUS.replace("VmHWM", "VmGone"), STATUS.replace("1 kB", "x kB"), String::new()] {
            assert!(Pages::of(&broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn pages_of_files_are_no_part_of_a_peak_between_looks() {
        let mut seen = Seen { files: 10, peak: 100, calm: CALM, pending: VecDeque::new(), marks: true };
        // 200 of files came; nothing else.
        seen.add(Pages { own: 100, files: 210, mark: 310 });
        assert_eq!(seen.so_far(), 100);
        // They went, and 50 others came and went with them.
        seen.add(Pages { own: 100, files: 10, mark: 360 });
        assert_eq!(seen.so_far(), 150);
        let calm = Pages { own: 100, files: 10, mark: 110 };
        (0..CALM + 2).for_each(|_| seen.add(calm));
        assert_eq!((seen.so_far(), seen.peak), (150, 150));
        // In a step that streams, a layer of a file came while another went, and then one more.
        seen.add(Pages { own: 100, files: 10, mark: 110 + STEADY * 2 });
        seen.add(Pages { own: 165, files: 10 + STEADY * 2, mark: 1000 + STEADY * 4 });
        (0..CALM).for_each(|_| seen.add(Pages { own: 165, files: 10 + STEADY * 2, mark: 1000 + STEADY * 4 }));
        assert_eq!(seen.so_far(), 165);
        // Then nothing more comes or goes.
        seen.add(Pages { own: 165, files: 10 + STEADY * 2, mark: 200 + STEADY * 2 });
        assert_eq!(seen.so_far(), 190);
        // Without marks, what is seen counts.
        seen.marks = false;
        seen.add(Pages { own: 191, files: 10 + STEADY * 2, mark: 1000 + STEADY * 4 });
        assert_eq!(seen.so_far(), 191);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_peak_is_seen_after_it_is_over_however_short_it_was() {
        let measure = Measure::begin(&tritter_runtime::cpu::open());
        let (length, tries) = (64 << 20, 20);
        let mut shortest = Duration::MAX;
        for _ in 0..tries {
            let begin = std::time::Instant::now();
            drop(std::hint::black_box(vec![1u8; length]));
            shortest = shortest.min(begin.elapsed());
        }
        let measured = measure.so_far();
        let marks = !measured.by.contains("each 20 ms");
        // The kernel counts pages by thread and adds them up in batches.
        let least = (length - (1 << 20)) as u64;
        assert!(measured.bytes.unwrap() >= least || (!marks && shortest < INTERVAL), "{measured:?}");
        assert!(measure.so_far().bytes.unwrap() >= measured.bytes.unwrap());
    }
}
