//! `tritter bench kernels`: every row at its bench sizes.

use crate::cli::Global;
use crate::{device, output};
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;
use tritter_runtime::DType;
use tritter_runtime::bench::{Measured, Peaks, measure, native, peaks};
use tritter_runtime::op::{Case, Row, Size};

#[derive(Serialize)]
struct Line {
    row: &'static str,
    case: String,
    variant: String,
    median_us: f64,
    gb_per_second: f64,
    gop_per_second: f64,
    share_of_peak: f64,
}

#[derive(Serialize)]
struct Report {
    device: String,
    threads: usize,
    copy_gb_per_second: f64,
    matmul_gop_per_second: f64,
    /// In bf16, or in f32 where there are no kernels for bf16.
    narrow_matmul_gop_per_second: f64,
    kernels: Vec<Line>,
    unsupported: Vec<String>,
}

pub(crate) fn run(global: &Global, row: Option<&str>, seconds: f64) -> Result<ExitCode> {
    let device = device::open(global)?;
    let wanted: Vec<&Row> = Row::all().iter().filter(|r| row.is_none_or(|w| r.name.contains(w))).collect();
    if wanted.is_empty() {
        anyhow::bail!("no row has `{}` in its name", row.unwrap_or_default());
    }
    let peaks = peaks(&device, seconds)?;
    // bf16 where the device has kernels for it: through f32 the time would be that of the casts.
    let narrow = |case: &Case| case.specs().iter().any(|s| s.dtype == DType::Bf16);
    let cases = wanted.iter().flat_map(|r| (r.cases)(Size::Bench));
    let cases: Vec<_> =
        cases.filter(|case| case.fits(device.caps()) && (!narrow(case) || native(&device, case))).collect();
    let bar = output::progress(cases.len() as u64, "cases");
    let (mut kernels, mut unsupported) = (Vec::new(), Vec::new());
    for case in &cases {
        bar.set_message(case.op.row().name);
        match measure(&device, case, seconds) {
            Ok(measured) => kernels.push(line(&measured, &peaks)),
            Err(error) => unsupported.push(format!("{} `{}`: {error}", case.op.row().name, case.label)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let failed = !unsupported.is_empty();
    let report = Report {
        device: device.label(),
        threads: device.caps().threads,
        copy_gb_per_second: peaks.copy / 1e9,
        matmul_gop_per_second: peaks.arithmetic / 1e9,
        narrow_matmul_gop_per_second: peaks.narrow / 1e9,
        kernels,
        unsupported,
    };
    if global.json {
        output::json(&report)?
    } else {
        output::print(&text(&report))?
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn line(measured: &Measured, peaks: &Peaks) -> Line {
    Line {
        row: measured.row,
        case: measured.case.clone(),
        variant: measured.variant.clone(),
        median_us: measured.time.as_secs_f64() * 1e6,
        gb_per_second: measured.bandwidth() / 1e9,
        gop_per_second: measured.arithmetic() / 1e9,
        share_of_peak: measured.share(peaks),
    }
}

fn text(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report
        .kernels
        .iter()
        .map(|k| {
            let us = if k.median_us < 100.0 { format!("{:.1}", k.median_us) } else { format!("{:.0}", k.median_us) };
            let share = format!("{:.0} %", k.share_of_peak * 100.0);
            let (gb, gop) = (format!("{:.2}", k.gb_per_second), format!("{:.1}", k.gop_per_second));
            vec![k.row.into(), k.case.clone(), k.variant.clone(), us, gb, gop, share]
        })
        .collect();
    let mut text = format!(
        "{}, {} threads: copy {:.1} GB/s, dense matmul {:.1} Gop/s, in bf16 {:.1}\n",
        report.device,
        report.threads,
        report.copy_gb_per_second,
        report.matmul_gop_per_second,
        report.narrow_matmul_gop_per_second
    );
    text += &output::table(&["row", "case", "variant", "us", "GB/s", "Gop/s", "of peak"], &rows);
    for line in &report.unsupported {
        text += &format!("not measured: {line}\n");
    }
    text
}
