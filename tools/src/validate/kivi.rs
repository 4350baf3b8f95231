//! Golden quantisation of keys and values (KIVI, Liu et al. 2024): codes, parameters and values that come back
//! through `cache_quantize`, and attention over codes through `quantized_attention`.
//!
//! `{k,v}.int<bits>.g<group>.*` quantise `k` and `v` `[heads, tokens, width]`: keys per channel over `group`
//! tokens, values per token over `group` channels. `attn.int<bits>.residual<n>.out` is attention of `attn.q` over
//! them with the newest n tokens whole.

use super::golden::Golden;
use super::heads::{Last, Task, as_floats, cache_rows, swapped};
use super::report::Report;
use super::{bounds, compare};
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use tritter_runtime::Device;
use tritter_runtime::ops::attention::Mask;
use tritter_runtime::ops::paged::Paged;
use tritter_runtime::ops::paged::codes::{Block, Parameters};
use tritter_runtime::ops::{attention_join, cache_quantize, quantized_attention};

/// Tokens of pages that the rows know.
const PAGES: [usize; 3] = [32, 64, 128];
/// What `golden.json` says beside the tensors, for information.
const KEYS: [&str; 3] = ["origin", "checks", "attn_residual"];

/// Every golden tensor of a file.
pub(super) fn check(folder: &Path, device: &Device, golden: &Golden, report: &mut Report) -> Result<()> {
    let path = folder.join("golden.json");
    if path.exists() {
        let json = super::read_json(&path)?;
        let keys = json.as_object().into_iter().flat_map(|map| map.keys());
        report.unknown.extend(keys.filter(|k| !KEYS.contains(&k.as_str())).map(|key| format!("golden.json {key}")));
    }
    if !golden.has(&["k", "v"]) {
        return Ok(());
    }
    let text = Text::read(golden)?;
    for format in &text.formats {
        text.quantised(device, golden, report, *format)?;
    }
    text.attention(device, golden, report)
}

/// Bits of a code and elements that share parameters.
type Format = (usize, usize);

struct Text {
    heads: usize,
    tokens: usize,
    width: usize,
    /// `[heads, tokens, width]`.
    k: Vec<f32>,
    v: Vec<f32>,
    formats: BTreeSet<Format>,
}

/// The number that follows `prefix` in `text`, and the rest.
fn number<'a>(text: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let rest = text.strip_prefix(prefix)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((rest[..end].parse().ok()?, &rest[end..]))
}

impl Text {
    fn read(golden: &Golden) -> Result<Text> {
        let shape = golden.shape("k")?;
        let &[heads, tokens, width] = shape.as_slice() else {
            bail!("{}: `k` has shape {shape:?}, expected [heads, tokens, width]", golden.path().display());
        };
        if shape.contains(&0) || u32::try_from(tokens).is_err() {
            bail!("{}: `k` has shape {shape:?}; no extent may be 0", golden.path().display());
        }
        let format = |name: &String| {
            let (bits, rest) = number(name, "k.int").or_else(|| number(name, "v.int"))?;
            let (group, rest) = number(rest, ".g")?;
            (rest == ".codes" && [2, 4, 8].contains(&bits) && group > 0).then_some((bits, group))
        };
        let formats = golden.beginning("").iter().filter_map(format).collect();
        let (k, v) = (golden.floats("k", &shape)?, golden.floats("v", &shape)?);
        Ok(Text { heads, tokens, width, k, v, formats })
    }

