//! `tritter devices`.

use crate::cli::Global;
use crate::output;
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;
use tritter_runtime::device::Caps;
use tritter_runtime::error::bytes;

#[derive(Serialize)]
struct Entry {
    id: String,
    name: String,
    driver: String,
    software: bool,
    discrete: bool,
    f16: bool,
    subgroups: (u32, u32),
    max_binding: u64,
    memory: Option<u64>,
}

impl From<&Caps> for Entry {
    fn from(caps: &Caps) -> Entry {
        Entry {
            id: caps.id.clone(),
            name: caps.name.clone(),
            driver: caps.driver.clone(),
            software: caps.software,
            discrete: caps.discrete,
            f16: caps.f16,
            subgroups: caps.subgroups,
            max_binding: caps.max_binding,
            memory: caps.memory,
        }
    }
}

#[derive(Serialize)]
struct Report {
    devices: Vec<Entry>,
    auto: String,
    reason: String,
    cuda: String,
}

pub(crate) fn run(global: &Global) -> Result<ExitCode> {
    let mut all = vec![tritter_runtime::cpu::open().caps().clone()];
    all.extend(tritter_runtime::gpu::list());
    let choice = tritter_runtime::Device::choose("auto")?;
    let cuda = match tritter_cuda::probe() {
        tritter_cuda::Probe::Driver { version } => {
            format!("driver for CUDA {version}; no CUDA kernels in this build yet")
        }
        tritter_cuda::Probe::Absent { why } => why,
    };
    let report = Report {
        devices: all.iter().map(Entry::from).collect(),
        auto: choice.device.caps().id.clone(),
        reason: choice.reason,
        cuda,
    };
    if global.json {
        output::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = report.devices.iter().map(row).collect();
    output::print(&output::table(
        &["device", "name", "driver", "kind", "f16", "subgroups", "binding", "memory"],
        &rows,
    ))?;
    output::print(&format!("auto takes {}: {}\ncuda: {}\n", report.auto, report.reason, report.cuda))?;
    Ok(ExitCode::SUCCESS)
}

fn row(entry: &Entry) -> Vec<String> {
    let kind = match (entry.id.as_str(), entry.software, entry.discrete) {
        ("cpu", _, _) => "processor",
        (_, true, _) => "software",
        (_, _, true) => "discrete",
        _ => "integrated",
    };
    let subgroups = match entry.subgroups {
        (_, 0) => "none".into(),
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("{least}-{most}"),
    };
    let binding = if entry.max_binding == u64::MAX { "any".into() } else { bytes(entry.max_binding) };
    let memory = entry.memory.map_or("unknown".into(), bytes);
    let f16 = if entry.f16 { "yes" } else { "no" };
    vec![
        entry.id.clone(),
        entry.name.clone(),
        entry.driver.clone(),
        kind.into(),
        f16.into(),
        subgroups,
        binding,
        memory,
    ]
}
