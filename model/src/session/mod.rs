//! Inference: prefill in chunks and decoding in steps, for one sequence or several over one cache.
//!
//! Every sequence has pages of the cache, a position and its own way to draw. The tokens that
//! a step draws stay on the device and are the next step's input, so a step needs nothing from the host
//! but positions, and the next one can be put into the queue before this one's tokens are read.
//!
//! A run that went too far (past an end, along a wrong draft) is taken back by [`Session::rewind`]: keys
//! beyond a position are never read, so nothing else is to be undone.

mod draw;
mod plan;

pub use draw::{Draw, PendingToken, PendingTokens};
pub use plan::SessionPlan;

use crate::cache::Cache;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::places::Sequences;
use crate::programs::{CONTROL, Drawn, Layout, Ready, Row};
use crate::stream::Streamed;
use tritter_runtime::Device;
use tritter_runtime::ops::attention::mask::NO_WINDOW;
use tritter_runtime::stream::Figures;

/// A program and the settings that its rows were last given.
struct Stage {
    ready: Ready,
    control: Vec<f32>,
}

/// A row of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRow {
    /// Its sequence.
    pub sequence: usize,
    /// A row that is not live keeps its place beside the others, and its sequence stays as it is.
    pub live: bool,
}

/// A running session: weights, cache, programs and positions. Functions that name no sequence are about
/// the first.
pub struct Session {
    pub(crate) device: Device,
    pub(crate) config: Config,
    layout: Layout,
    chunks: Vec<Stage>,
    steps: Vec<Stage>,
    draws: Vec<Draw>,
    pub(crate) sequences: Sequences,
    pub(crate) cache: Cache,
    /// Those that do not stay.
    weights: Option<Streamed>,
    /// The step whose tokens and logits are those of the last run.
    newest: usize,
}