    /// Codes and parameters of one format, keys and values.
    fn quantised(&self, device: &Device, golden: &Golden, report: &mut Report, (bits, group): Format) -> Result<()> {
        let Some(blocks) = Blocks::compute(self, device, bits, group)? else { return Ok(()) };
        let Text { heads, tokens, width, .. } = *self;
        for (part, x, values) in [("k", &self.k, false), ("v", &self.v, true)] {
            let name = |what: &str| format!("{part}.int{bits}.g{group}.{what}");
            if !golden.has(&[&name("codes"), &name("scale"), &name("zero"), &name("dequant")]) {
                continue;
            }
            let shape = [heads, tokens, width];
            let expected = golden.bytes(&name("codes"), &shape)?;
            let mut codes = 0;
            let mut dequant = Vec::with_capacity(x.len());
            for (i, (&x, &expected)) in x.iter().zip(expected).enumerate() {
                let (head, token, channel) = (i / (tokens * width), i / width % tokens, i % width);
                let found = blocks.code(values, [head, token, channel]);
                let p = blocks.parameters(values, [head, token, channel]);
                let tied = found.abs_diff(u32::from(expected)) == 1 && near_tie(x, p);
                codes += usize::from(found != u32::from(expected) && !tied);
                let code = if tied { u32::from(expected) } else { found };
                dequant.push(code as f32 * p.scale + p.zero);
            }
            report.golden(name("codes"), codes as f64, bounds::EQUAL);
            // Keys have parameters by channel and group of tokens, values by token and group of channels.
            let shape = if values { [heads, tokens, width / group] } else { [heads, width, tokens / group] };
            let of = |i: usize| {
                let (head, row, column) = (i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2] * group);
                blocks.parameters(values, if values { [head, row, column] } else { [head, column, row] })
            };
            let all: Vec<Parameters> = (0..shape.iter().product()).map(of).collect();
            let scales: Vec<f32> = all.iter().map(|p| p.scale).collect();
            let zeros: Vec<f32> = all.iter().map(|p| p.zero).collect();
            let shapes = [&shape, &shape, &[heads, tokens, width]];
            for ((what, found), shape) in [("scale", scales), ("zero", zeros), ("dequant", dequant)].iter().zip(shapes)
            {
                let error = compare::relative_to_largest(found, &golden.floats(&name(what), shape)?);
                report.golden(name(what), error, bounds::DEQUANT_RELATIVE);
            }
        }
        Ok(())
    }

    /// `attn.q` over the text, whole and over codes.
    fn attention(&self, device: &Device, golden: &Golden, report: &mut Report) -> Result<()> {
        let Text { heads: g, tokens: t, width: d, .. } = *self;
        if !golden.has(&["attn.q"]) {
            return Ok(());
        }
        let h = golden.shape("attn.q")?.first().copied().unwrap_or(0);
        let q = golden.floats("attn.q", &[h, 1, d])?;
        let (k, v) = (swapped(&self.k, [g, t], d), swapped(&self.v, [g, t], d));
        let rows = cache_rows(&k, &v, g * d);
        let heads = [h, d, g];
        if golden.has(&["attn.f32.out"]) {
            let o = Last { heads, q: &q, sink_q: &q, rows: &rows, mask: Mask::WHOLE }.attend(device)?;
            let error = compare::relative_to_largest(&o, &golden.floats("attn.f32.out", &[h, 1, d])?);
            report.golden("attn.f32.out", error, bounds::ATTENTION_RELATIVE);
        }
        for rest in golden.beginning("attn.int") {
            let parsed = number(&rest, "").and_then(|(bits, rest)| {
                let (residual, rest) = number(rest, ".residual")?;
                (rest == ".out").then_some((bits, residual))
            });
            let Some((bits, residual)) = parsed.filter(|(_, residual)| *residual <= t) else { continue };
            // Whole groups are codes; of several formats the one with the largest groups.
            let fits = |group: &usize| PAGES.contains(group) && (t - residual).is_multiple_of(*group);
            let pages = self.formats.iter().filter(|(b, _)| *b == bits).map(|(_, group)| *group);
            let Some(page) = pages.filter(fits).max() else { continue };
            let name = format!("attn.int{rest}");
            let o = over_codes(device, &q, heads, &rows, Coded { bits, page, tokens: t - residual })?;
            let error = compare::relative_to_largest(&o, &golden.floats(&name, &[h, 1, d])?);
            report.golden(name, error, bounds::ATTENTION_RELATIVE);
        }
        Ok(())
    }
}

/// Does `x` lie within a thousandth of a code of where rounding turns?
fn near_tie(x: f32, p: Parameters) -> bool {
    let exact = f64::from(x - p.zero) / f64::from(p.scale);
    (exact - exact.floor() - 0.5).abs() <= bounds::TIE
}

/// A text in codes.
struct Blocks {
    words: Vec<u32>,
    block: Block,
    heads: usize,
    group: usize,
}

