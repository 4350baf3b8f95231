//! Golden attention: masks, grouped heads, a query over kept keys, and StreamingLLM's positions.
//!
//! A case is a prefix `c` with `c.q`, `c.k` and `c.v`, all `[heads, tokens, width]`; its window, sinks and prefix
//! are in `golden.json`. A mask is a span for each token and the mask of the row, never an array: the arrays of the
//! file are held against what spans and [`Mask`] say.

use super::golden::Golden;
use super::heads::{Last, Task, as_floats, cache_rows, swapped};
use super::report::Report;
use super::{bounds, compare};
use anyhow::{Context, Result, bail};
use serde_json::Value as Json;
use std::path::Path;
use tritter_runtime::Device;
use tritter_runtime::ops::attention::{self, Mask};
use tritter_runtime::ops::rope;

/// Base of the rotary frequencies of these files, the default of the Llama family.
const THETA: f64 = 10_000.0;

/// Every case of a file.
pub(super) fn check(folder: &Path, device: &Device, golden: &Golden, report: &mut Report) -> Result<()> {
    let path = folder.join("golden.json");
    let json = super::read_json(&path)?;
    let names = golden.beginning("");
    let mut cases = Vec::new();
    for name in names.iter().filter_map(|name| name.strip_suffix(".q")) {
        let [k, v] = ["k", "v"].map(|part| format!("{name}.{part}"));
        if golden.has(&[&k, &v]) {
            let case =
                Case::read(name, golden, &json[name]).with_context(|| format!("{}: `{name}`", path.display()))?;
            case.check(device, golden, report)?;
            cases.push(name);
        }
    }
    let keys = json.as_object().into_iter().flat_map(|map| map.keys());
    // The error of a f32 computation is for information.
    let known = |key: &str| cases.contains(&key) || key.ends_with(".f32_err");
    report.unknown.extend(keys.filter(|key| !known(key)).map(|key| format!("golden.json {key}")));
    Ok(())
}

struct Case {
    name: String,
    /// Query heads, their width and key-value heads.
    heads: [usize; 3],
    tokens: usize,
    /// By token.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Documents of the tokens, where the file has them.
    documents: Option<Vec<i64>>,
    window: u32,
    sinks: u32,
    prefix: usize,
}

impl Case {
    fn read(name: &str, golden: &Golden, json: &Json) -> Result<Case> {
        let tensor = |part: &str| format!("{name}.{part}");
        let (q, k) = (golden.shape(&tensor("q"))?, golden.shape(&tensor("k"))?);
        let (&[h, t, d], &[g, _, _]) = (q.as_slice(), k.as_slice()) else {
            bail!("q has shape {q:?} and k {k:?}, expected [heads, tokens, width]");
        };
        if h == 0 || t == 0 || d == 0 || g == 0 || u32::try_from(t).is_err() {
            bail!("q has shape {q:?} and k {k:?}; no extent may be 0");
        }
        let field = |key: &str| json[key].as_u64().with_context(|| format!("`{key}` is missing or no size"));
        let read = |part: &str, heads: usize| -> Result<Vec<f32>> {
            Ok(swapped(&golden.floats(&tensor(part), &[heads, t, d])?, [heads, t], d))
        };
        let documents = tensor("doc_ids");
        let documents = golden.has(&[&documents]).then(|| golden.list(&documents, t)).transpose()?;
        Ok(Case {
            heads: [h, d, g],
            tokens: t,
            q: read("q", h)?,
            k: read("k", g)?,
            v: read("v", g)?,
            documents,
            window: u32::try_from(field("window")?)?,
            sinks: u32::try_from(field("sinks")?)?,
            prefix: usize::try_from(field("prefix")?)?,
            name: name.to_owned(),
        })
    }

