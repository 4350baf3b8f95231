//! The nearest settings that would fit: each change alone, then several together.

use super::parts::{gib, total};
use super::session::{Settings, smaller};
use super::streaming::Streamed;
use super::training::Training;
use anyhow::Result;
use serde::Serialize;
use tritter_model::Config;
use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::programs::{CHUNKS, Layout};
use tritter_model::weights::DenseFormat;
use tritter_runtime::{DType, Device};
use tritter_trainer::steps::Precision;

/// A change of the command line with which the plan fits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Nearest {
    /// Options to give instead.
    pub(crate) options: String,
    /// What is needed then.
    pub(crate) total: u64,
    pub(crate) gib: f64,
}

impl Nearest {
    pub(crate) fn new(options: impl Into<String>, total: u64) -> Nearest {
        Nearest { options: options.into(), total, gib: gib(total) }
    }
}

/// Window and sinks that are proposed.
const WINDOW: (usize, usize) = (4096, 4);

/// For inference. Runs feed prompts in smaller chunks by themselves, so the smallest are planned here.
pub(crate) fn of_session(config: &Config, asked: Settings, budget: u64, overhead: u64) -> Result<Vec<Nearest>> {
    let mut near = Vec::new();
    let base = Settings { layout: Layout { chunk: CHUNKS[0], ..asked.layout }, ..asked };
    let with = |layout: Layout| Settings { layout, ..base };
    let needs = |settings: &Settings| -> Result<u64> { Ok(settings.plan(config, overhead)?.needed()) };
    let mut propose = |options: String, settings: Settings| -> Result<bool> {
        let needed = needs(&settings)?;
        if needed <= budget {
            near.push(Nearest::new(options, needed));
        }
        Ok(needed <= budget)
    };
    for kind in kinds_below(base.layout.cache.kind) {
        if propose(format!("--kv {}", kind.name()), with(cached(base.layout, kind)))? {
            break;
        }
    }
    if let Some(settings) = small_head(base) {
        propose("--head i8".into(), settings)?;
    }
    if let Some(settings) = packed(base) {
        propose("--weights t1".into(), settings)?;
    }
    let batch = largest(1, base.layout.sequences, 0, |n| Ok(needs(&with(sequences(base.layout, n)))? <= budget))?;
    if let Some(batch) = batch {
        propose(format!("--batch {batch}"), with(sequences(base.layout, batch)))?;
    }
    let context = |capacity| with(Layout { capacity, ..base.layout });
    if let Some(most) = largest(1, base.layout.capacity, 100, |n| Ok(needs(&context(n))? <= budget))? {
        let most = if most > 4096 { most / 1024 * 1024 } else { most };
        propose(format!("--context {}", super::plot::tokens(most)), context(most))?;
    }
    let (window, sinks) = WINDOW;
    if base.layout.window.is_none() && base.layout.capacity > window {
        let layout = Layout { window: Some(window), sinks, ..base.layout };
        propose(format!("--window {window} --sinks {sinks}"), with(layout))?;
    }
    if near.is_empty() {
        near.extend(together(base, &needs, budget)?);
    }
    Ok(near)
}

