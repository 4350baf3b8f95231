//! `tritter generate`.

use crate::cli::{Choice, Generate, Global};
use crate::device;
use crate::measure::{Measure, MemoryReport};
use crate::open::Opened;
use crate::output;
use crate::peaks;
use crate::plan::session::May;
use crate::stream::{self, Streaming, Streams};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::io::Read;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tritter_model::chat_template::Message;
use tritter_model::generator::{Finish, Generated, Generator, Job, Took};
use tritter_model::host_sampling::Sampling;
use tritter_model::programs::{Layout, MOST_ROWS};
use tritter_model::tokenizer::Tokenizer;
use tritter_runtime::Device;

/// Texts that decode together if nothing else is said.
const BATCH: usize = 16;

/// A text and what came after it.
#[derive(Serialize)]
struct Output<'a> {
    prompt: &'a str,
    text: String,
    ids: Vec<u32>,
    finish: &'static str,
    prompt_tokens: usize,
    generated_tokens: usize,
}

/// What `--json` prints: the output's fields where there is one, else a list of outputs.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    device: String,
    #[serde(flatten)]
    single: Option<&'a Output<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<&'a [Output<'a>]>,
    seed: u64,
    prefill_seconds: f64,
    decode_tokens_per_second: f64,
    first_token_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<Stats>,
}

/// What `--stats` prints.
#[derive(Serialize)]
struct Stats {
    time_to_first_token_seconds: f64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    steps: usize,
    tokens_per_step: f64,
    bytes_per_token: f64,
    read_gb_s: f64,
    bandwidth_gb_s: f64,
    bandwidth_share: f64,
    /// Of the tokens that look-up proposed.
    acceptance: Option<f64>,
    #[serde(flatten)]
    memory: MemoryReport,
    /// Of prompt and text together.
    #[serde(skip_serializing_if = "Option::is_none")]
    streaming: Option<Streaming>,
}

