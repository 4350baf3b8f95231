//! `--stream`: sessions of which some layers are brought in from a file.

use crate::cli::StreamArgs;
use crate::open::Opened;
use crate::output;
use crate::plan::session::May;
use anyhow::Result;
use serde::Serialize;
use std::ops::ControlFlow;
use tritter_model::programs::Layout;
use tritter_model::session::SessionPlan;
use tritter_model::stream::{self, Streamed};
use tritter_runtime::Device;
use tritter_runtime::error::bytes;
use tritter_runtime::stream::{Figures, Way};

/// What `--stats` and `bench decode` say of streamed layers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Streaming {
    /// Layers that stay on the device.
    resident_layers: usize,
    /// Layers of the model.
    layers: usize,
    /// Bytes that a run of the model (a token, a chunk of a prompt) brings in.
    bytes_per_run: u64,
    /// Bytes brought in.
    bytes_streamed: u64,
    /// 10^9 bytes a second while copies ran.
    gb_s: f64,
    /// Share of the copies' time in which kernels ran as well.
    overlap: f64,
    /// Tokens a second that this rate and the rest of the decoding time promise.
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted_tokens_per_second: Option<f64>,
}

/// What is known of a plan's streaming before it is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    resident: usize,
    layers: usize,
    bytes: u64,
    way: Way,
}

impl Streams {
    /// Of a plan; `None` if all layers stay.
    pub(crate) fn of(plan: &SessionPlan) -> Option<Streams> {
        let split = plan.split();
        let bytes = plan.streamed_bytes();
        split.streams().then_some(Streams { resident: split.resident, layers: split.layers, bytes, way: split.way })
    }

    /// What was brought in between two looks at a session; with tokens a second of decoding, what was to be expected.
    pub(crate) fn report(&self, figures: Figures, decoded: Option<f64>) -> Streaming {
        let predicted = decoded.map(|rate| {
            // What a step took beside waiting for copies.
            let runs = figures.bytes as f64 / (self.bytes as f64).max(1.0);
            let compute = (1.0 / rate - figures.waiting.as_secs_f64() / runs.max(1.0)).max(0.0);
            stream::tokens_per_second(self.bytes, figures.rate(), compute, self.way)
        });
        Streaming {
            resident_layers: self.resident,
            layers: self.layers,
            bytes_per_run: self.bytes,
            bytes_streamed: figures.bytes,
            gb_s: figures.rate() / 1e9,
            overlap: figures.overlap(),
            predicted_tokens_per_second: predicted.filter(|rate| rate.is_finite()),
        }
    }
}

impl Streaming {
    /// One line for people.
    pub(crate) fn text(&self) -> String {
        let predicted = self.predicted_tokens_per_second.map(|rate| format!(", {rate:.2} tokens/s predicted"));
        format!(
            "{} of {} layers stay; {} streamed at {:.2} GB/s, {} a run, {:.0} % of it under compute{}\n",
            self.resident_layers,
            self.layers,
            bytes(self.bytes_streamed),
            self.gb_s,
            bytes(self.bytes_per_run),
            100.0 * self.overlap,
            predicted.unwrap_or_default()
        )
    }
}

/// Plans a session on a device and loads its weights; with `--stream` as many layers stay as fit.
pub(crate) fn load(
    opened: &Opened,
    device: &Device,
    layout: Layout,
    may: May,
    args: StreamArgs,
) -> Result<(SessionPlan, Option<Streamed>)> {
    let source = opened.source()?;
    let plan = opened.fit(device, &*source, layout, may, args.stream)?.plan;
    let folder = stream::folder();
    match Streams::of(&plan) {
        Some(streams) => {
            let Streams { resident, layers, .. } = streams;
            let (away, place) = (bytes(streams.bytes), folder.display());
            eprintln!("streaming: {resident} of {layers} layers stay, {away} come from {place} in every run");
            if stream::in_memory(&folder) {
                eprintln!(
                    "note: {place} is kept in memory, of which this takes {away}: let XDG_CACHE_HOME be on a disk"
                );
            }
        }
        None if args.stream => eprintln!("streaming: all layers fit and stay"),
        None => {}
    }
    let bar = output::progress(plan.weights() + plan.streamed_bytes(), "bytes");
    let weights = plan.load(device, &*source, &folder, &|done, _| {
        bar.set_position(done);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    Ok((plan, weights))
}
