//! Cards against presets: the longest context that fits.

use super::budget::desktop;
use super::cards::{CARDS, Card};
use super::parts::gib;
use super::plot::tokens;
use super::session::Settings;
use crate::cli::{Global, Plan};
use crate::open::Opened;
use crate::output;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use tritter_model::presets::{PRESETS, Preset};
use tritter_model::programs::{CHUNKS, Layout};
use tritter_runtime::error::bytes;

/// What the driver, staging and pools of a card may take beside a plan.
const OVERHEAD: u64 = 256 << 20;
/// The shortest context that is worth a cell.
const LEAST: usize = 1024;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    context: usize,
    kv: &'static str,
    cards: Vec<CardRow>,
    models: Vec<ModelRow>,
}

#[derive(Serialize)]
struct CardRow {
    #[serde(flatten)]
    card: Card,
    budget: u64,
    budget_gib: f64,
}

#[derive(Serialize)]
struct ModelRow {
    model: &'static str,
    /// Needed for the whole context.
    total: u64,
    total_gib: f64,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    card: &'static str,
    /// With the whole context.
    fits: bool,
    /// The longest context in powers of two, up to the one asked for, that fits.
    context: Option<usize>,
}

/// Prints all presets, or the one that is named, against all cards.
pub(crate) fn run(global: &Global, args: &Plan) -> Result<()> {
    let wanted = args.context.unwrap_or(131_072).max(LEAST);
    let desktop = desktop(args.desktop);
    let budgets: Vec<(Card, u64)> = CARDS.iter().map(|card| (*card, card.budget(desktop))).collect();
    let named = |preset: &&Preset| args.model.as_ref().is_none_or(|name| preset.name.eq_ignore_ascii_case(name));
    let presets: Vec<&Preset> = PRESETS.iter().filter(named).collect();
    if presets.is_empty() {
        anyhow::bail!("--matrix takes presets; `{}` is none", args.model.as_deref().unwrap_or_default());
    }
    let models = presets.into_iter().map(|preset| row(args, preset, wanted, &budgets)).collect::<Result<Vec<_>>>()?;
    let card = |&(card, budget): &(Card, u64)| CardRow { card, budget, budget_gib: gib(budget) };
    let report =
        Report { context: wanted, kv: args.cache.kv.kind.name(), cards: budgets.iter().map(card).collect(), models };
    match global.json {
        true => output::json(&report),
        false => output::print(&text(&report)),
    }
}

fn row(args: &Plan, preset: &Preset, wanted: usize, budgets: &[(Card, u64)]) -> Result<ModelRow> {
    let opened = Opened::new(preset.name)?.with(args.formats);
    let formats = opened.formats(&*opened.source()?)?;
    let wanted = wanted.min(opened.config.max_positions);
    let mut known: BTreeMap<usize, u64> = BTreeMap::new();
    let mut needs = |capacity: usize| -> Result<u64> {
        if let Some(&needed) = known.get(&capacity) {
            return Ok(needed);
        }
        let layout = Layout {
            sequences: args.batch,
            rows: args.batch.clamp(1, tritter_model::programs::MOST_ROWS),
            chunk: CHUNKS[0],
            window: args.cache.window.filter(|&window| window < capacity),
            ..Layout::single(capacity, args.cache.kv)
        };
        let needed = Settings { formats, layout }.plan(&opened.config, OVERHEAD)?.needed();
        known.insert(capacity, needed);
        Ok(needed)
    };
    let total = needs(wanted)?;
    let mut cells = Vec::new();
    for &(card, budget) in budgets {
        let mut context = Some(wanted);
        while let Some(tried) = context {
            if needs(tried)? <= budget {
                break;
            }
            let half = (tried.next_power_of_two() / 2).min(tried - 1);
            context = Some(half).filter(|&half| half >= LEAST);
        }
        cells.push(Cell { card: card.name, fits: total <= budget, context });
    }
    Ok(ModelRow { model: preset.name, total, total_gib: gib(total), cells })
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "the longest context, up to {}, that fits with a cache in {} and prompts in chunks of {}\n",
        tokens(report.context),
        report.kv,
        CHUNKS[0]
    );
    let mut heads = vec!["card", "memory", "budget"];
    heads.extend(report.models.iter().map(|model| model.model));
    let mut rows = Vec::new();
    for (i, row) in report.cards.iter().enumerate() {
        let mut cells = vec![row.card.name.to_string(), format!("{} GiB", row.card.gib), bytes(row.budget)];
        let context = |model: &ModelRow| model.cells[i].context.map_or("-".into(), tokens);
        cells.extend(report.models.iter().map(context));
        rows.push(cells);
    }
    let mut needed = vec!["needed".to_string(), String::new(), String::new()];
    needed.extend(report.models.iter().map(|model| bytes(model.total)));
    rows.push(needed);
    text += &output::table(&heads, &rows);
    text
}