pub(crate) fn run(global: &Global, args: &Generate) -> Result<ExitCode> {
    let start = Instant::now();
    let opened = Opened::new(&args.model)?.with(args.choice.formats);
    let tokenizer = opened.tokenizer()?;
    let prompts = prompts(args)?;
    let sampling = sampling(&opened, &args.choice)?;
    if args.speculate > 0 && sampling.temperature > 0.0 {
        bail!(
            "--speculate verifies against greedy choice, and the temperature is {}; add --temperature 0",
            sampling.temperature
        );
    }
    let seed = args.choice.seed.unwrap_or_else(crate::commands::check::clock_seed);
    let mut jobs = jobs(args, &tokenizer, &prompts, sampling, seed)?;
    let layout = layout(args, &jobs)?;
    let opened = opened.reaching(Some(args.choice.cache.reach(layout.capacity)))?;
    let device = device::open_within(global, args.choice.cache.memory_limit)?;
    let measure = Measure::begin(&device);
    // A draft is verified as rows of one step.
    let may = May { queue: args.speculate == 0, ..args.choice.cache.may() };
    let (plan, weights) = stream::load(&opened, &device, layout, may, args.streaming)?;
    let away = Streams::of(&plan);
    let planned = plan.total();
    let reads = Reads { step: plan.step_bytes(0.0), visible: plan.step_bytes(1.0) - plan.step_bytes(0.0) };
    let mut session = plan.open_with(&device, weights)?;
    if sampling.temperature > 0.0 {
        eprintln!("seed: {seed}");
    }
    let opening = start.elapsed();
    super::prompt_cache::prepare(args, &opened, &mut session, &mut jobs)?;
    let mut generator = Generator::new(&mut session, &tokenizer);
    generator.ends = if args.ignore_eos { Vec::new() } else { ends(&opened)? };
    generator.stops = args.choice.stop.clone();
    generator.draft = args.speculate;
    let streams = !global.json && jobs.len() == 1;
    if streams && !args.chat {
        output::print(&prompts[0])?;
    }
    let mut printed = Ok(());
    let (texts, took) = generator.run(&jobs, &mut |_, text| {
        if streams && printed.is_ok() {
            printed = output::print(text);
        }
    })?;
    printed?;
    let outputs: Vec<Output<'_>> =
        prompts.iter().zip(&jobs).zip(texts).map(|((p, job), text)| output_of(p, job, text)).collect();
    if streams {
        output::print("\n")?;
    } else if !global.json {
        for one in &outputs {
            output::print(&format!("{}{}\n", if args.chat { "" } else { one.prompt }, one.text))?;
        }
    }
    for (i, one) in outputs.iter().enumerate().filter(|(_, one)| one.finish == spell(Finish::Pages)) {
        let text = if outputs.len() == 1 { "the text".to_string() } else { format!("text {}", i + 1) };
        let more = if session.layout().sequences == 1 { "" } else { ", or fewer texts at a time (--batch)" };
        eprintln!(
            "note: {text} ended after {} tokens, because the cache has no page left for it; use more --pages{more}",
            one.generated_tokens
        );
    }
    let memory = MemoryReport::of(&device, planned, &measure);
    let streamed = away.map(|away| away.report(session.streaming().unwrap_or_default(), None));
    // Bandwidth is measured with memory of its own.
    drop(session);
    let stats =
        if args.stats { Some(Stats { streaming: streamed, ..stats(&device, &took, &reads, memory)? }) } else { None };
    if global.json {
        let single = if let [one] = outputs.as_slice() { Some(one) } else { None };
        return output::json(&Report {
            model: &args.model,
            device: device.label(),
            single,
            outputs: single.is_none().then_some(&outputs),
            seed,
            prefill_seconds: took.prefill.as_secs_f64(),
            decode_tokens_per_second: rate(took.decoded, took.decode),
            first_token_seconds: (opening + took.first_token).as_secs_f64(),
            stats,
        })
        .map(|()| ExitCode::SUCCESS);
    }
    eprintln!(
        "{} prompt tokens in {:.2} s, {} tokens at {:.1} tokens/s, first token after {:.2} s",
        took.prompt_tokens,
        took.prefill.as_secs_f64(),
        outputs.iter().map(|one| one.generated_tokens).sum::<usize>(),
        rate(took.decoded, took.decode),
        (opening + took.first_token).as_secs_f64()
    );
    stats.iter().for_each(|stats| eprint!("{}", text(stats)));
    Ok(ExitCode::SUCCESS)
}

/// Texts of the command line, of the file, or of standard input.
fn prompts(args: &Generate) -> Result<Vec<String>> {
    let mut all: Vec<String> = args.text.iter().chain(&args.more).cloned().collect();
    if let Some(file) = &args.prompts {
        let text = std::fs::read_to_string(file).with_context(|| format!("{}: cannot read prompts", file.display()))?;
        all.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        if all.is_empty() {
            bail!("{}: holds no prompts; write one in each line", file.display());
        }
    }
    if all.is_empty() {
        all.push(standard_input()?);
    }
    Ok(all)
}

fn standard_input() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read the prompt from standard input")?;
    let text = String::from_utf8(bytes).context("the prompt on standard input is not UTF-8")?;
    Ok(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
}

fn jobs(args: &Generate, tokenizer: &Tokenizer, prompts: &[String], sampling: Sampling, seed: u64) -> Result<Vec<Job>> {
    let encode = |prompt: &String| -> Result<Vec<u32>> {
        if !args.chat {
            return Ok(tokenizer.encode(prompt, true)?);
        }
        let mut messages: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
        messages.push(Message::new("user", prompt));
        // The template writes special tokens itself.
        Ok(tokenizer.encode(&tokenizer.render_chat(&messages, true)?, false)?)
    };
    let job = |prompt: &String| {
        let ids = encode(prompt)?;
        if ids.is_empty() {
            bail!("the prompt is empty and the tokenizer adds no token of its own; give some text");
        }
        Ok(Job { ids, cached: 0, max_tokens: args.max_tokens, sampling, seed })
    };
    prompts.iter().map(job).collect()
}

