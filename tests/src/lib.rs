//! Shared pieces of the tests of every op on every device, golden files and whole programs.

pub mod program;
pub mod translate;

use std::time::{SystemTime, UNIX_EPOCH};
use tritter_runtime::op::Row;
use tritter_runtime::{Device, Opened, gpu};

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

/// The devices that tests run on: the CPU, and the first wgpu adapter, software included.
pub fn devices() -> Vec<Candidate> {
    let cpu = Candidate { label: "cpu".into(), device: Ok(tritter_runtime::cpu::open()), variant: None };
    vec![cpu, wgpu("wgpu", None, false)]
}

/// [`devices`], every WGSL variant by itself, and parameters as uniforms (browsers).
pub fn candidates() -> Vec<Candidate> {
    let mut names: Vec<&str> = Row::all().iter().flat_map(|row| row.wgsl.iter().copied()).collect();
    names.sort_unstable();
    names.dedup();
    let variants = names.into_iter().map(|name| wgpu(&format!("wgpu.{name}"), Some(name.into()), false));
    devices().into_iter().chain(variants).chain([wgpu("wgpu.uniform", None, true)]).collect()
}

fn wgpu(label: &str, variant: Option<String>, uniform_params: bool) -> Candidate {
    let options =
        gpu::Options { allow_software: true, variant: variant.clone(), uniform_params, ..gpu::Options::default() };
    let device = match gpu::open_with(options) {
        Opened::Ready(device) => Ok(device),
        Opened::Absent { why } => Err(why),
    };
    Candidate { label: label.into(), device, variant }
}

/// A seed that no earlier run had; tests print it when they fail.
pub fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
}