/// For inference with layers that come and go, where nothing else fits: as asked, or with a smaller head, a smaller
/// cache and a shorter context, one after the other.
pub(crate) fn of_streaming(
    config: &Config,
    asked: Settings,
    (budget, overhead): (u64, u64),
    device: Option<&Device>,
) -> Result<Option<Nearest>> {
    let base = Settings { layout: Layout { chunk: CHUNKS[0], ..asked.layout }, ..asked };
    let total = |settings: &Settings| -> Result<Option<u64>> {
        let streamed = Streamed::of(&settings.plan(config, overhead)?, budget, device)?;
        Ok(streamed.map(|streamed| streamed.total))
    };
    if let Some(total) = total(&base)? {
        return Ok(Some(Nearest::new("--stream", total)));
    }
    let (small, head) = small_head(base).map_or((base, ""), |small| (small, " --head i8"));
    let kinds = std::iter::once(base.layout.cache.kind).chain(kinds_below(base.layout.cache.kind));
    let mut smallest = (small, String::new());
    for kind in kinds {
        let cache = if kind == base.layout.cache.kind { String::new() } else { format!(" --kv {}", kind.name()) };
        let settings = Settings { layout: cached(small.layout, kind), ..small };
        if let Some(total) = total(&settings)? {
            return Ok(Some(Nearest::new(format!("--stream{head}{cache}"), total)));
        }
        if kind == CacheKind::Int4 || smallest.1.is_empty() {
            smallest = (settings, cache);
        }
    }
    let (settings, cache) = smallest;
    let shorter = |capacity| Settings { layout: Layout { capacity, ..settings.layout }, ..settings };
    let most = largest(1, settings.layout.capacity, 100, |n| Ok(total(&shorter(n))?.is_some()))?;
    let Some(most) = most.map(|most| if most > 4096 { most / 1024 * 1024 } else { most }) else { return Ok(None) };
    let options = format!("--stream{head}{cache} --context {}", super::plot::tokens(most));
    Ok(total(&shorter(most))?.map(|total| Nearest::new(options, total)))
}

/// Head, weights and cache, smaller one after the other, until it fits.
fn together(base: Settings, needs: &dyn Fn(&Settings) -> Result<u64>, budget: u64) -> Result<Option<Nearest>> {
    let (mut settings, mut options) = (base, Vec::new());
    if let Some(smaller) = small_head(settings) {
        (settings, options) = (smaller, vec!["--head i8".to_string()]);
    }
    if let Some(smaller) = packed(settings) {
        settings = smaller;
        options.push("--weights t1".into());
    }
    for kind in kinds_below(base.layout.cache.kind) {
        let shrunk = Settings { layout: cached(settings.layout, kind), ..settings };
        let needed = needs(&shrunk)?;
        if needed <= budget {
            options.push(format!("--kv {}", kind.name()));
            return Ok(Some(Nearest::new(options.join(" "), needed)));
        }
    }
    Ok(None)
}

/// For training. Runs take smaller micro-batches and compute layers again by themselves, so the least of these are
/// planned here.
pub(crate) fn of_training(config: &Config, asked: Training, budget: u64) -> Result<Vec<Nearest>> {
    let needs = |training: &Training| -> Result<u64> { Ok(total(&training.parts(config, None)?)) };
    let base = Training { recompute: true, batch: 1, ..asked };
    let mut near = Vec::new();
    let mut propose = |options: String, training: Training| -> Result<()> {
        let needed = needs(&training)?;
        if needed <= budget {
            near.push(Nearest::new(options, needed));
        }
        Ok(())
    };
    if asked.precision == Precision::F32 {
        propose("--precision bf16".into(), Training { precision: Precision::Bf16, ..base })?;
    }
    let fits = |context| Ok(needs(&Training { context, ..base })? <= budget);
    if let Some(context) = largest(2, asked.context, 100, fits)? {
        propose(format!("--context {context}"), Training { context, ..base })?;
    }
    Ok(near)
}

fn kinds_below(kind: CacheKind) -> impl Iterator<Item = CacheKind> {
    std::iter::successors(smaller(kind), |&kind| smaller(kind))
}

fn cached(layout: Layout, kind: CacheKind) -> Layout {
    Layout { cache: CacheFormat { kind, ..layout.cache }, ..layout }
}

fn sequences(layout: Layout, sequences: usize) -> Layout {
    Layout { sequences, rows: sequences.min(layout.rows), ..layout }
}

/// Embedding and head in 8 bits, where they are floats.
fn small_head(settings: Settings) -> Option<Settings> {
    let floats = settings.formats.table.group == 0;
    let formats = tritter_model::weights::Formats { table: DenseFormat::groups(DType::I8, 64), ..settings.formats };
    floats.then_some(Settings { formats, ..settings })
}

