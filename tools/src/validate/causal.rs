//! Outputs of a causal language model: whole passes, cached passes, generation.

use super::golden::{Golden, Ids};
use super::report::Report;
use super::{bounds, compare, linear, weights};
use anyhow::Result;
use std::path::Path;
use tritter_model::Config;
use tritter_model::cache::CacheFormat;
use tritter_model::score::Scorer;
use tritter_model::session::{Session, SessionPlan};
use tritter_model::source::FromCheckpoint;
use tritter_model::tensors::Checkpoint;
use tritter_model::weights::{Form, Formats, Model};
use tritter_runtime::Device;

/// Loads the model and checks its codes in memory and every golden output that is there.
pub(super) fn check(
    folder: &Path,
    config: &Config,
    device: &Device,
    golden: Option<&Golden>,
    report: &mut Report,
) -> Result<()> {
    let positions = golden.map_or(Ok(1), longest)?;
    let checkpoint = Checkpoint::open(folder)?;
    let model = Model::with_formats(config, Form::Run, Formats::PLAIN.on(device), positions);
    model.load(device, &FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization })?;
    weights::check_codes(folder, &model, device, report)?;
    let Some(golden) = golden else { return Ok(()) };
    frequencies(&model, golden, report)?;
    linear::check(&model, device, golden, report)?;
    let mut checks = Checks { model, device, golden, report };
    checks.whole()?;
    checks.untuned()?;
    checks.cached()
}

/// Positions that the longest golden sequence takes.
fn longest(golden: &Golden) -> Result<usize> {
    let length = |name: &str| -> Result<usize> {
        let shape = if golden.has(&[name]) { golden.shape(name)? } else { Vec::new() };
        // The length of an empty tensor is not bounded by its file.
        Ok(if shape.contains(&0) { 0 } else { shape.last().copied().unwrap_or(0) })
    };
    let cached = length("prefill_ids")?.saturating_add(length("decode_ids")?);
    let others = [length("input_ids")?, length("untuned_input_ids")?, length("gen_ids")?, cached, 1];
    Ok(others.into_iter().fold(1, usize::max))
}

/// RoPE: frequencies, and the factor on cosines and sines.
fn frequencies(model: &Model, golden: &Golden, report: &mut Report) -> Result<()> {
    let half = model.config.head_dim / 2;
    if golden.has(&["rope_inv_freq"]) {
        let found = model.config.rope.frequencies(model.config.head_dim);
        let found: Vec<f32> = found.into_iter().map(|w| w as f32).collect();
        let error = compare::relative_each(&found, &golden.floats("rope_inv_freq", &[half])?);
        report.golden("rope_inv_freq (relative)", error, bounds::FREQUENCY_RELATIVE);
    }
    if golden.has(&["rope_attention_scaling"]) {
        let expected = golden.floats("rope_attention_scaling", &[1])?;
        // Tables turn without stretching; the factor is on the scores, squared.
        let factor = (model.config.attention_scale() * (2.0 * half as f32).sqrt()).sqrt();
        let rows = model.rope.values.fine.chunks(2 * half);
        let lengths = rows.flat_map(|row| row[..half].iter().zip(&row[half..]).map(|(cos, sin)| cos.hypot(*sin)));
        let factors: Vec<f32> = lengths.map(|length| length * factor).collect();
        let error = compare::max_abs(&factors, &vec![expected[0]; factors.len()]);
        report.golden("rope_attention_scaling", error, bounds::ROPE_SCALING);
    }
    Ok(())
}

struct Checks<'a> {
    model: Model,
    device: &'a Device,
    golden: &'a Golden,
    report: &'a mut Report,
}