impl Session {
    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        self.sequences.each[0].position
    }

    /// Tokens of a sequence in the cache.
    pub fn position_of(&self, sequence: usize) -> Result<usize> {
        self.known_sequence(sequence)?;
        Ok(self.sequences.each[sequence].position)
    }

    /// Keys that the last of so many tokens sees.
    pub fn seen(&self, tokens: usize) -> usize {
        let shape = &self.cache.shape;
        tokens.min((shape.window as usize).saturating_add(shape.sinks as usize))
    }

    /// Positions that the cache holds for a sequence.
    pub fn capacity(&self) -> usize {
        self.layout.capacity
    }

    /// What it has room for.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether runs are queued: [`Session::step`] then returns before the step is done.
    pub fn queues(&self) -> bool {
        self.device.caps().backend != "cpu"
    }

    /// Forgets all tokens of all sequences. The cache's content need not be cleared: nothing beyond a
    /// position is read.
    pub fn reset(&mut self) {
        (0..self.layout.sequences).for_each(|sequence| _ = self.sequences.rewind(sequence, 0));
    }

    /// Forgets the tokens of a sequence from `position` on; gives the position that it really goes back to. That is
    /// less where a window dropped what it would see, or integers are all that is left of the newest tokens:
    /// the tokens between are to be fed again.
    pub fn rewind(&mut self, sequence: usize, position: usize) -> Result<usize> {
        let now = self.position_of(sequence)?;
        if position > now {
            return Err(Error::Session(format!("position {position} is ahead of the {now} tokens fed")));
        }
        Ok(self.sequences.rewind(sequence, position))
    }

    /// Forgets a sequence, so that others can have its pages.
    pub fn release(&mut self, sequence: usize) -> Result<()> {
        self.rewind(sequence, 0).map(drop)
    }

    /// Pages of the pool that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.sequences.pages.free()
    }

    /// Sets how tokens are drawn from now on.
    pub fn set_draw(&mut self, draw: Draw) -> Result<()> {
        self.set_draw_of(0, draw)
    }

    /// Sets how a sequence's tokens are drawn from now on.
    pub fn set_draw_of(&mut self, sequence: usize, draw: Draw) -> Result<()> {
        self.known_sequence(sequence)?;
        self.draws[sequence] = draw;
        Ok(())
    }

    /// Feeds tokens; afterwards logits and the drawn token are those after the last of them.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        self.prefill_of(0, ids)
    }

    /// Feeds tokens of a sequence; afterwards logits and the drawn token (of row 0) are those after the
    /// last of them.
    pub fn prefill_of(&mut self, sequence: usize, ids: &[u32]) -> Result<()> {
        self.known(ids)?;
        self.room(sequence, ids.len())?;
        let mut rest = ids;
        while !rest.is_empty() {
            let chunk = self.chunk_for(rest.len());
            let (part, tail) = rest.split_at(rest.len().min(chunk.map_or(1, |i| self.chunks[i].ready.len())));
            let stage = chunk.map_or(&self.steps[0], |i| &self.chunks[i]);
            stage.ready.write_ids(&self.device, part)?;
            self.reserve(sequence, part.len())?;
            let rows: Vec<Row> = (0..part.len()).map(|i| self.sequences.row(sequence, i)).collect();
            let groups = self.sequences.groups(sequence, part.len());
            let next = self.sequences.each[sequence].position + part.len();
            self.run(chunk.map_or(Which::Step(0), Which::Chunk), &rows, &groups, &[(sequence, next)])?;
            self.sequences.advance(sequence, part.len());
            rest = tail;
        }
        Ok(())
    }

    /// The chunk that takes the next of `left` tokens; `None` is a step.
    fn chunk_for(&self, left: usize) -> Option<usize> {
        let length = |i: usize| self.chunks[i].ready.len();
        let holding = |tokens: usize| (0..self.chunks.len()).find(|&i| length(i) >= tokens);
        if left == 1 {
            return None;
        }
        let Some(whole) = holding(left) else { return self.chunks.len().checked_sub(1) };
        // Padding costs as much as tokens, so a full chunk and a small one may be the cheaper way.
        let full = (0..whole).rev().find(|&i| length(i) <= left);
        let cheaper =
            |&i: &usize| holding(left - length(i)).is_some_and(|rest| length(i) + length(rest) < length(whole));
        Some(full.filter(cheaper).unwrap_or(whole))
    }

    /// Feeds the token that the last run drew (or that [`Session::put`] wrote).
    pub fn step(&mut self) -> Result<()> {
        self.step_batch(&[BatchRow { sequence: 0, live: true }])
    }

    /// Feeds each live row the token that the last step of as many rows drew for it (or that
    /// [`Session::put_batch`] wrote). Sequences stand in rising order.
    pub fn step_batch(&mut self, batch: &[BatchRow]) -> Result<()> {
        if !batch.is_sorted_by(|a, b| a.sequence < b.sequence) {
            return Err(Error::Session("rows of a step must be of different sequences, in order".into()));
        }
        let step = self.step_of(batch.len())?;
        for row in batch {
            self.room(row.sequence, usize::from(row.live))?;
            self.reserve(row.sequence, usize::from(row.live))?;
        }
        let (mut rows, mut groups, mut draws) = (Vec::new(), Vec::new(), Vec::new());
        for &BatchRow { sequence, live } in batch {
            if live {
                groups.extend(self.sequences.groups(sequence, 1));
            }
            rows.push(if live { self.sequences.row(sequence, 0) } else { Sequences::dead() });
            draws.push((sequence, self.sequences.each[sequence].position + 1));
        }
        self.run(Which::Step(step), &rows, &groups, &draws)?;
        for row in batch.iter().filter(|row| row.live) {
            self.sequences.advance(row.sequence, 1);
        }
        Ok(())
    }

    /// Feeds tokens of one sequence as rows of one step: logits and drawn tokens are those after each of them.
    pub fn verify(&mut self, sequence: usize, ids: &[u32]) -> Result<()> {
        self.known(ids)?;
        self.room(sequence, ids.len())?;
        let step = self.step_of(ids.len())?;
        self.steps[step].ready.write_ids(&self.device, ids)?;
        self.reserve(sequence, ids.len())?;
        let rows: Vec<Row> = (0..ids.len()).map(|i| self.sequences.row(sequence, i)).collect();
        let groups = self.sequences.groups(sequence, ids.len());
        let first = self.sequences.each[sequence].position;
        let draws: Vec<_> = (1..=ids.len()).map(|i| (sequence, first + i)).collect();
        self.run(Which::Step(step), &rows, &groups, &draws)?;
        self.sequences.advance(sequence, ids.len());
        Ok(())
    }

    /// Replaces the drawn token, for choices that the host makes.
    pub fn put(&mut self, token: u32) -> Result<()> {
        self.put_batch(&[token])
    }

    /// Replaces the tokens that the next step of as many rows takes.
    pub fn put_batch(&mut self, tokens: &[u32]) -> Result<()> {
        self.known(tokens)?;
        let step = self.step_of(tokens.len())?;
        self.steps[step].ready.write_ids(&self.device, tokens)
    }

    /// Starts reading the drawn token.
    pub fn token(&self) -> Result<PendingToken> {
        Ok(PendingToken(self.tokens()?))
    }

    /// Starts reading the tokens that the last run drew, by row.
    pub fn tokens(&self) -> Result<PendingTokens> {
        Ok(PendingTokens(self.device.fetch(&self.drawn().tokens)?))
    }

    /// Logits after the last token fed, `[V]`; after a step of several rows `[B, V]`, padding included.
    pub fn logits(&self) -> Result<Vec<f32>> {
        Ok(self.device.read(&self.drawn().logits)?)
    }

    /// Rows of the step that takes so many, padding included.
    pub fn width(&self, rows: usize) -> Result<usize> {
        Ok(self.steps[self.step_of(rows)?].ready.len())
    }

    /// Dispatches in one decode step.
    pub fn step_dispatches(&self) -> usize {
        self.steps[0].ready.dispatches()
    }

    /// What was brought in so far, where layers are streamed.
    pub fn streaming(&self) -> Option<Figures> {
        self.weights.as_ref().map(Streamed::figures)
    }

    fn drawn(&self) -> &Drawn {
        &self.steps[self.newest].ready.drawn
    }

    fn known_sequence(&self, sequence: usize) -> Result<()> {
        let there = sequence < self.layout.sequences;
        there.then_some(()).ok_or_else(|| Error::Session(format!("sequence {sequence} of {}", self.layout.sequences)))
    }

    fn known(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            Some(id) => Err(Error::Vocabulary { id: *id, vocab: self.config.vocab_size }),
            None => Ok(()),
        }
    }

    pub(crate) fn room(&self, sequence: usize, tokens: usize) -> Result<()> {
        let needed = self.position_of(sequence)?.saturating_add(tokens);
        if needed > self.layout.capacity {
            return Err(Error::Context { needed, available: self.layout.capacity });
        }
        Ok(())
    }

    /// The smallest step of so many rows.
    fn step_of(&self, rows: usize) -> Result<usize> {
        let step = self.steps.iter().position(|s| rows > 0 && s.ready.len() >= rows);
        step.ok_or_else(|| {
            Error::Session(format!("a step of {rows} rows; this session has up to {}", self.layout.rows))
        })
    }

    /// Whether there are pages for the next tokens of a sequence, which then are its own; of a prompt longer than
    /// a window, for its first chunk.
    pub fn has_room(&mut self, sequence: usize, tokens: usize) -> Result<bool> {
        let tokens = if self.cache.shape.window != NO_WINDOW { tokens.min(self.layout.chunk) } else { tokens };
        match self.reserve(sequence, tokens) {
            Err(Error::Pages { .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Takes the pages that the next tokens of a sequence need, before anything else is changed.
    pub fn reserve(&mut self, sequence: usize, tokens: usize) -> Result<()> {
        self.known_sequence(sequence)?;
        let none = || Error::Pages { sequence, pages: self.cache.shape.pages };
        if let Some((from, to)) = self.sequences.reserve(sequence, tokens).ok_or_else(none)? {
            self.cache.copy_page(&self.device, from, to)?;
        }
        Ok(())
    }

    /// Writes what changed of the block table.
    fn write_table(&mut self) -> Result<()> {
        let entries = self.cache.shape.entries;
        for (sequence, first, pages) in self.sequences.pages.changes() {
            let offset = 4 * (sequence * entries + first) as u64;
            self.device.write_at(&self.cache.table, offset, bytemuck::cast_slice(pages))?;
        }
        Ok(())
    }

    /// Runs a program whose rows draw as these sequences do; the number of a draw is its position, so it
    /// does not depend on how the tokens before it were fed.
    fn run(&mut self, which: Which, rows: &[Row], groups: &[[u32; 2]], draws: &[(usize, usize)]) -> Result<()> {
        self.write_table()?;
        let width = self.steps[which.step()].ready.len();
        let (mut control, mut random) = (Vec::new(), Vec::new());
        for &(sequence, number) in draws {
            let draw = self.draws[sequence];
            control.extend(draw.control());
            random.extend([draw.seed, number as u32]);
        }
        control.resize(width * CONTROL, 0.0);
        random.resize(width * 2, 0);
        let step = &mut self.steps[which.step()];
        if step.control != control {
            self.device.write(&step.ready.drawn.control, &control)?;
            step.control = control;
        }
        self.device.write(&step.ready.drawn.random, &random)?;
        let stage = match which {
            Which::Chunk(i) => &self.chunks[i],
            Which::Step(i) => &self.steps[i],
        };
        stage.ready.run(&self.device, rows, groups, self.weights.as_ref())?;
        self.newest = which.step();
        Ok(())
    }
}

/// A program of a session; chunks draw as the step of one row does.
#[derive(Clone, Copy)]
enum Which {
    Chunk(usize),
    Step(usize),
}

impl Which {
    fn step(self) -> usize {
        match self {
            Which::Chunk(_) => 0,
            Which::Step(i) => i,
        }
    }
}
