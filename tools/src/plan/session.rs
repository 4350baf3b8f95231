//! What a session takes, and what it may give up to fit a budget.

use super::ladder::{Descent, Rung, descend, next_below};
use super::parts::{self, Part, total};
use anyhow::Result;
use std::cell::RefCell;
use tritter_model::Config;
use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::programs::{CHUNKS, Layout};
use tritter_model::session::SessionPlan;
use tritter_model::stream::divide;
use tritter_model::weights::{Form, Formats, Model};
use tritter_runtime::stream::Way;
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

/// What a session has to fit into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Bytes of it; `None` is without end.
    pub(crate) budget: Option<u64>,
    /// Bytes of it that the run may take beside its plan.
    pub(crate) overhead: u64,
    /// How layers that do not fit are brought in, where they may be.
    pub(crate) stream: Option<Way>,
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

    /// Plans it with as many layers resident as there is room for.
    fn plan_in(&self, config: &Config, room: Room) -> Result<Planned> {
        let Room { budget, overhead, stream } = room;
        let (Some(budget), Some(way)) = (budget, stream) else { return self.plan(config, overhead) };
        let model = Model::with_formats(config, Form::Run, self.formats, self.layout.capacity);
        let plan = divide(&model, self.layout, way, budget.saturating_sub(overhead))?;
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
            _ if layout.pages == Some(plan.pages()) => {
                format!("{} pages of {} tokens", plan.pages(), layout.cache.page)
            }
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

/// Goes down from settings as far as a budget asks for. Layers that may be streamed are, before anything is given
/// up; what is given up then are things that must fit beside a single layer.
pub(crate) fn fit(config: &Config, start: Settings, may: May, room: Room) -> Result<(Descent<Settings>, Planned)> {
    // The last plan made is mostly the one that is taken.
    let last: RefCell<Option<Planned>> = RefCell::new(None);
    let mut needs = |settings: &Settings| {
        let planned = settings.plan_in(config, room)?;
        let needed = planned.needed();
        last.replace(Some(planned));
        Ok(needed)
    };
    let descent = descend(start, &rungs(may), room.budget, &mut needs)?;
    let planned = last.into_inner().filter(|planned| planned.needed() == descent.needed);
    let planned = match planned {
        Some(planned) => planned,
        None => descent.settings.plan_in(config, room)?,
    };
    Ok((descent, planned))
}

/// As [`fit`] for a device, on which layers may be streamed, with what is given up said on standard error; refuses
/// what does not fit.
pub(crate) fn fit_on(config: &Config, device: &Device, start: Settings, may: May, stream: bool) -> Result<Planned> {
    let overhead = tritter_runtime::budget::overhead(device.caps());
    let stream = stream.then(|| device.backend().way());
    let (descent, planned) = fit(config, start, may, Room { budget: device.budget(), overhead, stream })?;
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
    let Layout { capacity, sequences, cache, .. } = descent.settings.layout;
    let what = match sequences {
        1 => format!("a context of {capacity} tokens"),
        _ => format!("{sequences} sequences with a context of {capacity} tokens"),
    };
    let smaller_cache = match cache.kind {
        _ if may.shrink => "",
        CacheKind::Int2 => "",
        CacheKind::Int4 => ", --kv int2 or --kv-may-shrink",
        _ => ", --kv int4 or --kv-may-shrink",
    };
    let window = if may.window.is_some() { "" } else { ", --fallback-window N" };
    let (plan, split) = (&planned.plan, planned.plan.split());
    let weights = match (split.streams(), stream) {
        (true, _) => {
            let each = plan.streamed_bytes() / (split.layers - split.resident).max(1) as u64;
            let beside = say(plan.weights() + plan.slots());
            format!("weights {beside}, with one layer of {} at a time", say(each))
        }
        (false, Some(Way::Missing)) => format!("weights {}, which cannot be streamed to it", say(plan.weights())),
        (false, _) => format!("weights {}", say(plan.weights())),
    };
    let model = if stream.is_some() { ", --head i8, or a smaller model" } else { ", --stream, or a smaller model" };
    Err(tritter_runtime::Error::DoesNotFit {
        what: format!("{what} ({weights}, cache {})", say(plan.cache())),
        device: device.label(),
        needed: descent.needed,
        available: device.budget().unwrap_or(0),
        advice: format!("use a larger --memory-limit, a smaller --context{smaller_cache}{window}{model}"),
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
    use tritter_model::stream::Split;

    fn start(kv: &str, capacity: usize) -> (Config, Settings) {
        let config = preset("test").unwrap().config(Family::Bitnet, Some(512), None);
        let layout = Layout::single(capacity, kv.parse().unwrap());
        (config, Settings { formats: Formats::PLAIN, layout })
    }

    fn fitted(may: May, budget: u64) -> Descent<Settings> {
        let (config, settings) = start("f32", 8192);
        fit(&config, settings, may, Room { budget: Some(budget), overhead: 1000, stream: None }).unwrap().0
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
    fn layers_are_streamed_before_anything_is_given_up_and_then_in_the_same_order() {
        let (config, settings) = start("f32", 8192);
        let may = May { shrink: true, window: Some((256, 0)), ..May::default() };
        let fitted = |budget| {
            let room = Room { budget: Some(budget), overhead: 1000, stream: Some(Way::InPlace) };
            fit(&config, settings, may, room).unwrap()
        };
        let whole = settings.plan(&config, 1000).unwrap().needed();
        let (descent, planned) = fitted(whole - 1);
        assert!(descent.fits && descent.taken.is_empty() && planned.plan.split().streams(), "{descent:?}");
        // A cache and activations that leave no room for one layer.
        let least = Split { resident: 0, layers: config.num_layers, group: 1, way: Way::InPlace };
        let least = SessionPlan::streamed(&planned.model, settings.layout, least).unwrap().total() + 1000;
        assert!(fitted(least).0.taken.is_empty());
        let (descent, planned) = fitted(least - 1);
        assert!(descent.fits && planned.needed() < least, "{descent:?}");
        assert!(descent.taken[0].starts_with("prompts in chunks of"), "{descent:?}");
        let (descent, _) = fitted(1);
        let first = |word: &str| descent.taken.iter().position(|said| said.contains(word)).unwrap();
        assert!(!descent.fits && first("chunks") < first("int2") && first("int2") < first("newest 256"), "{descent:?}");
    }

    #[test]
    fn texts_decode_in_turns_before_anything_else_changes_results() {
        let (config, settings) = start("f16", 2048);
        let layout = Layout { sequences: 8, rows: 8, ..settings.layout };
        let may = May { queue: true, shrink: true, ..May::default() };
        let one = Settings { layout: settings.layout, ..settings }.plan(&config, 0).unwrap().needed();
        let room = Room { budget: Some(2 * one), overhead: 0, stream: None };
        let (got, _) = fit(&config, Settings { layout, ..settings }, may, room).unwrap();
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