impl Checks<'_> {
    /// Logits `[batch, length, V]` of that name.
    fn logits(&self, name: &str, ids: &Ids) -> Result<Vec<f32>> {
        self.golden.floats(name, &[ids.batch, ids.length, self.model.config.vocab_size])
    }

    fn score(&self, ids: &Ids, inside: bool) -> Result<(Scorer, Vec<f32>)> {
        let scorer = Scorer::new(self.device, &self.model, ids.ids.len(), inside)?;
        let logits = scorer.run(&ids.ids, ids.batch)?;
        Ok((scorer, logits))
    }

    /// One pass without a cache: logits and what is inside.
    fn whole(&mut self) -> Result<()> {
        if !self.golden.has(&["input_ids", "logits"]) {
            return Ok(());
        }
        let ids = self.golden.ids("input_ids")?;
        let expected = self.logits("logits", &ids)?;
        let (scorer, logits) = self.score(&ids, true)?;
        self.report.golden("logits", compare::max_abs(&logits, &expected), bounds::LOGITS);
        for point in self.golden.beginning("act.model.") {
            // Attention ends with its output projection.
            let inside = if point.ends_with(".self_attn") { format!("{point}.o_proj") } else { point.clone() };
            let Some(found) = scorer.inside(&inside)? else {
                continue;
            };
            let name = format!("act.model.{point}");
            let width = found.len() / ids.ids.len();
            let expected = self.golden.floats(&name, &[ids.batch, ids.length, width])?;
            let first = point == "embed_tokens" || point == "layers.0" || point.starts_with("layers.0.");
            let bound = if first { bounds::LAYER_0 } else { bounds::LATER_LAYERS };
            self.report.golden(name, compare::max_abs(&found, &expected), bound);
        }
        Ok(())
    }

    /// A batch that may hold rounding ties, by the looser rule.
    fn untuned(&mut self) -> Result<()> {
        if !self.golden.has(&["untuned_input_ids", "untuned_logits"]) {
            return Ok(());
        }
        let ids = self.golden.ids("untuned_input_ids")?;
        let expected = self.logits("untuned_logits", &ids)?;
        let (_, logits) = self.score(&ids, false)?;
        let v = self.model.config.vocab_size;
        let measures = [
            ("untuned_logits", compare::max_abs(&logits, &expected), bounds::UNTUNED_MAX_ABS),
            ("untuned_logits (rms)", compare::root_mean_square(&logits, &expected), bounds::UNTUNED_RMS),
            ("untuned_logits (1 - cosine)", compare::cosine_distance(&logits, &expected, v), bounds::UNTUNED_COSINE),
            ("untuned_logits (argmax differs)", compare::argmax_differs(&logits, &expected, v), bounds::UNTUNED_ARGMAX),
        ];
        for (name, error, bound) in measures {
            self.report.golden(name, error, bound);
        }
        Ok(())
    }

    /// Everything that runs over the cache, in one session.
    fn cached(&mut self) -> Result<()> {
        let prefill = self.golden.has(&["prefill_ids", "prefill_logits"]);
        let generate = self.golden.has(&["gen_prompt", "gen_ids"]);
        if !prefill && !generate {
            return Ok(());
        }
        let mut session = SessionPlan::new(&self.model, self.model.positions, CacheFormat::F32)?.open(self.device)?;
        if prefill {
            self.prefill(&mut session)?;
        }
        if generate {
            self.generate(&mut session)?;
        }
        Ok(())
    }

    fn prefill(&mut self, session: &mut Session) -> Result<()> {
        let ids = self.golden.ids("prefill_ids")?;
        let (expected, v) = (self.logits("prefill_logits", &ids)?, self.model.config.vocab_size);
        let (_, logits) = self.score(&ids, false)?;
        self.report.golden("prefill_logits", compare::max_abs(&logits, &expected), bounds::LOGITS);
        let decode =
            self.golden.has(&["decode_ids", "decode_logits"]).then(|| self.golden.ids("decode_ids")).transpose()?;
        let (mut at_once, mut in_parts, mut decoded) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..ids.batch {
            let sequence = ids.row(row);
            session.reset();
            session.prefill(sequence)?;
            at_once.extend(session.logits()?);
            // A long first part and the rest token by token: other chunk lengths, same result.
            session.reset();
            let (first, rest) = sequence.split_at(sequence.len() - sequence.len().min(3));
            session.prefill(first)?;
            for token in rest {
                session.prefill(&[*token])?;
            }
            in_parts.extend(session.logits()?);
            for token in decode.iter().filter(|d| row < d.batch).flat_map(|d| d.row(row)) {
                session.put(*token)?;
                session.step()?;
                decoded.extend(session.logits()?);
            }
        }
        let last = expected.chunks(v * ids.length).flat_map(|sequence| &sequence[v * (ids.length - 1)..]);
        let last: Vec<f32> = last.copied().collect();
        self.report.golden("prefill_logits (cached)", compare::max_abs(&at_once, &last), bounds::LOGITS);
        self.report.golden("prefill_logits (cached, in parts)", compare::max_abs(&in_parts, &last), bounds::LOGITS);
        if let Some(ids) = decode {
            let expected = self.logits("decode_logits", &ids)?;
            self.report.golden("decode_logits", compare::max_abs(&decoded, &expected), bounds::LOGITS);
        }
        Ok(())
    }

    /// Greedy generation, drawn on the device.
    fn generate(&mut self, session: &mut Session) -> Result<()> {
        let (prompt, expected) = (self.golden.ids("gen_prompt")?, self.golden.ids("gen_ids")?);
        let new = expected.length.saturating_sub(prompt.length);
        let (mut ids, mut margins) = (Vec::new(), Vec::new());
        for row in 0..prompt.batch {
            ids.extend_from_slice(prompt.row(row));
            session.reset();
            session.prefill(prompt.row(row))?;
            for i in 0..new {
                if i > 0 {
                    session.step()?;
                }
                margins.push(compare::margin(&session.logits()?));
                ids.push(session.token()?.wait()?);
            }
        }
        self.report.golden("gen_ids", compare::differing(&ids, &expected.ids), bounds::EQUAL);
        if self.golden.has(&["gen_margin"]) {
            let expected = self.golden.floats("gen_margin", &[prompt.batch, new])?;
            self.report.golden("gen_margin", compare::max_abs(&margins, &expected), bounds::MARGIN);
        }
        Ok(())
    }
}
