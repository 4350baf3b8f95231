//! Generating text: prompts in, tokens and text out, over a [`Session`].
//!
//! Prompts are fed one after the other, then decode together; a sequence that ends makes room for the
//! next prompt. A sequence's tokens do not depend on those beside it: each draws with its own seed, and
//! the number of a draw is its position.
//!
//! Where the device draws and queues its runs, the next step is put into the queue before this one's
//! tokens are read. An end (of text, by a stop string) is then seen one step late: the surplus token is
//! dropped and the position set back.

mod row;

use crate::error::{Error, Result};
use crate::host_sampling::{Sampler, Sampling};
use crate::lookup;
use crate::session::{BatchRow, Draw, PendingTokens, Session};
use crate::stop::StopStrings;
use crate::text_stream::StreamDecoder;
use crate::tokenizer::Tokenizer;
use row::Row;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A prompt and how it is to be continued.
#[derive(Clone, Debug)]
pub struct Job {
    /// Ids of the prompt, at least one beyond `cached`.
    pub ids: Vec<u32>,
    /// So many of them are in the cache of the first sequence already.
    pub cached: usize,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the draws.
    pub seed: u64,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It has as many tokens as were asked for.
    Length,
    /// The model drew a token that ends a text.
    End,
    /// A stop string came.
    Stop,
    /// The pool of the cache had no page left for it.
    Pages,
}

/// A continuation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Tokens without the one that ends a text; with those of a stop string.
    pub ids: Vec<u32>,
    /// Text without special tokens and without the stop string.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// Tokens of prompts that were fed.
    pub prompt_tokens: usize,
    /// Tokens of prompts that were not fed, because another sequence held the same.
    pub shared_tokens: usize,
    /// Feeding them, with the first token of each.
    pub prefill: Duration,
    /// From the beginning to the first token.
    pub first_token: Duration,
    /// Tokens that steps gave and that were kept.
    pub decoded: usize,
    /// All steps.
    pub decode: Duration,
    /// Steps.
    pub steps: usize,
    /// Tokens that look-up proposed.
    pub drafted: usize,
    /// Those that were what the model says.
    pub accepted: usize,
    /// Sum over steps and sequences of the tokens that a row saw.
    pub visible: u64,
    /// Rows of steps.
    pub rows: usize,
}

/// Generates over a session.
pub struct Generator<'a> {
    /// The session; its sequences are taken as needed.
    pub session: &'a mut Session,
    /// Turns tokens into text.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
    /// Strings that end a text.
    pub stops: Vec<String>,
    /// Tokens that prompt look-up proposes at a time; 0 is off. Greedy, one sequence at a time.
    pub draft: usize,
    /// Steps that are put into the queue before the tokens of the one under way are read.
    pub ahead: usize,
}

