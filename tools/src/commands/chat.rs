//! `tritter chat`: a conversation in the model's own template.
//!
//! The whole conversation is rendered anew each turn and compared with what the cache holds, so only what
//! is new is fed, whatever the template does with earlier turns. A conversation can be kept in a file and gone on with.

use crate::cli::{Chat, Global};
use crate::commands::generate::{ends, sampling, spell};
use crate::commands::prompt_cache::Kept;
use crate::device;
use crate::open::Opened;
use crate::output;
use crate::stream;
use anyhow::{Context, Result};
use serde::Serialize;
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use tritter_model::chat_template::Message;
use tritter_model::generator::{Finish, Generated, Generator, Job, Took};
use tritter_model::host_sampling::Sampling;
use tritter_model::session::Session;
use tritter_model::tokenizer::Tokenizer;

/// Positions of the cache if nothing else is said and the model has as many.
const CONTEXT: usize = 4096;

/// A question and its answer.
#[derive(Serialize)]
struct Turn {
    user: String,
    text: String,
    finish: &'static str,
    /// Tokens of the conversation up to the answer, and those of them that had to be fed.
    context_tokens: usize,
    fed_tokens: usize,
    generated_tokens: usize,
}

/// What `--json` prints at the end.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    device: String,
    seed: u64,
    turns: Vec<Turn>,
}

pub(crate) fn run(global: &Global, args: &Chat) -> Result<ExitCode> {
    let opened = Opened::new(&args.model)?
        .with(args.choice.formats)
        .reaching(args.context.map(|context| args.choice.cache.reach(context)))?;
    let tokenizer = opened.tokenizer()?;
    let system: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    if !tokenizer.has_chat() {
        // Says what is missing, and where.
        tokenizer.render_chat(&system, true)?;
    }
    let capacity = args.context.unwrap_or(CONTEXT.min(opened.config.max_positions));
    let sampling = sampling(&opened, &args.choice)?;
    let seed = args.choice.seed.unwrap_or_else(crate::commands::check::clock_seed);
    let mut ends = ends(&opened)?;
    ends.extend(tokenizer.eos_id());
    let cache = args.choice.cache;
    let device = device::open_within(global, cache.memory_limit)?;
    let (plan, weights) = stream::load(&opened, &device, cache.layout(capacity), cache.may(), args.streaming)?;
    let mut session = plan.open_with(&device, weights)?;
    if sampling.temperature > 0.0 {
        eprintln!("seed: {seed}");
    }
    let (kept, begun) = Kept::begin(args, &opened, &mut session)?;
    // What a conversation begins with is what it goes back to.
    let begin = if begun.messages.is_empty() { system } else { leading(&begun.messages) };
    let mut talk = Talk {
        args,
        tokenizer: &tokenizer,
        session: &mut session,
        ends,
        sampling,
        seed,
        show: !global.json,
        messages: if begun.messages.is_empty() { begin.clone() } else { begun.messages },
        cached: begun.ids,
    };
    let mut turns = Vec::new();
    let mut lines = Lines::new();
    while let Some(text) = lines.next()? {
        match text.trim() {
            "" => {}
            "/quit" => break,
            "/reset" => {
                talk.messages = begin.clone();
                eprintln!("note: the conversation is forgotten");
            }
            _ => turns.extend(talk.turn(text)?),
        }
    }
    let Talk { messages, cached, .. } = talk;
    kept.end(&session, &messages, cached)?;
    if global.json {
        output::json(&Report { model: &args.model, device: device.label(), seed, turns })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Messages before anybody spoke.
fn leading(messages: &[Message]) -> Vec<Message> {
    messages.iter().take_while(|message| message.role == "system").cloned().collect()
}

/// A conversation under way.
struct Talk<'a> {
    args: &'a Chat,
    tokenizer: &'a Tokenizer,
    session: &'a mut Session,
    ends: Vec<u32>,
    sampling: Sampling,
    seed: u64,
    show: bool,
    messages: Vec<Message>,
    /// Ids that the cache holds.
    cached: Vec<u32>,
}

impl Talk<'_> {
    /// Says something and prints the answer; `None` where there is no room for it.
    fn turn(&mut self, text: String) -> Result<Option<Turn>> {
        self.messages.push(Message::new("user", &text));
        // The template writes special tokens itself.
        let ids = self.tokenizer.encode(&self.tokenizer.render_chat(&self.messages, true)?, false)?;
        let room = self.session.capacity().saturating_sub(ids.len());
        if room == 0 || ids.is_empty() {
            self.messages.pop();
            let (used, context) = (ids.len(), self.session.capacity());
            eprintln!(
                "note: with this the conversation has {used} tokens, the context {context}; /reset or a longer --context"
            );
            return Ok(None);
        }
        let (made, took) = self.answer(&ids, room)?;
        if made.finish == Finish::Pages {
            eprintln!("note: the cache has no page left for this conversation; /reset or more --pages");
        }
        let turn = Turn {
            user: text,
            text: made.text.clone(),
            finish: spell(made.finish),
            context_tokens: ids.len(),
            fed_tokens: took.prompt_tokens,
            generated_tokens: made.ids.len(),
        };
        self.messages.push(Message { role: "assistant".into(), content: made.text });
        self.cached = ids;
        self.cached.extend(made.ids);
        self.cached.truncate(self.session.position());
        Ok(Some(turn))
    }

    fn answer(&mut self, ids: &[u32], room: usize) -> Result<(Generated, Took)> {
        let common = self.cached.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let job = Job {
            ids: ids.to_vec(),
            // The last token is always fed: its logits are wanted.
            cached: common.min(ids.len() - 1),
            max_tokens: self.args.max_tokens.min(room),
            sampling: self.sampling,
            seed: self.seed,
        };
        let mut generator = Generator::new(self.session, self.tokenizer);
        generator.ends.clone_from(&self.ends);
        generator.stops.clone_from(&self.args.choice.stop);
        let (show, mut printed) = (self.show, Ok(()));
        let (mut made, took) = generator.run(&[job], &mut |_, text| {
            if show && printed.is_ok() {
                printed = output::print(text);
            }
        })?;
        printed?;
        if show {
            output::print("\n")?;
        }
        Ok((made.pop().context("no answer")?, took))
    }
}

/// Lines of standard input, those that end with a backslash joined with the next.
struct Lines {
    asks: bool,
}

impl Lines {
    fn new() -> Lines {
        Lines { asks: std::io::stdin().is_terminal() && std::io::stderr().is_terminal() }
    }

    fn next(&mut self) -> Result<Option<String>> {
        let mut text = String::new();
        let mut mark = "> ";
        loop {
            if self.asks {
                eprint!("{mark}");
            }
            let mut line = Vec::new();
            let read = std::io::stdin().lock().read_until(b'\n', &mut line).context("cannot read standard input")?;
            if read == 0 {
                return Ok(Some(text).filter(|text| !text.is_empty()));
            }
            let line = String::from_utf8(line).context("what is said on standard input is not UTF-8")?;
            let line = line.strip_suffix('\n').unwrap_or(&line);
            let line = line.strip_suffix('\r').unwrap_or(line);
            let Some(open) = line.strip_suffix('\\') else {
                return Ok(Some(text + line));
            };
            text.push_str(open);
            text.push('\n');
            mark = ". ";
        }
    }
}