    fn check(&self, device: &Device, golden: &Golden, report: &mut Report) -> Result<()> {
        for kind in golden.beginning(&format!("{}.out.", self.name)) {
            if let Some((spans, mask)) = self.visible(&kind) {
                self.whole(device, golden, report, (&kind, spans, mask))?;
            }
        }
        self.rotated(device, golden, report)?;
        self.last(device, golden, report)
    }

    fn tensor(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    /// Spans of all tokens and the mask over them; `None` for a kind that is not known.
    fn visible(&self, kind: &str) -> Option<(Vec<[u32; 2]>, Mask)> {
        let whole = |token: usize| (0, token);
        let document = |token: usize| -> (usize, usize) {
            let ids = self.documents.as_deref().unwrap_or_default();
            let same = ids[..token].iter().rev().take_while(|id| **id == ids[token]).count();
            (token - same, token)
        };
        let window = Mask::window(self.window);
        let spans = |span: &dyn Fn(usize) -> (usize, usize)| {
            (0..self.tokens).map(span).map(|(first, last)| [first as u32, last as u32]).collect()
        };
        Some(match kind {
            "causal" => (spans(&whole), Mask::WHOLE),
            "sliding" => (spans(&whole), window),
            "sink_sliding" => (spans(&whole), self.streaming()),
            "prefix_lm" => {
                (spans(&|token| (0, token.max(self.prefix.min(self.tokens).saturating_sub(1)))), Mask::WHOLE)
            }
            "full" => (spans(&|_| (0, self.tokens - 1)), Mask::WHOLE),
            "document" if self.documents.is_some() => (spans(&document), Mask::WHOLE),
            "document_sliding" if self.documents.is_some() => (spans(&document), window),
            _ => return None,
        })
    }

    /// The window and the sinks.
    fn streaming(&self) -> Mask {
        Mask { window: self.window, sinks: self.sinks }
    }

    /// The array of a mask, and what `attention` gives under it.
    fn whole(
        &self,
        device: &Device,
        golden: &Golden,
        report: &mut Report,
        (kind, spans, mask): (&str, Vec<[u32; 2]>, Mask),
    ) -> Result<()> {
        let t = self.tokens;
        let array = self.tensor(&format!("mask.{kind}"));
        if golden.has(&[&array]) {
            let mut found = vec![0u8; t * t];
            for (row, span) in found.chunks_mut(t).zip(&spans) {
                mask.keys(*span, t as u32).iter().for_each(|key| row[key as usize] = 1);
            }
            report.golden(&array, compare::differing(&found, golden.bytes(&array, &[t, t])?), bounds::EQUAL);
        }
        let o = self.attend(device, [&self.q, &self.k], &spans, mask)?;
        self.outputs(golden, report, &format!("out.{kind}"), &o)
    }

    /// `attention` of these queries and keys, `[tokens, heads, width]`.
    fn attend(&self, device: &Device, [q, k]: [&[f32]; 2], spans: &[[u32; 2]], mask: Mask) -> Result<Vec<f32>> {
        let ([h, d, g], t) = (self.heads, self.tokens);
        let mut task = Task::new(device);
        let q = task.floats("q", &[t, h, d], q);
        let k = task.floats("k", &[t, g, d], k);
        let v = task.floats("v", &[t, g, d], &self.v);
        let span = task.integers("span", &[t, 2], spans.concat());
        let o = attention::attention(&mut task.graph, [q, k, v], span, mask, (d as f32).powf(-0.5))?;
        let at = task.result(o)?;
        Ok(as_floats(&task.run()?[at]))
    }

    /// Compares `[tokens, heads, width]` with a golden `[heads, tokens, width]`.
    fn outputs(&self, golden: &Golden, report: &mut Report, part: &str, found: &[f32]) -> Result<()> {
        let name = self.tensor(part);
        let ([_, d, _], heads) = (self.heads, golden.shape(&name)?.first().copied().unwrap_or(0));
        let tokens = found.len() / (heads * d).max(1);
        let expected = golden.floats(&name, &[heads, tokens, d])?;
        let error = compare::relative_to_largest(&swapped(found, [tokens, heads], d), &expected);
        report.golden(&name, error, bounds::ATTENTION_RELATIVE);
        Ok(())
    }

    /// Rotary positions of the text.
    fn rotated(&self, device: &Device, golden: &Golden, report: &mut Report) -> Result<()> {
        let positions: Vec<u32> = (0..self.tokens as u32).collect();
        let [h, _, g] = self.heads;
        let (q, k) = (self.turned(device, &self.q, h, &positions)?, self.turned(device, &self.k, g, &positions)?);
        for (part, found) in [("rope.q", &q), ("rope.k", &k)] {
            if golden.has(&[&self.tensor(part)]) {
                self.outputs(golden, report, part, found)?;
            }
        }
        for kind in golden.beginning(&format!("{}.rope.out.", self.name)) {
            if let Some((spans, mask)) = self.visible(&kind) {
                let o = self.attend(device, [&q, &k], &spans, mask)?;
                self.outputs(golden, report, &format!("rope.out.{kind}"), &o)?;
            }
        }
        Ok(())
    }

    /// Rows `[tokens, heads, width]` turned to these positions.
    fn turned(&self, device: &Device, rows: &[f32], heads: usize, positions: &[u32]) -> Result<Vec<f32>> {
        let ([_, d, _], m) = (self.heads, positions.len());
        let tables = rope::tables(&rope::inverse_frequencies(THETA, d), self.tokens);
        let mut task = Task::new(device);
        let x = task.floats("x", &[m, heads, d], rows);
        let pos = task.integers("positions", &[m], positions.to_vec());
        let coarse = task.floats("coarse", &[tables.c, d], &tables.coarse);
        let fine = task.floats("fine", &[tables.f, d], &tables.fine);
        let y = rope::rope(&mut task.graph, x, pos, coarse, fine)?;
        let at = task.result(y)?;
        Ok(as_floats(&task.run()?[at]))
    }

    /// The last token over a cache of sinks and window, without positions and with those of the cache.
    fn last(&self, device: &Device, golden: &Golden, report: &mut Report) -> Result<()> {
        let ([h, d, g], t, mask) = (self.heads, self.tokens, self.streaming());
        let kept: Vec<u32> = mask.keys([0, t as u32 - 1], t as u32).iter().collect();
        let name = self.tensor("decode_last.kept_positions");
        if golden.has(&[&name]) {
            let expected = golden.shape(&name)?.iter().product();
            let expected = golden.list(&name, expected)?;
            let found: Vec<i64> = kept.iter().map(|&key| i64::from(key)).collect();
            report.golden(&name, compare::differing(&found, &expected), bounds::EQUAL);
        }
        let q = &self.q[(t - 1) * h * d..];
        if golden.has(&[&self.tensor("decode_last.out")]) {
            let rows = cache_rows(&self.k, &self.v, g * d);
            let o = Last { heads: self.heads, q, sink_q: q, rows: &rows, mask }.attend(device)?;
            self.outputs(golden, report, "decode_last.out", &o)?;
        }
        if golden.has(&[&self.tensor("streaming_rope.out")]) {
            // Keys keep the turn of their place in the text. Distances within the window are those of the text;
            // to the sinks they are those of the cache, so a query turned to its place there meets them.
            let text: Vec<u32> = (0..t as u32).collect();
            let k = self.turned(device, &self.k, g, &text)?;
            let rows = cache_rows(&k, &self.v, g * d);
            let [in_text, in_cache] = [t as u32 - 1, kept.len() as u32 - 1];
            let (q, sink_q) = (self.turned(device, q, h, &[in_text])?, self.turned(device, q, h, &[in_cache])?);
            let o = Last { heads: self.heads, q: &q, sink_q: &sink_q, rows: &rows, mask }.attend(device)?;
            self.outputs(golden, report, "streaming_rope.out", &o)?;
        }
        Ok(())
    }
}