impl<'a> Generator<'a> {
    /// Generates until the asked length; one step ahead where the device queues its runs.
    pub fn new(session: &'a mut Session, tokenizer: &'a Tokenizer) -> Generator<'a> {
        let ahead = usize::from(session.queues());
        Generator { session, tokenizer, ends: Vec::new(), stops: Vec::new(), draft: 0, ahead }
    }

    /// Continues every prompt; `sink` gets the index of a job and the next piece of its text.
    pub fn run(&mut self, jobs: &[Job], sink: &mut dyn FnMut(usize, &str)) -> Result<(Vec<Generated>, Took)> {
        self.check(jobs)?;
        let start = Instant::now();
        // Rows of a step are all chosen in one place.
        let host = jobs.iter().any(|job| Draw::of(&job.sampling, job.seed).is_none());
        let mut took = Took::default();
        let mut done: Vec<Option<Generated>> = jobs.iter().map(|_| None).collect();
        let mut rows: Vec<Row<'a>> = Vec::new();
        let mut waiting = jobs.iter().enumerate().peekable();
        loop {
            let taken: Vec<usize> = rows.iter().map(|row| row.sequence).collect();
            for sequence in (0..self.session.layout().sequences).filter(|s| !taken.contains(s)) {
                let Some(&(index, job)) = waiting.peek() else { break };
                let begin = Instant::now();
                let Some((row, cached)) = self.begin(index, job, (sequence, host), &rows, sink)? else {
                    if rows.is_empty() {
                        // Nothing will be given back: it never fits.
                        let (ids, text) = (Vec::new(), String::new());
                        done[index] = Some(Generated { ids, text, finish: Finish::Pages });
                        waiting.next();
                    }
                    break;
                };
                waiting.next();
                took.prefill += begin.elapsed();
                took.prompt_tokens += job.ids.len() - cached;
                took.shared_tokens += if job.cached == 0 { cached } else { 0 };
                if took.first_token.is_zero() {
                    took.first_token = start.elapsed();
                }
                rows.push(row);
            }
            if rows.is_empty() {
                match waiting.peek() {
                    Some(_) => continue,
                    None => break,
                }
            }
            rows.sort_by_key(|row| row.sequence);
            let begin = Instant::now();
            if rows.iter().all(|row| row.finish.is_none()) {
                match rows.as_mut_slice() {
                    [row] if self.draft > 0 => self.speculate(row, &mut took, sink)?,
                    rows => self.decode(rows, &mut took, sink)?,
                }
            }
            took.decode += begin.elapsed();
            for row in rows.extract_if(.., |row| row.finish.is_some()) {
                // A surplus step went past the end.
                let fed = self.session.position_of(row.sequence)?.min(row.history.len());
                if self.session.layout().sequences > 1 {
                    self.session.release(row.sequence)?;
                } else {
                    self.session.rewind(row.sequence, fed)?;
                }
                let job = row.job;
                done[job] = Some(row.done(sink)?);
            }
        }
        Ok((done.into_iter().flatten().collect(), took))
    }

    fn check(&self, jobs: &[Job]) -> Result<()> {
        for job in jobs {
            job.sampling.validate()?;
            if job.ids.len() <= job.cached {
                return Err(Error::Session("a prompt has no token to be fed".into()));
            }
            let needed = job.ids.len().saturating_add(job.max_tokens);
            if needed > self.session.capacity() {
                return Err(Error::Context { needed, available: self.session.capacity() });
            }
            if self.draft > 0 && (job.sampling.temperature > 0.0 || job.sampling.repeat_penalty != 1.0) {
                return Err(Error::Session("drafts are verified against greedy choice; sampling must be off".into()));
            }
        }
        if jobs.iter().any(|job| job.cached > 0) && jobs.len() > 1 {
            return Err(Error::Session("only one prompt can go on from a cache".into()));
        }
        let Self { session, draft, .. } = self;
        if *draft > 0 && (session.layout().sequences > 1 || session.layout().rows <= *draft) {
            return Err(Error::Session(format!("drafts of {draft} need one sequence and steps of {} rows", draft + 1)));
        }
        Ok(())
    }

    /// Feeds a prompt, but for what is in the cache already; gives the new row and how much that was. `None`, and
    /// the sequence is as it was before any text, if there are too few pages.
    fn begin(
        &mut self,
        index: usize,
        job: &Job,
        (sequence, host): (usize, bool),
        rows: &[Row<'_>],
        sink: &mut dyn FnMut(usize, &str),
    ) -> Result<Option<(Row<'a>, usize)>> {
        let cached = match job.cached {
            0 => self.share(job, sequence, rows)?,
            cached => self.session.rewind(sequence, cached)?,
        };
        if self.session.has_room(sequence, job.ids.len() - cached)? {
            match self.feed(index, job, (sequence, cached), host, sink) {
                // Behind a window pages come and go, so there may be too few further on.
                Err(Error::Pages { .. }) => {}
                fed => return Ok(Some((fed?, cached))),
            }
        }
        self.session.release(sequence)?;
        Ok(None)
    }

    /// Takes over what a sequence in the making has in common with a prompt, if it is a page at least; gives the
    /// tokens that need not be fed.
    fn share(&mut self, job: &Job, sequence: usize, rows: &[Row<'_>]) -> Result<usize> {
        let mut best = (self.session.layout().cache.page, None);
        for row in rows {
            let fed = self.session.position_of(row.sequence)?.min(job.ids.len() - 1);
            let common = row.history.iter().zip(&job.ids).take(fed).take_while(|(a, b)| a == b).count();
            if common >= best.0 {
                best = (common, Some(row.sequence));
            }
        }
        match best {
            (common, Some(from)) => self.session.fork(from, sequence, common),
            _ => self.session.release(sequence).map(|()| 0),
        }
    }

    /// Feeds the rest of a prompt and takes the first token.
    fn feed(
        &mut self,
        index: usize,
        job: &Job,
        (sequence, cached): (usize, usize),
        host: bool,
        sink: &mut dyn FnMut(usize, &str),
    ) -> Result<Row<'a>> {
        let draw = Draw::of(&job.sampling, job.seed).unwrap_or(Draw::GREEDY);
        self.session.set_draw_of(sequence, draw)?;
        let sampler = if host { Some(Sampler::new(job.sampling, job.seed)?) } else { None };
        self.session.prefill_of(sequence, &job.ids[cached..])?;
        let mut row = Row {
            job: index,
            sequence,
            prompt: job.ids.len(),
            most: job.max_tokens,
            history: job.ids.clone(),
            asked: 1,
            sampler,
            decoder: StreamDecoder::new(self.tokenizer, true),
            stops: StopStrings::new(&self.stops),
            text: String::new(),
            finish: (job.max_tokens == 0).then_some(Finish::Length),
            starved: false,
        };
        let token = match &mut row.sampler {
            None => self.session.token()?.wait()?,
            Some(sampler) => sampler.sample(&mut self.session.logits()?, &row.history)?,
        };
        if row.finish.is_none() {
            row.accept(token, &self.ends, sink)?;
        }
        Ok(row)
    }

    /// Steps until at least one row is finished, and none is under way.
    fn decode(&mut self, rows: &mut [Row<'_>], took: &mut Took, sink: &mut dyn FnMut(usize, &str)) -> Result<()> {
        let last: Vec<u32> = rows.iter().map(Row::last).collect();
        self.session.put_batch(&last)?;
        let host = rows.iter().any(|row| row.sampler.is_some());
        let depth = if host { 1 } else { self.ahead + 1 };
        let mut under_way: VecDeque<(Vec<bool>, PendingTokens)> = VecDeque::new();
        loop {
            let finished = |rows: &[Row<'_>]| rows.iter().any(|row| row.finish.is_some() || row.starved);
            while !finished(rows) && under_way.len() < depth && rows.iter().any(Row::wants) {
                // One that finds no page ends, and what it gives back is there for the next.
                for row in rows.iter_mut().filter(|row| row.wants()) {
                    row.starved = !self.session.has_room(row.sequence, 1)?;
                    if row.starved {
                        break;
                    }
                }
                if finished(rows) {
                    break;
                }
                let live: Vec<bool> = rows.iter().map(Row::wants).collect();
                let row = |(row, &live): (&Row<'_>, &bool)| BatchRow { sequence: row.sequence, live };
                self.session.step_batch(&rows.iter().zip(&live).map(row).collect::<Vec<_>>())?;
                took.steps += 1;
                for row in rows.iter_mut().filter(|row| row.wants()) {
                    row.asked += 1;
                    took.rows += 1;
                    took.visible += self.session.seen(self.session.position_of(row.sequence)?) as u64;
                }
                under_way.push_back((live, self.session.tokens()?));
            }
            let Some((live, tokens)) = under_way.pop_front() else {
                for row in rows.iter_mut().filter(|row| row.starved && row.finish.is_none()) {
                    row.finish = Some(Finish::Pages);
                }
                return Ok(());
            };
            let tokens = if host { self.choose(rows)? } else { tokens.wait()? };
            for ((row, token), _) in
                rows.iter_mut().zip(tokens).zip(live).filter(|((row, _), live)| *live && row.finish.is_none())
            {
                row.accept(token, &self.ends, sink)?;
                took.decoded += 1;
            }
        }
    }

    /// Chooses on the host, for settings that the device does not draw with.
    fn choose(&mut self, rows: &mut [Row<'_>]) -> Result<Vec<u32>> {
        let mut logits = self.session.logits()?;
        let vocab = logits.len() / self.session.width(rows.len())?;
        let choose = |(row, logits): (&mut Row<'_>, &mut [f32])| match &mut row.sampler {
            Some(sampler) if row.finish.is_none() => sampler.sample(logits, &row.history),
            _ => Ok(0),
        };
        let tokens: Vec<u32> = rows.iter_mut().zip(logits.chunks_mut(vocab)).map(choose).collect::<Result<_>>()?;
        self.session.put_batch(&tokens)?;
        Ok(tokens)
    }

    /// Decodes one sequence with drafts: each step feeds the last token and a draft, and keeps what the
    /// model would have said itself.
    fn speculate(&mut self, row: &mut Row<'_>, took: &mut Took, sink: &mut dyn FnMut(usize, &str)) -> Result<()> {
        while row.finish.is_none() {
            let left = row.most - row.produced();
            let mut draft = lookup::draft(&row.history, self.draft.min(left - 1));
            if !self.session.has_room(row.sequence, 1 + draft.len())? {
                // Without a draft it goes as far as it would go by itself.
                draft.clear();
            }
            let mut ids = vec![row.last()];
            ids.extend(&draft);
            let fed = self.session.position_of(row.sequence)?;
            if !self.session.has_room(row.sequence, ids.len())? {
                row.finish = Some(Finish::Pages);
                return Ok(());
            }
            self.session.verify(row.sequence, &ids)?;
            let tokens = self.session.tokens()?.wait()?;
            let right = draft.iter().zip(&tokens).take_while(|(draft, token)| draft == token).count();
            took.steps += 1;
            took.rows += ids.len();
            took.visible += (1..=ids.len()).map(|i| self.session.seen(fed + i) as u64).sum::<u64>();
            took.drafted += draft.len();
            took.accepted += right;
            for &token in &tokens[..=right.min(tokens.len() - 1)] {
                if row.finish.is_none() {
                    row.accept(token, &self.ends, sink)?;
                    took.decoded += 1;
                }
            }
            row.asked = row.produced();
            self.session.rewind(row.sequence, fed + right + 1)?;
        }
        Ok(())
    }
}
