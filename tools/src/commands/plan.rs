//! `tritter plan`: what a model, a context and a batch take, and what they fit into.

use crate::cli::{Global, Plan, TernaryFormat};
use crate::device;
use crate::open::Opened;
use crate::output;
use crate::plan::budget::Budget;
use crate::plan::parts::{Part, gib, total};
use crate::plan::plot::{Line, Plot, tokens};
use crate::plan::report::Report;
use crate::plan::session::{self, May, OVERHEAD, Room, Settings};
use crate::plan::streaming::{self, Streamed};
use crate::plan::training::{self, Cut, Method, Training};
use crate::plan::{matrix, nearest};
use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::programs::{Layout, MOST_ROWS};
use tritter_runtime::Device;
use tritter_runtime::budget::overhead;
use tritter_runtime::device::Caps;

/// The exit code of a plan that does not fit; 1 is for errors.
const DOES_NOT_FIT: u8 = 3;

pub(crate) fn run(global: &Global, args: &Plan) -> Result<ExitCode> {
    if args.batch == 0 || args.rank == 0 {
        bail!("--batch and --rank must be at least 1");
    }
    if args.matrix {
        matrix::run(global, args)?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = args.model.as_deref().context("name a model folder or preset, or use --matrix")?;
    let opened =
        Opened::new(name)?.with(args.formats).reaching(args.context.map(|context| args.cache.reach(context)))?;
    let context = context(args, &opened)?;
    let device = match global.device.as_str() {
        "auto" => None,
        name => Some(device::choose(name)?.device),
    };
    let target = Target { opened: &opened, device: device.as_ref(), budget: Budget::of(args, device.as_ref()) };
    let report = match args.train {
        Some(method) => target.training(args, method, context)?,
        None => target.inference(args, context)?,
    };
    let fits = report.fits;
    if global.json {
        output::json(&report)?
    } else {
        output::print(&report.text())?
    }
    Ok(ExitCode::from(if fits == Some(false) { DOES_NOT_FIT } else { 0 }))
}

fn context(args: &Plan, opened: &Opened) -> Result<usize> {
    let most = opened.config.max_positions;
    let context = args.context.unwrap_or(if args.train.is_some() { most.min(256) } else { most });
    opened.config.check_context(args.cache.reach(context))?;
    Ok(context)
}

/// A model, and what its plan is held against.
struct Target<'a> {
    opened: &'a Opened,
    device: Option<&'a Device>,
    budget: Option<Budget>,
}

