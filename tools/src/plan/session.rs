//! What a session takes, and what it may give up to fit a budget.

use super::ladder::{Descent, Rung, descend, next_below};
use super::parts::{self, Part, total};
use anyhow::Result;
use std::cell::RefCell;
use tritter_model::Config;
use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::programs::{CHUNKS, Layout};
use tritter_model::session::SessionPlan;
use tritter_model::weights::{Form, Formats, Model};
use tritter_runtime::{DType, Device};

/// How weights are stored and what a session has room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) formats: Formats,
    pub(crate) layout: Layout,
}

/// What may be given up. Chunks of a prompt may always be smaller: that costs time and no result.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct May {
    /// Ternary weights may go from 2 to 1.6 bits, which are the same weights.
    pub(crate) pack: bool,
    /// Fewer sequences may decode together.
    pub(crate) queue: bool,
    /// The cache may be of a smaller type.
    pub(crate) shrink: bool,
    /// Tokens may see only so many of the newest keys, and so many sinks.
    pub(crate) window: Option<(usize, usize)>,
}

/// A planned session.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) model: Model,
    pub(crate) plan: SessionPlan,
    /// Bytes that the run may take beside the plan.
    pub(crate) overhead: u64,
}

impl Settings {
    /// Plans it. Takes no device memory.
    pub(crate) fn plan(&self, config: &Config, overhead: u64) -> Result<Planned> {
        let model = Model::with_formats(config, Form::Run, self.formats, self.layout.capacity);
        let plan = SessionPlan::with(&model, self.layout)?;
        Ok(Planned { model, plan, overhead })
    }
}

impl Planned {
    /// Everything that must fit.
    pub(crate) fn needed(&self) -> u64 {
        self.plan.total() + self.overhead
    }

    /// What it is made of.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let (plan, layout) = (&self.plan, self.plan.layout());
        let mut parts = parts::weights(&self.model);
        let each = if layout.sequences > 1 { format!("{} times ", layout.sequences) } else { String::new() };
        let tokens = match layout.window {
            Some(window) => format!("{each}a window of {window} tokens"),
            None => format!("{each}{} tokens", layout.capacity),
        };
        let cache = plan.cache_parts();
        if cache.codes > 0 {
            parts.push(Part::new(format!("cache of {tokens}: codes in {}", layout.cache), cache.codes));
            parts.push(Part::new("cache: scales and zeros of groups", cache.parameters));
            parts.push(Part::new("cache: newest tokens in f32", cache.rows));
        } else {
            parts.push(Part::new(format!("cache of {tokens} in {}", layout.cache), cache.rows));
        }
        parts.push(Part::new("activations", plan.arena()));
        parts.push(Part::new("logits", plan.logits()));
        parts.push(Part::new("inputs and small states", plan.small().saturating_sub(plan.logits())));
        parts.push(Part::new(OVERHEAD, self.overhead));
        debug_assert_eq!(total(&parts), self.needed());
        parts
    }
}

/// Name of what a run may take beside its plan.
pub(crate) const OVERHEAD: &str = "overhead: staging, pipelines, allocator and process";

/// What is given up in which order: bits of weights and lengths of chunks, which change no result, then what
/// decodes together, and what changes results only where that is allowed.
fn rungs(may: May) -> Vec<Rung<'static, Settings>> {
    let with = |now: &Settings, layout| Settings { layout, ..*now };
    vec![
        Box::new(move |now| {
            let ternary = match now.formats.ternary {
                DType::T2 => DType::T1,
                DType::T2x16 => DType::T1x16,
                _ => return None,
            };
            let formats = Formats { ternary, ..now.formats };
            may.pack.then(|| (Settings { formats, ..*now }, "ternary weights in 1.6 bits".into()))
        }),
        Box::new(move |now| {
            let falling: Vec<usize> = CHUNKS.iter().rev().copied().collect();
            let chunk = next_below(&falling, now.layout.chunk)?;
            Some((with(now, Layout { chunk, ..now.layout }), format!("prompts in chunks of {chunk} tokens")))
        }),
        Box::new(move |now| {
            let sequences = now.layout.sequences.div_ceil(2);
            let fewer = may.queue && sequences < now.layout.sequences;
            // A draft is rows of one sequence.
            let rows = if now.layout.rows == now.layout.sequences { sequences } else { now.layout.rows };
            let layout = Layout { sequences, rows, ..now.layout };
            fewer.then(|| (with(now, layout), format!("{sequences} texts at a time, the others after them")))
        }),
        Box::new(move |now| {
            let kind = smaller(now.layout.cache.kind).filter(|_| may.shrink)?;
            let layout = Layout { cache: CacheFormat { kind, ..now.layout.cache }, ..now.layout };
            Some((with(now, layout), format!("a cache in {}, which changes results a little", kind.name())))
        }),
        Box::new(move |now| {
            let narrower = |window| now.layout.window.is_none_or(|has| window < has) && window < now.layout.capacity;
            let (window, sinks) = may.window.filter(|&(window, _)| narrower(window))?;
            let layout = Layout { window: Some(window), sinks, ..now.layout };
            let said = format!("each token sees the newest {window} only, which changes results");
            Some((with(now, layout), said))
        }),
    ]
}

/// The next smaller type of cache.
pub(crate) fn smaller(kind: CacheKind) -> Option<CacheKind> {
    CacheKind::ALL.into_iter().skip_while(|&one| one != kind).nth(1)
}

