//! `tritter generate`.

use crate::cli::{Generate, Global};
use crate::device;
use crate::open::Opened;
use crate::output;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::io::Read;
use std::process::ExitCode;
use std::time::Instant;
use tritter_model::host_sampling::{Sampler, Sampling};
use tritter_model::session::{Draw, Session, SessionPlan};
use tritter_model::stream::StreamDecoder;
use tritter_model::tokenizer::Tokenizer;
use tritter_runtime::DType;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    device: String,
    prompt: &'a str,
    text: String,
    ids: Vec<u32>,
    seed: u64,
    prompt_tokens: usize,
    generated_tokens: usize,
    prefill_seconds: f64,
    decode_tokens_per_second: f64,
    first_token_seconds: f64,
}

pub(crate) fn run(global: &Global, args: &Generate) -> Result<ExitCode> {
    let start = Instant::now();
    let opened = Opened::new(&args.model)?.with(args.formats);
    let tokenizer = opened.tokenizer()?;
    let prompt = match &args.prompt {
        Some(text) => text.clone(),
        None => standard_input()?,
    };
    let ids = tokenizer.encode(&prompt, true)?;
    if ids.is_empty() {
        bail!("the prompt is empty and the tokenizer adds no token of its own; give some text");
    }
    let wanted = ids.len().saturating_add(args.max_tokens);
    let capacity = args.context.unwrap_or(wanted);
    if wanted > capacity {
        let (prompt, most) = (ids.len(), args.max_tokens);
        bail!(
            "{prompt} prompt tokens and {most} new ones do not fit a context of {capacity}; use --context {wanted} or a smaller --max-tokens"
        );
    }
    let limit = opened.config.max_positions;
    if capacity > limit {
        bail!(
            "a context of {capacity} tokens is more than the {limit} positions that the model was made for (max_position_embeddings in config.json); use a shorter prompt or a smaller --max-tokens"
        );
    }
    let settings = settings(&opened, args)?;
    let seed = args.seed.unwrap_or_else(crate::commands::check::clock_seed);
    let device = device::open(global)?;
    let model = opened.load(&device, capacity)?;
    let cache = if args.cache_f16 { DType::F16 } else { DType::F32 };
    let mut session = SessionPlan::new(&model, capacity, cache)?.open(&device)?;
    if settings.temperature > 0.0 {
        eprintln!("seed: {seed}");
    }
    let ends = if args.ignore_eos { Vec::new() } else { ends(&opened)? };
    let mut generation =
        Generation { session: &mut session, chooser: Chooser::new(settings, seed)?, history: ids.clone() };
    let begin = Instant::now();
    let first = generation.start(&ids)?;
    let prefill = begin.elapsed().as_secs_f64();
    let first_token = start.elapsed().as_secs_f64();
    if !global.json {
        output::print(&prompt)?;
    }
    let decoding = Instant::now();
    let (text, produced) = stream(&mut generation, first, args.max_tokens, &ends, &tokenizer, !global.json)?;
    let rate = (produced.len().max(1) - 1) as f64 / decoding.elapsed().as_secs_f64().max(1e-9);
    if global.json {
        let report = Report {
            model: &args.model,
            device: device.label(),
            prompt: &prompt,
            text,
            seed,
            prompt_tokens: ids.len(),
            generated_tokens: produced.len(),
            ids: produced,
            prefill_seconds: prefill,
            decode_tokens_per_second: rate,
            first_token_seconds: first_token,
        };
        output::json(&report)?;
    } else {
        output::print("\n")?;
        let (n, m) = (ids.len(), produced.len());
        eprintln!(
            "{n} prompt tokens in {prefill:.2} s, {m} tokens at {rate:.1} tokens/s, first token after {first_token:.2} s"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn standard_input() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read the prompt from standard input")?;
    let text = String::from_utf8(bytes).context("the prompt on standard input is not UTF-8")?;
    Ok(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
}

fn settings(opened: &Opened, args: &Generate) -> Result<Sampling> {
    let base = opened.generation()?.sampling();
    let settings = Sampling {
        temperature: args.temperature.unwrap_or(base.temperature),
        top_k: args.top_k.unwrap_or(base.top_k),
        top_p: args.top_p.unwrap_or(base.top_p),
        min_p: args.min_p.unwrap_or(base.min_p),
        repeat_penalty: args.repeat_penalty.unwrap_or(base.repeat_penalty),
    };
    settings.validate()?;
    Ok(settings)
}

fn ends(opened: &Opened) -> Result<Vec<u32>> {
    let mut ends = opened.generation()?.eos_token_ids;
    ends.extend(&opened.config.eos_token_ids);
    Ok(ends)
}

/// Who picks the next token: the device where it can, else the host from all logits.
enum Chooser {
    Device(Draw),
    Host(Box<Sampler>),
}

impl Chooser {
    fn new(settings: Sampling, seed: u64) -> Result<Chooser> {
        let plain = settings.top_p >= 1.0 && settings.min_p <= 0.0 && settings.repeat_penalty == 1.0;
        if !plain {
            return Ok(Chooser::Host(Box::new(Sampler::new(settings, seed)?)));
        }
        let seed = (seed ^ (seed >> 32)) as u32;
        Ok(Chooser::Device(Draw { temperature: settings.temperature, top_k: settings.top_k as u32, seed }))
    }
}

struct Generation<'a> {
    session: &'a mut Session,
    chooser: Chooser,
    history: Vec<u32>,
}

impl Generation<'_> {
    /// Feeds the prompt; gives the first new token.
    fn start(&mut self, ids: &[u32]) -> Result<u32> {
        if let Chooser::Device(draw) = self.chooser {
            self.session.set_draw(draw)?;
        }
        self.session.prefill(ids)?;
        self.pick()
    }

    /// Feeds the last token; gives the next.
    fn next(&mut self) -> Result<u32> {
        self.session.step()?;
        self.pick()
    }

    fn pick(&mut self) -> Result<u32> {
        let token = match &mut self.chooser {
            Chooser::Device(_) => self.session.token()?.wait()?,
            Chooser::Host(sampler) => {
                let token = sampler.sample(&mut self.session.logits()?, &self.history)?;
                self.session.put(token)?;
                token
            }
        };
        self.history.push(token);
        Ok(token)
    }
}

fn stream(
    generation: &mut Generation<'_>,
    first: u32,
    most: usize,
    ends: &[u32],
    tokenizer: &Tokenizer,
    show: bool,
) -> Result<(String, Vec<u32>)> {
    let mut decoder = StreamDecoder::new(tokenizer, true);
    let (mut text, mut produced, mut token) = (String::new(), Vec::new(), first);
    while produced.len() < most && !ends.contains(&token) {
        produced.push(token);
        if let Some(part) = decoder.push(token)? {
            text.push_str(&part);
            if show {
                output::print(&part)?;
            }
        }
        if produced.len() < most {
            token = generation.next()?;
        }
    }
    if let Some(rest) = decoder.finish()? {
        text.push_str(&rest);
        if show {
            output::print(&rest)?;
        }
    }
    Ok((text, produced))
}