impl Blocks {
    /// Quantises the whole text on the device. A group that is smaller than any page is repeated until it fills one
    /// (its least and largest element, and so its codes, stay what they are). `None` if it divides none.
    fn compute(text: &Text, device: &Device, bits: usize, group: usize) -> Result<Option<Blocks>> {
        let Text { heads, tokens, width, .. } = *text;
        let page = PAGES.into_iter().find(|page| page.is_multiple_of(group));
        let Some(page) = page.filter(|_| tokens.is_multiple_of(group) && width.is_multiple_of(group)) else {
            return Ok(None);
        };
        let (repeats, groups) = (page / group, tokens / group);
        let block = Block { page, d: width * repeats, bits, precise: true };
        let channels = |x: &[f32]| -> Vec<f32> { x.chunks(group).flat_map(|part| part.repeat(repeats)).collect() };
        let mut ring = Vec::with_capacity(groups * page * 2 * heads * block.d);
        for (n, t) in (0..groups).flat_map(|n| (0..page).map(move |t| (n, t % group))) {
            for x in [&text.k, &text.v] {
                for head in 0..heads {
                    ring.extend(channels(&x[((head * tokens) + n * group + t) * width..][..width]));
                }
            }
        }
        let mut task = Task::new(device);
        let ring = task.floats("ring", &[groups * page, 2 * heads * block.d], &ring);
        let list = (0..groups as u32).flat_map(|n| [n * page as u32, n]).collect();
        let list = task.integers("groups", &[groups, 2], list);
        let (codes, at) = task.words(&[groups * heads, block.words()]);
        cache_quantize::cache_quantize(&mut task.graph, ring, list, block, codes)?;
        let words = task.run()?.swap_remove(at);
        Ok(Some(Blocks { words, block, heads, group }))
    }

    /// The block of a head and token, and token and channel in it.
    fn place(&self, [head, token, channel]: [usize; 3]) -> (&[u32], usize, usize) {
        let (page, words) = (token / self.group, self.block.words());
        let channel = channel / self.group * self.block.page + channel % self.group;
        (&self.words[(page * self.heads + head) * words..][..words], token % self.group, channel)
    }

    fn code(&self, values: bool, at: [usize; 3]) -> u32 {
        let (block, token, channel) = self.place(at);
        self.block.code(self.block.row(block, values, token), channel)
    }

    fn parameters(&self, values: bool, at: [usize; 3]) -> Parameters {
        let (block, token, channel) = self.place(at);
        match values {
            true => self.block.value_parameters(block, token, channel / self.block.page),
            false => self.block.key_parameters(block, channel),
        }
    }
}

/// What of a text is codes.
struct Coded {
    bits: usize,
    page: usize,
    /// The first tokens; a multiple of `page`.
    tokens: usize,
}

/// One query over a text whose first tokens are codes. The ring that attention reads holds the others alone, the
/// rest of it is NaN.
fn over_codes(device: &Device, q: &[f32], [h, d, g]: [usize; 3], rows: &[Vec<f32>], coded: Coded) -> Result<Vec<f32>> {
    let Coded { bits, page, tokens } = coded;
    let block = Block { page, d, bits, precise: true };
    let (t, width, pages) = (rows.len(), 2 * g * d, (tokens / page).max(1));
    let ring = t.next_power_of_two().max(page);
    let mut all = rows.concat();
    all.resize(ring * width, 0.0);
    let mut newest = vec![f32::NAN; ring * width];
    newest[tokens * width..t * width].copy_from_slice(&all[tokens * width..t * width]);
    let mut task = Task::new(device);
    let q = task.floats("q", &[1, h, d], q);
    let all = task.floats("all", &[ring, width], &all);
    let newest = task.floats("newest", &[ring, width], &newest);
    // Pages of the pool in falling order; without codes one that is not filled.
    let place = |n: usize| if tokens == 0 { pages as u32 } else { (pages - 1 - n) as u32 };
    let list = (0..pages).flat_map(|n| [(n * page) as u32, place(n)]).collect();
    let list = task.integers("groups", &[pages, 2], list);
    let table = task.integers(
        "table",
        &[1, t.div_ceil(page)],
        (0..t.div_ceil(page)).map(|n| if n < pages { place(n) } else { 0 }).collect(),
    );
    let (codes, _) = task.words(&[pages * g, block.words()]);
    cache_quantize::cache_quantize(&mut task.graph, all, list, block, codes)?;
    let seen = task.integers("rows", &[1, 4], vec![0, 0, t as u32 - 1, tokens as u32]);
    let scale = (d as f32).powf(-0.5);
    let paged = Paged { q, sink_q: q, rows: seen, table, page, scale, mask: Mask::WHOLE, parts: 2, prompt: false };
    let parts = quantized_attention::quantized_attention(&mut task.graph, paged, block, codes, newest)?;
    let y = attention_join::attention_join(&mut task.graph, parts)?;
    let at = task.result(y)?;
    Ok(as_floats(&task.run()?[at]))
}