/// Ternary weights in 1.6 bits.
fn packed(settings: Settings) -> Option<Settings> {
    let ternary = match settings.formats.ternary {
        DType::T2 => DType::T1,
        DType::T2x16 => DType::T1x16,
        _ => return None,
    };
    let formats = tritter_model::weights::Formats { ternary, ..settings.formats };
    Some(Settings { formats, ..settings })
}

/// The largest of `least..below` that fits, to within one part of `parts` (0 is exactly); `None` where the least
/// does not.
fn largest(
    least: usize,
    below: usize,
    parts: usize,
    mut fits: impl FnMut(usize) -> Result<bool>,
) -> Result<Option<usize>> {
    if below <= least || !fits(least)? {
        return Ok(None);
    }
    let (mut good, mut bad) = (least, below);
    while bad - good > good.checked_div(parts).unwrap_or(0).max(1) {
        let middle = good.midpoint(bad);
        if fits(middle)? { good = middle } else { bad = middle }
    }
    Ok(Some(good))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tritter_model::config::Family;
    use tritter_model::presets::preset;
    use tritter_model::weights::Formats;

    #[test]
    fn the_largest_that_fits_is_found() {
        for (limit, expected) in [(0, None), (1, Some(1)), (7, Some(7)), (99, Some(99)), (1000, Some(99))] {
            assert_eq!(largest(1, 100, 0, |n| Ok(n <= limit)).unwrap(), expected, "{limit}");
        }
        let near = largest(1, 1_000_000, 100, |n| Ok(n <= 500_000)).unwrap().unwrap();
        assert!((495_000..=500_000).contains(&near), "{near}");
    }

    #[test]
    fn every_proposal_fits_and_is_less_than_what_was_asked_for() {
        let config = preset("test").unwrap().config(Family::Bitnet, None, None);
        let layout = Layout { sequences: 4, rows: 4, ..Layout::single(32_768, CacheFormat::F32) };
        let asked = Settings { formats: Formats::PLAIN, layout };
        let needed = asked.plan(&config, 0).unwrap().needed();
        let budget = needed / 2;
        let near = of_session(&config, asked, budget, 0).unwrap();
        let options: Vec<&str> = near.iter().map(|one| one.options.split(' ').next().unwrap()).collect();
        assert!(["--kv", "--batch", "--context", "--window"].iter().all(|o| options.contains(o)), "{near:?}");
        assert!(near.iter().all(|one| one.total <= budget), "{near:?}");
        assert!(of_session(&config, asked, 1000, 0).unwrap().is_empty());
    }

    #[test]
    fn streaming_is_proposed_with_as_little_changed_as_can_be() {
        let config = preset("test").unwrap().config(Family::Bitnet, Some(512), None);
        let asked = Settings { formats: Formats::PLAIN, layout: Layout::single(32_768, CacheFormat::F32) };
        let proposed = |budget| of_streaming(&config, asked, (budget, 0), None).unwrap();
        let needed = asked.plan(&config, 0).unwrap().needed();
        assert_eq!(proposed(needed).unwrap().options, "--stream");
        let small = proposed(needed / 3).unwrap();
        assert!(small.options.starts_with("--stream --head i8 --kv "), "{small:?}");
        assert!(small.total <= needed / 3);
        let short = proposed(needed / 20).unwrap();
        assert!(short.options.contains("--kv int4 --context "), "{short:?}");
        assert!(proposed(1000).is_none());
    }

    #[test]
    fn several_changes_are_proposed_where_one_is_not_enough() {
        let config = preset("test").unwrap().config(Family::Bitnet, None, None);
        let asked = Settings { formats: Formats::PLAIN, layout: Layout::single(4096, CacheFormat::F32) };
        let smallest = packed(small_head(asked).unwrap()).unwrap();
        let layout = Layout { chunk: CHUNKS[0], ..cached(asked.layout, CacheKind::Int2) };
        let budget = Settings { layout, ..smallest }.plan(&config, 0).unwrap().needed();
        let near = of_session(&config, asked, budget, 0).unwrap();
        assert_eq!(near.len(), 1, "{near:?}");
        assert_eq!(near[0].options, "--head i8 --weights t1 --kv int2");
    }
}
