//! `tritter plan`: what a model, a context and a batch take.

use crate::cli::{Global, Plan, TernaryFormat};
use crate::open::Opened;
use crate::output;
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;
use tritter_model::Config;
use tritter_model::session::SessionPlan;
use tritter_model::weights::{Form, Formats, Model};
use tritter_runtime::DType;
use tritter_runtime::error::bytes;
use tritter_trainer::steps::{Shape, StepsPlan};

#[derive(Serialize)]
struct Report {
    model: String,
    parameters: u64,
    ternary: u64,
    context: usize,
    batch: usize,
    parts: Vec<(String, u64)>,
    total: u64,
    memory: Option<u64>,
    fits: Option<bool>,
    largest_context_that_fits: Option<usize>,
}

pub(crate) fn run(global: &Global, args: &Plan) -> Result<ExitCode> {
    let opened = Opened::new(&args.model)?.with(args.formats).reaching(args.context)?;
    let config = &opened.config;
    let mut formats = if args.train { Formats::PLAIN } else { opened.formats(&*opened.source()?)? };
    let memory = args.memory.as_deref().map(|text| output::parse_bytes("--memory", text)).transpose()?;
    let context = args.context.unwrap_or(if args.train { 256 } else { config.max_positions });
    config.check_context(context)?;
    let mut parts = parts_of(config, args, formats, context)?;
    let sum = |parts: &[(String, u64)]| -> u64 { parts.iter().map(|(_, b)| b).sum() };
    let auto = args.formats.weights == TernaryFormat::Auto && config.is_ternary() && !args.train;
    if auto && memory.is_some_and(|memory| sum(&parts) > memory) {
        // 2 bits do not fit: 1.6 are planned, and said to be.
        formats.ternary = DType::T1;
        parts = parts_of(config, args, formats, context)?;
    }
    let total = sum(&parts);
    let fits = memory.map(|m| total <= m);
    let largest = match (fits, memory) {
        (Some(false), Some(memory)) => largest(config, args, formats, context, memory)?,
        _ => None,
    };
    let count = config.parameters();
    let report = Report {
        model: args.model.clone(),
        parameters: count.total(),
        ternary: count.ternary,
        context,
        batch: args.batch,
        parts,
        total,
        memory,
        fits,
        largest_context_that_fits: largest,
    };
    if global.json {
        output::json(&report)?
    } else {
        output::print(&text(&report, args.train))?
    }
    Ok(ExitCode::from(u8::from(fits == Some(false))))
}

/// What is needed, by purpose, in bytes.
fn parts_of(config: &Config, args: &Plan, formats: Formats, context: usize) -> Result<Vec<(String, u64)>> {
    if args.train {
        let model = Model::new(config, Form::Train, context);
        let precision = args.precision.into();
        let shape = Shape { batch: args.batch, context, z_loss: 0.0, recompute: args.recompute, precision };
        let plan = StepsPlan::new(&model, shape)?;
        let parts = [
            ("master weights", model.bytes()),
            ("gradients", plan.gradients()),
            ("optimiser moments", plan.moments()),
            ("activations", plan.arena()),
            ("inputs and scalars", plan.small()),
        ];
        return Ok(parts.map(|(name, bytes)| (name.to_string(), bytes)).to_vec());
    }
    let model = Model::with_formats(config, Form::Run, formats, context);
    let plan = SessionPlan::new(&model, context, args.kv)?;
    let name = format!("cache of {context} tokens in {}", args.kv);
    let table = formats.table.dtype;
    let weights = match (config.is_ternary(), formats.ternary) {
        (true, DType::T1) => format!("weights (ternary in 1.6 bits, embedding and head in {table})"),
        (true, _) => format!("weights (ternary in 2 bits, embedding and head in {table})"),
        _ => format!("weights (projections in {}, embedding and head in {table})", formats.dense.dtype),
    };
    let parts = [
        (weights.as_str(), plan.weights()),
        (name.as_str(), plan.cache()),
        ("activations", plan.arena()),
        ("inputs and scalars", plan.small()),
    ];
    Ok(parts.map(|(name, bytes)| (name.to_string(), bytes)).to_vec())
}

/// The largest context, to within 1 %, that fits.
fn largest(config: &Config, args: &Plan, formats: Formats, context: usize, memory: u64) -> Result<Option<usize>> {
    let total = |context| -> Result<u64> { Ok(parts_of(config, args, formats, context)?.iter().map(|(_, b)| b).sum()) };
    if total(1)? > memory {
        return Ok(None);
    }
    let (mut fits, mut fails) = (1, context);
    while fails - fits > (fits / 100).max(1) {
        let middle = fits.midpoint(fails);
        if total(middle)? <= memory { fits = middle } else { fails = middle }
    }
    Ok(Some(fits))
}

fn text(report: &Report, train: bool) -> String {
    let rows: Vec<Vec<String>> = report
        .parts
        .iter()
        .chain([&("total".to_string(), report.total)])
        .map(|(name, b)| vec![name.clone(), bytes(*b), format!("{:.2} GiB", *b as f64 / (1u64 << 30) as f64)])
        .collect();
    let what = if train { "training" } else { "inference" };
    let mut text = format!(
        "{} for {what}: {:.1} M parameters, {:.1} M of them ternary; context {}, batch {}\n",
        report.model,
        report.parameters as f64 / 1e6,
        report.ternary as f64 / 1e6,
        report.context,
        report.batch
    );
    text += &output::table(&["part", "GB = 10^9", "GiB = 2^30"], &rows);
    match (report.fits, report.memory, report.largest_context_that_fits) {
        (Some(true), Some(memory), _) => text += &format!("fits {}\n", bytes(memory)),
        (Some(false), Some(memory), Some(context)) => {
            text += &format!("does not fit {}; a context of {context} tokens does\n", bytes(memory));
        }
        (Some(false), Some(memory), None) => {
            text += &format!("does not fit {} with any context; choose a smaller model\n", bytes(memory));
        }
        _ => {}
    }
    text
}
