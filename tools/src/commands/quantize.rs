//! `tritter quantize`: smaller weights without training.

use crate::cli::{Global, HeadType, ProjectionType, Quantize};
use crate::device;
use crate::open::Opened;
use crate::output;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use tritter_model::perplexity::perplexity;
use tritter_model::quantize::{Job, Moved, Projections, changes_activations, floats_of, target, write_quantized};
use tritter_model::quantized::Groups;
use tritter_model::tensors::Checkpoint;
use tritter_runtime::error::bytes;
use tritter_runtime::{DType, Device};

#[derive(Serialize)]
struct Report {
    model: String,
    out: String,
    bytes_before: u64,
    bytes_after: u64,
    /// Relative error of each tensor that was quantised.
    errors: Vec<(String, f64)>,
    perplexity_before: Option<f64>,
    perplexity_after: Option<f64>,
    perplexity_tokens: Option<usize>,
}

pub(crate) fn run(global: &Global, args: &Quantize) -> Result<ExitCode> {
    let opened = Opened::new(&args.model)?;
    let folder = opened.folder()?.clone();
    let job = job(args, &opened)?;
    target(&folder, &opened.config, &job)?;
    if changes_activations(&opened.config, &job) {
        eprintln!("note: ternary projections also quantise their inputs to int8");
    }
    let text = match &args.text {
        Some(path) => Some((tokens(&opened, path, args.tokens)?, device::open(global)?)),
        None => None,
    };
    let source = opened.source()?;
    let measure = |opened: &Opened, (ids, device): &(Vec<u32>, Device)| -> Result<_> {
        let positions = ids.len().min(opened.config.max_positions);
        Ok(perplexity(device, &opened.load(device, positions)?, ids)?)
    };
    let before = text.as_ref().map(|text| measure(&opened, text)).transpose()?;
    super::pack::fresh(&args.out)?;
    super::pack::copy_side_files(&folder, &args.out)?;
    let moved = write_quantized(&folder, &args.out, &opened.config, &*source, &job)?;
    let written = Opened::new(&args.out.display().to_string())?;
    let after = text.as_ref().map(|text| measure(&written, text)).transpose()?;
    let report = Report {
        model: args.model.clone(),
        out: args.out.display().to_string(),
        bytes_before: Checkpoint::open(&folder)?.data_bytes(),
        bytes_after: Checkpoint::open(&args.out)?.data_bytes(),
        errors: moved.iter().map(|m| (m.tensor.clone(), m.error)).collect(),
        perplexity_before: before.map(|p| p.value),
        perplexity_after: after.map(|p| p.value),
        perplexity_tokens: after.map(|p| p.tokens),
    };
    if global.json {
        output::json(&report)?;
    } else {
        output::print(&errors(&moved))?;
        let (before, after) = (bytes(report.bytes_before), bytes(report.bytes_after));
        output::print(&format!("{}: {after} of weights, {before} before\n", report.out))?;
        if let (Some(before), Some(after), Some(tokens)) =
            (report.perplexity_before, report.perplexity_after, report.perplexity_tokens)
        {
            output::print(&format!("perplexity {before:.3} before, {after:.3} after ({tokens} tokens)\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn job(args: &Quantize, opened: &Opened) -> Result<Job> {
    let groups = |dtype| -> Result<Groups> {
        let groups = Groups { dtype, group: args.group };
        groups.check().map_err(|problem| anyhow::anyhow!("--group {}: {problem}", args.group))?;
        Ok(groups)
    };
    let projections = match args.to {
        None => Projections::Keep,
        Some(ProjectionType::Ternary) => Projections::Ternary,
        Some(ProjectionType::Int8) => Projections::Groups(groups(DType::I8)?),
        Some(ProjectionType::Int4) => Projections::Groups(groups(DType::I4)?),
    };
    let head = match args.head {
        None => None,
        Some(HeadType::Int8) => Some(groups(DType::I8)?),
        Some(HeadType::Int6) => Some(groups(DType::I6)?),
    };
    Ok(Job { projections, head, floats: floats_of(&*opened.source()?, &opened.config)? })
}

/// The first tokens of a text.
pub(super) fn tokens(opened: &Opened, path: &Path, most: usize) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut ids = opened.tokenizer()?.encode(&text, true)?;
    ids.truncate(most);
    if ids.len() < 2 {
        bail!("{} gives {} tokens; perplexity needs two at least", path.display(), ids.len());
    }
    Ok(ids)
}

/// Relative errors, one row a layer: the layer's root mean square and its worst tensor.
fn errors(moved: &[Moved]) -> String {
    let layer = |name: &str| match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((number, part)) => (format!("layer {number}"), part.to_owned()),
        None => (name.to_owned(), String::new()),
    };
    let mut rows: Vec<(String, Vec<(String, f64)>)> = Vec::new();
    for Moved { tensor, error } in moved {
        let (name, part) = layer(tensor);
        match rows.last_mut() {
            Some((last, parts)) if *last == name => parts.push((part, *error)),
            _ => rows.push((name, vec![(part, *error)])),
        }
    }
    let row = |(name, parts): &(String, Vec<(String, f64)>)| {
        let mean = (parts.iter().map(|(_, e)| e * e).sum::<f64>() / parts.len() as f64).sqrt();
        let worst = parts.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let worst = worst.map(|(part, error)| format!("{error:.4} {part}")).unwrap_or_default();
        vec![name.clone(), format!("{mean:.4}"), worst]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    output::table(&["relative error", "mean", "worst"], &rows)
}