/// Room for the longest text, times those that decode together.
fn layout(args: &Generate, jobs: &[Job]) -> Result<Layout> {
    let prompt = jobs.iter().map(|job| job.ids.len()).max().unwrap_or(0);
    let (most, wanted) = (args.max_tokens, prompt.saturating_add(args.max_tokens));
    let capacity = args.context.unwrap_or(wanted);
    if wanted > capacity {
        bail!(
            "{prompt} prompt tokens and {most} new ones do not fit a context of {capacity}; use --context {wanted} or a smaller --max-tokens"
        );
    }
    let batch = match (args.batch, args.speculate) {
        (Some(0), _) => bail!("--batch must be at least 1"),
        (_, MOST_ROWS..) => {
            bail!("--speculate {}: at most {} tokens are proposed at a time", args.speculate, MOST_ROWS - 1)
        }
        (Some(2..), 1..) => bail!("--speculate decodes one text at a time; leave out --batch"),
        (_, 1..) => 1,
        (batch, 0) => batch.unwrap_or(BATCH),
    };
    let sequences = batch.min(jobs.len());
    Ok(Layout { sequences, rows: sequences.max(args.speculate + 1), ..args.choice.cache.layout(capacity) })
}

/// Settings of the command line over those of the folder.
pub(crate) fn sampling(opened: &Opened, args: &Choice) -> Result<Sampling> {
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

/// Tokens that end a text, as the folder says.
pub(crate) fn ends(opened: &Opened) -> Result<Vec<u32>> {
    let mut ends = opened.generation()?.eos_token_ids;
    ends.extend(&opened.config.eos_token_ids);
    Ok(ends)
}

/// A finish as `--json` spells it.
pub(crate) fn spell(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::End => "end",
        Finish::Stop => "stop",
        Finish::Pages => "cache pages",
    }
}

fn output_of<'a>(prompt: &'a str, job: &Job, made: Generated) -> Output<'a> {
    Output {
        prompt,
        text: made.text,
        finish: spell(made.finish),
        prompt_tokens: job.ids.len(),
        generated_tokens: made.ids.len(),
        ids: made.ids,
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}

/// Bytes that a step reads of weights, and of the cache for each token that a row sees.
struct Reads {
    step: f64,
    visible: f64,
}

fn stats(device: &Device, took: &Took, reads: &Reads, memory: MemoryReport) -> Result<Stats> {
    let read = took.steps as f64 * reads.step + took.visible as f64 * reads.visible;
    let per_second = read / took.decode.as_secs_f64().max(1e-9) / 1e9;
    let bandwidth = peaks::measure(device)?.bandwidth_gb_s;
    Ok(Stats {
        time_to_first_token_seconds: took.first_token.as_secs_f64(),
        prefill_tokens_per_second: rate(took.prompt_tokens, took.prefill),
        decode_tokens_per_second: rate(took.decoded, took.decode),
        steps: took.steps,
        tokens_per_step: took.decoded as f64 / took.steps.max(1) as f64,
        bytes_per_token: read / took.decoded.max(1) as f64,
        read_gb_s: per_second,
        bandwidth_gb_s: bandwidth,
        bandwidth_share: per_second / bandwidth,
        acceptance: (took.drafted > 0).then(|| took.accepted as f64 / took.drafted as f64),
        memory,
        streaming: None,
    })
}

fn text(s: &Stats) -> String {
    let mut text = format!(
        "time to first token {:.3} s, prefill {:.1} tokens/s\n\
         decode {:.1} tokens/s, {:.2} tokens a step over {} steps\n\
         {:.1} MB read per token: {:.1} GB/s, {:.0} % of the {:.1} GB/s measured\n",
        s.time_to_first_token_seconds,
        s.prefill_tokens_per_second,
        s.decode_tokens_per_second,
        s.tokens_per_step,
        s.steps,
        s.bytes_per_token / 1e6,
        s.read_gb_s,
        100.0 * s.bandwidth_share,
        s.bandwidth_gb_s
    );
    if let Some(acceptance) = s.acceptance {
        text += &format!("{:.0} % of the drafted tokens were accepted\n", 100.0 * acceptance);
    }
    text += &s.streaming.map(|streaming| streaming.text()).unwrap_or_default();
    text + &format!("{}\n", s.memory)
}
