//! `tritter devices`: what there is, what `auto` takes, and which kernels run each row where.

use crate::cli::Global;
use crate::{device, output};
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;
use tritter_runtime::device::{Caps, Runs};
use tritter_runtime::error::bytes;
use tritter_runtime::op::{Case, Row, Size};
use tritter_runtime::{Device, Opened};

#[derive(Serialize)]
struct Entry {
    id: String,
    name: String,
    driver: String,
    software: bool,
    discrete: bool,
    f16: bool,
    subgroups: (u32, u32),
    /// Sides of cooperative matrices in shaders.
    matrices: Vec<u32>,
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
            matrices: caps.matrices.clone(),
            max_binding: caps.max_binding,
            memory: caps.memory,
        }
    }
}

/// The variants that a device takes for the cases of one row, in the order of first use.
#[derive(Serialize)]
struct Variants {
    row: &'static str,
    /// One list for each of [`Report::columns`].
    variants: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct Report {
    devices: Vec<Entry>,
    auto: String,
    reason: String,
    cuda: String,
    /// Devices of the variant lists: the ids above, and `cuda (no card)` where there is none.
    columns: Vec<String>,
    rows: Vec<Variants>,
}

pub(crate) fn run(global: &Global) -> Result<ExitCode> {
    let cuda = tritter_cuda::status();
    let devices = all();
    let choice = device::choose("auto")?;
    let mut columns: Vec<String> = devices.iter().map(|d| d.caps().id.clone()).collect();
    let card = devices.iter().any(|d| d.caps().backend == "cuda");
    if !card {
        columns.push("cuda (no card)".into());
    }
    let rows = Row::all().iter().map(|row| Variants {
        row: row.name,
        variants: devices
            .iter()
            .map(|device| used(row, |case| on(device, case)))
            .chain((!card).then(|| used(row, without_card)))
            .collect(),
    });
    let report = Report {
        devices: devices.iter().map(|d| Entry::from(d.caps())).collect(),
        auto: choice.device.caps().id.clone(),
        reason: choice.reason,
        cuda,
        columns,
        rows: rows.collect(),
    };
    if global.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything that can be opened.
fn all() -> Vec<Device> {
    let ready = |opened| match opened {
        Opened::Ready(device) => Some(device),
        Opened::Absent { .. } => None,
    };
    let cards = 0..tritter_cuda::count();
    let cards = cards.map(|i| tritter_cuda::open(Some(i), tritter_cuda::Options::default()));
    let adapters = 0..tritter_runtime::gpu::list().len();
    let adapters = adapters.map(|i| tritter_runtime::gpu::open(Some(i), true));
    std::iter::once(tritter_runtime::cpu::open()).chain(cards.chain(adapters).filter_map(ready)).collect()
}

/// The variants that a row's cases of real size use.
fn used(row: &Row, variant: impl Fn(&Case) -> Option<&'static str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for case in (row.cases)(Size::Bench) {
        let name = variant(&case).unwrap_or("missing").to_string();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn on(device: &Device, case: &Case) -> Option<&'static str> {
    match device.runs(&case.op, &case.specs()) {
        Runs::Native(name) => Some(name),
        Runs::ThroughF32(_) => Some("through f32"),
        Runs::Missing(_) => None,
    }
}

/// What a card that the kernels are written for would use.
fn without_card(case: &Case) -> Option<&'static str> {
    let caps = Caps { backend: "cuda", processors: 84, compute: (12, 0), ..Caps::default() };
    case.op.cuda(&case.specs(), &caps).first().map(|choice| choice.variant)
}

fn text(report: &Report) -> String {
    let devices: Vec<Vec<String>> = report.devices.iter().map(row).collect();
    let heads = ["device", "name", "driver", "kind", "f16", "subgroups", "matrices", "binding", "memory"];
    let mut text = output::table(&heads, &devices);
    text += &format!("auto takes {}: {}\ncuda: {}\n\n", report.auto, report.reason, report.cuda);
    text += "kernel variants that the rows use at real sizes:\n";
    let heads: Vec<&str> = std::iter::once("row").chain(report.columns.iter().map(String::as_str)).collect();
    let rows = report.rows.iter().map(|line| {
        let lists = line.variants.iter().map(|names| names.join(" "));
        std::iter::once(line.row.to_string()).chain(lists).collect()
    });
    text + &output::table(&heads, &rows.collect::<Vec<Vec<String>>>())
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
    let matrices = match entry.matrices.iter().map(|side| format!("{side}x{side}")).collect::<Vec<_>>().join(" ") {
        none if none.is_empty() => "none".into(),
        sides => sides,
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
        matrices,
        binding,
        memory,
    ]
}