impl Target<'_> {
    /// What a run may take beside the plan: on the device that is named, else on any.
    fn overhead(&self) -> u64 {
        let any = Caps { backend: "cuda", ..Caps::default() };
        overhead(self.device.map_or(&any, Device::caps))
    }

    fn bytes(&self) -> Option<u64> {
        self.budget.as_ref().map(|budget| budget.bytes)
    }

    fn report(&self, purpose: &'static str, (context, batch): (usize, usize), parts: Vec<Part>) -> Report {
        let count = self.opened.config.parameters();
        let total = total(&parts);
        Report {
            model: self.opened.name.clone(),
            parameters: count.total(),
            ternary: count.ternary,
            purpose,
            context,
            batch,
            kv: None,
            window: None,
            sinks: None,
            total,
            total_gib: gib(total),
            overhead: self.overhead(),
            fits: self.bytes().map(|budget| total <= budget),
            budget: self.budget.clone(),
            given_up: Vec::new(),
            stream: None,
            nearest: Vec::new(),
            note: None,
            parts,
        }
    }

    fn training(&self, args: &Plan, method: Method, context: usize) -> Result<Report> {
        if args.stream || args.plot.is_some() {
            bail!("--stream and --plot are about inference; leave out --train");
        }
        let Plan { rank, batch, recompute, .. } = *args;
        let asked = Training { method, rank, batch, context, recompute, precision: args.precision.into() };
        let room = (self.bytes(), self.overhead());
        let descent = training::fit(&self.opened.config, self.device, (asked, 1), room)?;
        let Cut { batch: micro, recompute, .. } = descent.settings;
        let mut parts = Training { batch: micro, recompute, ..asked }.parts(&self.opened.config, self.device)?;
        parts.push(Part::new(OVERHEAD, self.overhead()));
        let (purpose, note) = match method {
            Method::Qat => ("training", None),
            Method::Lora => ("training of adapters (LoRA)", Some(ESTIMATE)),
            Method::Qlora => ("training of adapters (QLoRA)", Some(ESTIMATE)),
        };
        let report = self.report(purpose, (context, batch), parts);
        let near = match (report.fits, self.bytes()) {
            (Some(false), Some(budget)) => {
                nearest::of_training(&self.opened.config, asked, budget.saturating_sub(self.overhead()))?
            }
            _ => Vec::new(),
        };
        Ok(Report { note, nearest: near, given_up: descent.taken, ..report })
    }

    fn inference(&self, args: &Plan, context: usize) -> Result<Report> {
        let config = &self.opened.config;
        let formats = self.opened.formats(&*self.opened.source()?)?;
        let formats = self.device.map_or(formats, |device| formats.on(device));
        let rows = args.batch.min(MOST_ROWS);
        let layout = Layout { sequences: args.batch, rows, ..args.cache.layout(context) };
        let asked = Settings { formats, layout };
        let pack = args.formats.weights == TernaryFormat::Auto && config.is_ternary();
        let may = May { pack, ..args.cache.may() };
        let overhead = self.overhead();
        if args.stream && self.bytes().is_none() {
            bail!("--stream keeps what fits and brings in the rest: give --memory-limit, --device-memory or --device");
        }
        let stream = args.stream.then(|| streaming::way(self.device));
        let room = Room { budget: self.bytes(), overhead, stream };
        let (descent, planned) = session::fit(config, asked, may, room)?;
        // Parts are those of all layers; how they are divided stands beside them.
        let planned = if args.stream { descent.settings.plan(config, overhead)? } else { planned };
        if let Some(file) = &args.plot {
            let picture = self.plot(asked, context)?.svg();
            std::fs::write(file, picture).with_context(|| format!("{}: cannot write the picture", file.display()))?;
            eprintln!("note: {} shows memory against context", file.display());
        }
        // The model may have a window of its own.
        let layout = planned.plan.layout();
        let mut report = self.report("inference", (context, args.batch), planned.parts());
        report.kv = Some(layout.cache.kind.name());
        report.window = layout.window;
        report.sinks = layout.window.map(|_| layout.sinks);
        report.given_up = descent.taken;
        let Some(budget) = self.bytes() else { return Ok(report) };
        if args.stream {
            report.stream = match (Streamed::of(&planned, budget, self.device)?, self.device) {
                (Some(streamed), Some(device)) if streamed.streamed_bytes > 0 => {
                    Some(streamed.measured(&planned, device)?)
                }
                (streamed, _) => streamed,
            };
            report.fits = Some(report.stream.is_some());
        }
        if report.fits == Some(false) {
            report.nearest = nearest::of_session(config, asked, budget, overhead)?;
            if !args.stream || report.nearest.is_empty() {
                report.nearest.extend(nearest::of_streaming(config, asked, (budget, overhead), self.device)?);
            }
        }
        Ok(report)
    }

    /// Memory against context, a line for each type of cache.
    fn plot(&self, asked: Settings, most: usize) -> Result<Plot> {
        let mut contexts = vec![most];
        while let Some(&last) = contexts.last().filter(|&&last| last > 64 && contexts.len() < 8) {
            contexts.push((last.next_power_of_two() / 2).max(1));
        }
        contexts.reverse();
        let needs = |kind: CacheKind, capacity: usize| -> Result<u64> {
            let layout = Layout { capacity, cache: CacheFormat { kind, ..asked.layout.cache }, ..asked.layout };
            let settings = Settings { layout, ..asked };
            Ok(settings.plan(&self.opened.config, self.overhead())?.needed())
        };
        let line = |kind: CacheKind| -> Result<Line> {
            let bytes = contexts.iter().map(|&context| needs(kind, context)).collect::<Result<_>>()?;
            Ok(Line { name: kind.name().into(), bytes })
        };
        let several = match asked.layout.sequences {
            1 => String::new(),
            count => format!(", {count} sequences"),
        };
        let window = asked.layout.window.map(|window| format!(", window {}", tokens(window))).unwrap_or_default();
        let title = format!("{}: memory by context{several}{window}", self.opened.name);
        let lines = CacheKind::ALL.into_iter().map(line).collect::<Result<_>>()?;
        Ok(Plot { title, contexts, lines, budget: self.bytes() })
    }
}

const ESTIMATE: &str = "an estimate from shapes: this version trains all weights and no adapters";
