//! A plan as text and as JSON.

use super::budget::Budget;
use super::nearest::Nearest;
use super::parts::{Part, gib};
use super::plot::tokens;
use super::streaming::Streamed;
use crate::output;
use serde::Serialize;
use tritter_runtime::error::bytes;

/// What `--json` prints.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) model: String,
    pub(crate) parameters: u64,
    pub(crate) ternary: u64,
    /// `inference`, or how it is trained.
    pub(crate) purpose: &'static str,
    pub(crate) context: usize,
    pub(crate) batch: usize,
    /// Of inference: type of cache, window and sinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kv: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sinks: Option<usize>,
    pub(crate) parts: Vec<Part>,
    /// Bytes of all parts, the overhead among them.
    pub(crate) total: u64,
    pub(crate) total_gib: f64,
    /// Bytes that the run may take beside what is counted; stated, not measured.
    pub(crate) overhead: u64,
    pub(crate) budget: Option<Budget>,
    /// `null` without a budget.
    pub(crate) fits: Option<bool>,
    /// What a run would give up by itself.
    pub(crate) given_up: Vec<String>,
    /// With `--stream`, how the layers are divided; `null` where not even one has room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<Streamed>,
    /// Other settings that fit, where these do not.
    pub(crate) nearest: Vec<Nearest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<&'static str>,
}

impl Report {
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{} for {}: {:.1} M parameters, {:.1} M of them ternary; context {}, batch {}{}\n",
            self.model,
            self.purpose,
            self.parameters as f64 / 1e6,
            self.ternary as f64 / 1e6,
            tokens(self.context),
            self.batch,
            self.kv.map(|kv| format!(", cache in {kv}")).unwrap_or_default()
        );
        let row = |name: &str, n: u64| vec![name.to_string(), n.to_string(), bytes(n), format!("{:.2} GiB", gib(n))];
        let parts = self.parts.iter().map(|part| row(&part.name, part.bytes));
        let rows: Vec<Vec<String>> = parts.chain([row("total", self.total)]).collect();
        text += &output::table(&["part", "bytes", "GB = 10^9", "GiB = 2^30"], &rows);
        for said in &self.given_up {
            text += &format!("under pressure: {said}\n");
        }
        if let Some(stream) = &self.stream {
            text += &stream.text();
        }
        if let Some(note) = self.note {
            text += &format!("note: {note}\n");
        }
        if let Some(budget) = &self.budget {
            text += &format!("budget {} ({:.2} GiB), {}\n", bytes(budget.bytes), budget.gib, budget.by);
            text += &self.verdict(budget);
        }
        text
    }

    fn verdict(&self, budget: &Budget) -> String {
        let taken = self.stream.as_ref().map_or(self.total, |stream| stream.total);
        if self.fits == Some(true) {
            return format!("fits, {} are left\n", bytes(budget.bytes.saturating_sub(taken)));
        }
        let mut text = format!("does not fit: {} too much\n", bytes(taken.saturating_sub(budget.bytes)));
        match self.nearest.is_empty() {
            true => text += "no other settings fit; choose a smaller model or a larger device\n",
            false => text += "what would fit:\n",
        }
        let rows: Vec<Vec<String>> = self
            .nearest
            .iter()
            .map(|one| vec![format!("  {}", one.options), bytes(one.total), format!("{:.2} GiB", one.gib)])
            .collect();
        for line in output::table(&["", "", ""], &rows).lines().skip(1) {
            text += &format!("{line}\n");
        }
        text
    }
}

impl Streamed {
    fn text(&self) -> String {
        let mut text = format!(
            "streamed: {} of {} layers stay, {} come in for each step; {} on the device, {} of it to copy through\n",
            self.resident_layers,
            self.layers,
            bytes(self.streamed_bytes),
            bytes(self.total),
            bytes(self.slots)
        );
        if let Some(speed) = self.speed {
            text += &format!(
                "at most {:.2} tokens/s at the end of the context: {:.1} GB/s come in, memory is read at {:.1} GB/s\n",
                speed.tokens_per_second, speed.transfer_gb_s, speed.bandwidth_gb_s
            );
        }
        text
    }
}
