//! Shared pieces of the tests of every op on every device, golden files and whole programs.

pub mod translate;

use std::time::{SystemTime, UNIX_EPOCH};
use tritter_runtime::Device;
use tritter_runtime::op::Row;

/// A device to test on, or the reason why it is absent.
pub struct Candidate {
    /// Name in reports, variant included.
    pub label: String,
    /// The device.
    pub device: Result<Device, String>,
    /// The one variant that is to run; `None` for what the device chooses.
    pub variant: Option<String>,
}

impl Candidate {
    /// Has the row anything to run here?
    pub fn runs(&self, row: &Row) -> bool {
        self.variant.as_ref().is_none_or(|v| row.wgsl.contains(&v.as_str()))
    }
}

/// All devices that tests run on.
pub fn candidates() -> Vec<Candidate> {
    vec![Candidate { label: "cpu".into(), device: Ok(tritter_runtime::cpu::open()), variant: None }]
}

/// A seed that no earlier run had; tests print it when they fail.
pub fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
}
