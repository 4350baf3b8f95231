//! `tritter bench yardstick`: our CUDA kernels against cuBLAS, in one run on one card.

use crate::cli::Global;
use crate::output;
use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use std::process::ExitCode;
use tritter_cuda::yardstick::{Product, Yardstick};
use tritter_runtime::DType::Bf16;
use tritter_runtime::bench::Prepared;
use tritter_runtime::op::{Case, Fill};
use tritter_runtime::ops::attention::Attention;
use tritter_runtime::ops::attention::mask::NO_WINDOW;
use tritter_runtime::ops::matmul_nt::MatmulNt;
use tritter_runtime::ops::ternary_matmul::TernaryMatmul;

#[derive(Serialize)]
struct Line {
    what: &'static str,
    shape: String,
    variant: String,
    microseconds: f64,
    tera_ops_per_second: f64,
    /// The cuBLAS product that it is held against.
    yardstick: String,
    yardstick_microseconds: f64,
    yardstick_tera_ops_per_second: f64,
    /// Ours over cuBLAS: of rates for products and attention, of times for matrix-vector products.
    ratio: f64,
}

#[derive(Serialize)]
struct Report {
    device: String,
    lines: Vec<Line>,
}

/// Dense products: the square of the headline, and those of a 125M training step of 8,192 tokens.
const PRODUCTS: [[u32; 3]; 4] = [[4096, 4096, 4096], [8192, 768, 768], [8192, 2048, 768], [8192, 32_000, 768]];
/// Ternary matrix-vector products of at least 35 M weights.
const VECTORS: [[u32; 2]; 3] = [[13_824, 2560], [11_008, 4096], [28_672, 8192]];
/// Tokens, heads and head size of attention.
const ATTENTION: [[u32; 3]; 3] = [[4096, 16, 128], [4096, 32, 64], [16_384, 16, 128]];

pub(crate) fn run(global: &Global, seconds: f64) -> Result<ExitCode> {
    let ordinal = match global.device.split_once(':') {
        Some(("cuda", n)) => Some(n.parse()?),
        None if global.device == "cuda" || global.device == "auto" => None,
        _ => bail!("the yardstick is cuBLAS: use --device cuda"),
    };
    let why = |e: String| anyhow!(e);
    let driver = tritter_cuda::driver(ordinal).map_err(why)?;
    let id = format!("cuda:{}", ordinal.unwrap_or(0));
    let device = tritter_cuda::open_with_driver(driver.clone(), &id, Default::default())?;
    let cublas = Yardstick::open(&*driver).map_err(why)?;
    let mut lines = Vec::new();
    let mut add = |what, case: &Case, yardstick: &Product, by_time: bool| -> Result<()> {
        // Timed as cuBLAS is: runs that follow each other without a pause.
        let time = Prepared::new(&device, case)?.paced(seconds / 5.0)?.as_secs_f64();
        let theirs = yardstick.time.as_secs_f64();
        let rate = case.op.cost(&case.specs()).ops as f64 / time;
        let ratio = if by_time { theirs / time } else { rate / yardstick.rate() };
        lines.push(Line {
            what,
            shape: case.label.clone(),
            variant: device.runs(&case.op, &case.specs()).to_string(),
            microseconds: time * 1e6,
            tera_ops_per_second: rate / 1e12,
            yardstick: format!("{}x{}x{}", yardstick.m, yardstick.n, yardstick.k),
            yardstick_microseconds: theirs * 1e6,
            yardstick_tera_ops_per_second: yardstick.rate() / 1e12,
            ratio,
        });
        Ok(())
    };
    for [m, n, k] in PRODUCTS {
        let product = cublas.product(m as usize, n as usize, k as usize).map_err(why)?;
        let case = Case::new(format!("{m}x{n}x{k}"), MatmulNt::whole(m, n, k));
        add("dense bf16", &case.dtype("x", Bf16).dtype("w", Bf16).dtype("y", Bf16), &product, false)?;
    }
    let square = cublas.product(4096, 4096, 4096).map_err(why)?;
    for [t, h, d] in ATTENTION {
        add("causal attention bf16", &attention(t, h, d), &square, false)?;
    }
    for [n, k] in VECTORS {
        let product = cublas.product(1, n as usize, k as usize).map_err(why)?;
        let case = Case::new(format!("1x{n}x{k}"), TernaryMatmul { m: 1, n, k, l: n, n0: 0, scales: 1, scale: 0 });
        add("W2A8 matrix-vector", &case, &product, true)?;
    }
    let report = Report { device: device.label(), lines };
    if global.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn attention(t: u32, h: u32, d: u32) -> Case {
    let op = Attention { m: t, h, d, t, g: h, scale: (d as f32).powf(-0.5), window: NO_WINDOW, sinks: 0 };
    let spans = (0..t).flat_map(|i| [0.0, f64::from(i)]).collect();
    let case = Case::new(format!("{t} tokens, {h} heads of {d}"), op).fill("span", Fill::Values(spans));
    ["q", "k", "v", "o"].into_iter().fold(case, |case, operand| case.dtype(operand, Bf16))
}

fn text(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report
        .lines
        .iter()
        .map(|l| {
            vec![
                l.what.into(),
                l.shape.clone(),
                l.variant.clone(),
                format!("{:.1}", l.microseconds),
                format!("{:.1}", l.tera_ops_per_second),
                l.yardstick.clone(),
                format!("{:.1}", l.yardstick_microseconds),
                format!("{:.1}", l.yardstick_tera_ops_per_second),
                format!("{:.2}", l.ratio),
            ]
        })
        .collect();
    let heads = ["what", "shape", "variant", "us", "Top/s", "cuBLAS", "us", "Top/s", "ratio"];
    format!("{}\n{}", report.device, output::table(&heads, &rows))
}