/// Goes down from settings as far as a budget asks for.
pub(crate) fn fit(
    config: &Config,
    start: Settings,
    may: May,
    (budget, overhead): (Option<u64>, u64),
) -> Result<(Descent<Settings>, Planned)> {
    // The last plan made is mostly the one that is taken.
    let last: RefCell<Option<Planned>> = RefCell::new(None);
    let mut needs = |settings: &Settings| {
        let planned = settings.plan(config, overhead)?;
        let needed = planned.needed();
        last.replace(Some(planned));
        Ok(needed)
    };
    let descent = descend(start, &rungs(may), budget, &mut needs)?;
    let planned = last.into_inner().filter(|planned| planned.needed() == descent.needed);
    let planned = match planned {
        Some(planned) => planned,
        None => descent.settings.plan(config, overhead)?,
    };
    Ok((descent, planned))
}

/// As [`fit`] for a device, with what is given up said on standard error; refuses what does not fit.
pub(crate) fn fit_on(config: &Config, device: &Device, start: Settings, may: May) -> Result<Planned> {
    let overhead = tritter_runtime::budget::overhead(device.caps());
    let (descent, planned) = fit(config, start, may, (device.budget(), overhead))?;
    if !descent.taken.is_empty() || !descent.fits {
        let dropped = device.backend().trim();
        if dropped > 0 {
            eprintln!("memory: {dropped} pipelines and staging buffers were let go");
        }
    }
    for said in &descent.taken {
        eprintln!("memory: {said}");
    }
    if descent.fits {
        return Ok(planned);
    }
    let Layout { capacity, sequences, .. } = descent.settings.layout;
    let what = match sequences {
        1 => format!("a context of {capacity} tokens"),
        _ => format!("{sequences} sequences with a context of {capacity} tokens"),
    };
    let smaller_cache = if may.shrink { "" } else { ", --kv int4 or --kv-may-shrink" };
    let window = if may.window.is_some() { "" } else { ", --fallback-window N" };
    Err(tritter_runtime::Error::DoesNotFit {
        what: format!("{what} (weights {}, cache {})", say(planned.plan.weights()), say(planned.plan.cache())),
        device: device.label(),
        needed: descent.needed,
        available: device.budget().unwrap_or(0),
        advice: format!("use a smaller --context{smaller_cache}{window}, or a smaller model"),
    }
    .into())
}

fn say(bytes: u64) -> String {
    tritter_runtime::error::bytes(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tritter_model::config::Family;
    use tritter_model::presets::preset;

    fn start(kv: &str, capacity: usize) -> (Config, Settings) {
        let config = preset("test").unwrap().config(Family::Bitnet, Some(512), None);
        let layout = Layout::single(capacity, kv.parse().unwrap());
        (config, Settings { formats: Formats::PLAIN, layout })
    }

    fn fitted(may: May, budget: u64) -> Descent<Settings> {
        let (config, settings) = start("f32", 8192);
        fit(&config, settings, may, (Some(budget), 1000)).unwrap().0
    }

    #[test]
    fn parts_are_the_plan_and_the_overhead() {
        for kv in ["f32", "f16", "int8", "int4", "int2"] {
            let (config, settings) = start(kv, 1000);
            let planned = settings.plan(&config, 12_345).unwrap();
            assert_eq!(total(&planned.parts()), planned.plan.total() + 12_345, "{kv}: {:?}", planned.parts());
        }
    }

    #[test]
    fn the_order_is_weights_chunks_cache_window() {
        let all = May { pack: true, queue: true, shrink: true, window: Some((256, 0)) };
        let least = fitted(all, 1);
        assert!(!least.fits);
        let layout = least.settings.layout;
        assert_eq!((layout.cache.kind, layout.window, layout.chunk), (CacheKind::Int2, Some(256), CHUNKS[0]));
        let first = |word: &str| least.taken.iter().position(|said| said.contains(word)).unwrap();
        assert!(first("1.6 bits") < first("chunks") && first("chunks") < first("int"), "{:?}", least.taken);
        assert!(first("int2") < first("sees the newest 256"), "{:?}", least.taken);
        assert!(fitted(all, least.needed).fits);
    }

    #[test]
    fn results_do_not_change_unless_that_is_allowed() {
        let least = fitted(May::default(), 1);
        assert!(!least.fits);
        assert_eq!((least.settings.layout.cache.kind, least.settings.layout.window), (CacheKind::F32, None));
        assert_eq!(least.settings.formats.ternary, DType::T2);
        assert_eq!(least.settings.layout.chunk, CHUNKS[0]);
    }

    #[test]
    fn texts_decode_in_turns_before_anything_else_changes_results() {
        let (config, settings) = start("f16", 2048);
        let layout = Layout { sequences: 8, rows: 8, ..settings.layout };
        let may = May { queue: true, shrink: true, ..May::default() };
        let one = Settings { layout: settings.layout, ..settings }.plan(&config, 0).unwrap().needed();
        let (got, _) = fit(&config, Settings { layout, ..settings }, may, (Some(2 * one), 0)).unwrap();
        assert!(got.fits && got.settings.layout.sequences < 8 && got.settings.layout.cache.kind == CacheKind::F16);
        assert_eq!(got.settings.layout.rows, got.settings.layout.sequences);
    }

    #[test]
    fn seven_billion_weights_and_128k_tokens_in_int4_take_about_8_gb() {
        let config = preset("7B").unwrap().config(Family::Bitnet, None, None);
        let table = tritter_model::weights::DenseFormat::groups(DType::I8, 64);
        let formats = Formats { table, ..Formats::PLAIN };
        let settings = Settings { formats, layout: Layout::single(131_072, "int4".parse().unwrap()) };
        let needed = settings.plan(&config, 256 << 20).unwrap().needed();
        assert!((7_000_000_000..8_500_000_000).contains(&needed), "{needed}");
    }
}
