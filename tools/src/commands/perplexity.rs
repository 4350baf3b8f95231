//! `tritter perplexity`: what cache types cost, measured on a text.

use crate::cli::{Global, Perplexity};
use crate::device;
use crate::open::Opened;
use crate::output;
use anyhow::{Result, bail};
use serde::Serialize;
use std::process::ExitCode;
use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::perplexity::cached_perplexity;

/// Tokens of a window if nothing else is said and the model has as many positions.
const CONTEXT: usize = 1024;

#[derive(Serialize)]
struct Report {
    model: String,
    device: String,
    context: usize,
    /// Tokens that were predicted.
    tokens: usize,
    caches: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    kv: &'static str,
    perplexity: f64,
    /// Perplexity over that with f16.
    ratio_to_f16: f64,
}

pub(crate) fn run(global: &Global, args: &Perplexity) -> Result<ExitCode> {
    let opened = Opened::new(&args.model)?.with(args.formats).reaching(args.context)?;
    let context = args.context.unwrap_or(CONTEXT.min(opened.config.max_positions));
    let kinds = kinds(&args.kv)?;
    let ids = super::quantize::tokens(&opened, &args.text, args.tokens)?;
    let context = context.min(ids.len());
    if context < 2 {
        bail!("--context {context}: perplexity needs two tokens at least");
    }
    let whole = CacheFormat::F32.residual + CacheFormat::F32.page;
    if context < whole && kinds.iter().any(|&kind| CacheFormat::from(kind).bits().is_some()) {
        eprintln!(
            "note: beside integers the newest {} to {whole} tokens are whole, so windows of {context} say nothing of \
             codes; use a longer --context",
            CacheFormat::F32.residual
        );
    }
    let device = device::open(global)?;
    let model = opened.load(&device, context)?;
    let measure = |kind: CacheKind| cached_perplexity(&device, &model, &ids, context, CacheFormat::from(kind));
    let base = measure(CacheKind::F16)?;
    let mut caches = Vec::new();
    for kind in kinds {
        let found = if kind == CacheKind::F16 { base } else { measure(kind)? };
        caches.push(Measured { kv: kind.name(), perplexity: found.value, ratio_to_f16: found.value / base.value });
    }
    let report = Report { model: args.model.clone(), device: device.label(), context, tokens: base.tokens, caches };
    if global.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The types that are named, in the order of their size.
fn kinds(names: &[String]) -> Result<Vec<CacheKind>> {
    let mut asked = Vec::new();
    for name in names.iter().filter(|name| *name != "all") {
        asked.push(name.parse::<CacheFormat>()?.kind);
    }
    let all = names.iter().any(|name| name == "all");
    Ok(CacheKind::ALL.into_iter().filter(|kind| all || asked.contains(kind)).collect())
}

fn text(report: &Report) -> String {
    let row = |m: &Measured| vec![m.kv.to_owned(), format!("{:.4}", m.perplexity), format!("{:.4}", m.ratio_to_f16)];
    let rows: Vec<Vec<String>> = report.caches.iter().map(row).collect();
    let Report { model, context, tokens, .. } = report;
    format!("{model}: {tokens} tokens predicted, in windows of {context}\n")
        + &output::table(&["cache", "perplexity", "ratio to f16"], &rows)
}
