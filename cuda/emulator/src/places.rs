//! Program counters as places of the source, by way of `addr2line`.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The places of one compiled library.
#[derive(Debug)]
pub(crate) struct Places {
    library: PathBuf,
    known: Mutex<HashMap<u32, String>>,
}

impl Places {
    pub(crate) fn new(library: &Path) -> Places {
        Places { library: library.into(), known: Mutex::default() }
    }

    /// `file:line`, and where that was inlined: `tritter.cuh:145 in rms_norm.cu:22`. Empty if unknown.
    pub(crate) fn of(&self, at: u32) -> String {
        if at == 0 {
            return String::new();
        }
        self.known.lock().entry(at).or_insert_with(|| self.ask(at).unwrap_or_default()).clone()
    }

    /// Do two counters show the same place with the same callers?
    pub(crate) fn same(&self, a: u32, b: u32) -> bool {
        let a = self.of(a);
        !a.is_empty() && a == self.of(b)
    }

    fn ask(&self, at: u32) -> Option<String> {
        let answer = Command::new("addr2line").arg("-ie").arg(&self.library).arg(format!("0x{at:x}")).output().ok()?;
        let text = String::from_utf8(answer.stdout).ok()?;
        let mut frames: Vec<String> = text.lines().filter_map(frame).collect();
        frames.dedup();
        Some(frames.join(" in "))
    }
}

/// `/a/b/file.cu:12 (discriminator 3)` as `file.cu:12`; nothing for the emulator's header.
fn frame(line: &str) -> Option<String> {
    let place = line.split_whitespace().next()?;
    let name = place.rsplit('/').next()?;
    (!name.starts_with('?') && !name.starts_with("emulated.cuh") && !name.ends_with(":0") && !name.ends_with(":?"))
        .then(|| name.to_string())
}
