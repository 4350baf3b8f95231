//! Rows of `L` tokens out of a stream, and the batches that they make.
//!
//! A row takes `L` tokens of the stream as they come, across documents; its targets are the tokens
//! one further on, so every token but the last of the stream has one. Attention and positions stay
//! within the part of a document that lies in the row.

use super::corpus::Stream;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tritter_runtime::random::Random;

/// The target of a token that has no successor.
pub const IGNORED: u32 = u32::MAX;

/// `B` rows of `L` tokens, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[B·L]`; 0 where the stream has ended.
    pub tokens: Vec<u32>,
    /// The next token of each, `[B·L]`, or [`IGNORED`].
    pub targets: Vec<u32>,
    /// Positions within document and row, from 0, `[B·L]`.
    pub positions: Vec<u32>,
    /// First and last index in `[B·L]` that each token sees, `[B·L,2]`: the first token of its
    /// document in its row, and itself.
    pub span: Vec<u32>,
    /// Targets that are not ignored.
    pub valid: usize,
}

impl Batch {
    fn with_capacity(n: usize) -> Batch {
        let list = || Vec::with_capacity(n);
        Batch { tokens: list(), targets: list(), positions: list(), span: Vec::with_capacity(2 * n), valid: 0 }
    }

    /// Adds the row of `context` tokens of the stream from `first` on, filled up past its end
    /// with tokens that see themselves only.
    fn push_row(&mut self, stream: &Stream, first: usize, context: usize) {
        let base = self.tokens.len();
        let mut next_start = stream.starts.partition_point(|&start| start <= first);
        let mut document = 0;
        for j in 0..context {
            let at = first + j;
            if stream.starts.get(next_start) == Some(&at) {
                (document, next_start) = (j, next_start + 1);
            } else if at >= stream.tokens.len() {
                document = j;
            }
            let target = stream.tokens.get(at + 1).copied().unwrap_or(IGNORED);
            self.tokens.push(stream.tokens.get(at).copied().unwrap_or(0));
            self.targets.push(target);
            self.positions.push((j - document) as u32);
            self.span.extend([(base + document) as u32, (base + j) as u32]);
            self.valid += usize::from(target != IGNORED);
        }
    }
}

/// Where the batches of a run stand; with the same data it says exactly what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchState {
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Rows of this epoch that are used.
    pub position: u64,
    /// Seed of the order.
    pub seed: u64,
}

/// Endless batches in a shuffled order, another one in every epoch.
///
/// An epoch cuts the stream into as many whole rows as it holds, from an offset of its own, so
/// that over epochs no token is always left out and borders of rows move.
#[derive(Clone, Debug)]
pub struct Batches {
    stream: Arc<Stream>,
    batch: usize,
    context: usize,
    state: BatchState,
    /// First token of each row of this epoch, in the order in which they come.
    order: Vec<usize>,
}

impl Batches {
    /// Batches from the beginning.
    pub fn new(stream: Arc<Stream>, batch: usize, context: usize, seed: u64) -> Result<Batches> {
        Batches::resume(stream, batch, context, BatchState { epoch: 0, position: 0, seed })
    }

    /// Batches that go on where `state` was taken, given the same stream and context.
    pub fn resume(stream: Arc<Stream>, batch: usize, context: usize, state: BatchState) -> Result<Batches> {
        check(batch, context)?;
        if stream.tokens.len() < 2 {
            return Err(Error::data("training data", "it has fewer than two tokens, so nothing can be predicted"));
        }
        let order = order(&stream, context, &state);
        if state.position > order.len() as u64 {
            let problem = format!(
                "the run had used {} rows of an epoch that has {}; resume with the data and context that it began with",
                state.position,
                order.len()
            );
            return Err(Error::data("training data", problem));
        }
        Ok(Batches { stream, batch, context, state, order })
    }

    /// What [`Batches::resume`] needs to go on from here.
    pub fn state(&self) -> BatchState {
        self.state
    }

    /// Rows of an epoch.
    pub fn rows(&self) -> usize {
        self.order.len()
    }

    /// The next batch; an epoch that ends within it is followed by the next.
    pub fn next_batch(&mut self) -> Batch {
        let mut batch = Batch::with_capacity(self.batch * self.context);
        for _ in 0..self.batch {
            if self.state.position >= self.order.len() as u64 {
                self.state.epoch += 1;
                self.state.position = 0;
                self.order = order(&self.stream, self.context, &self.state);
            }
            batch.push_row(&self.stream, self.order[self.state.position as usize], self.context);
            self.state.position += 1;
        }
        batch
    }
}

fn check(batch: usize, context: usize) -> Result<()> {
    let tokens = batch.checked_mul(context).filter(|&n| n > 0 && n < u32::MAX as usize);
    let problem = "batch and context must be at least 1 and their product below 2^32";
    tokens.map(|_| ()).ok_or_else(|| Error::setting("batch × context", format!("{batch} × {context}"), problem))
}

fn order(stream: &Stream, context: usize, state: &BatchState) -> Vec<usize> {
    // Seeds of neighbouring epochs lie far apart in the generator's sequence.
    let mut seeds = Random::new(state.seed ^ state.epoch.wrapping_mul(0xD1B5_4A32_D192_ED03));
    let mut random = Random::new(seeds.bits());
    let targets = stream.tokens.len() - 1;
    let offset = random.below((targets % context) as u64 + 1) as usize;
    let offset = if targets < context { 0 } else { offset };
    let rows = (targets / context).max(1);
    let mut order: Vec<usize> = (0..rows).map(|row| offset + row * context).collect();
    random.shuffle(&mut order);
    order
}

/// Batches that predict every token of the stream but the first exactly once, in order. The last
/// batch is as large as the others and filled up with tokens that do not count.
pub fn validation(stream: &Stream, batch: usize, context: usize) -> Result<impl Iterator<Item = Batch>> {
    check(batch, context)?;
    let step = batch * context;
    let targets = stream.tokens.len().saturating_sub(1);
    Ok((0..targets).step_by(step).map(move |first| {
        let mut rows = Batch::with_capacity(step);
        (0..batch).for_each(|row| rows.push_row(stream, first + row * context, context));
        rows
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Documents of these lengths; token `i` of the stream is `100 + i`.
    fn stream(lengths: &[usize]) -> Arc<Stream> {
        let total: usize = lengths.iter().sum();
        let starts = (0..lengths.len()).map(|i| lengths[..i].iter().sum()).collect();
        Arc::new(Stream { tokens: (0..total as u32).map(|i| 100 + i).collect(), starts, bytes: total as u64 })
    }

    #[test]
    fn rows_carry_targets_positions_and_spans_of_their_documents() {
        let batches: Vec<Batch> = validation(&stream(&[3, 4, 1, 3]), 2, 4).unwrap().collect();
        assert_eq!(batches.len(), 2);
        assert_eq!(batches[0].tokens, [100, 101, 102, 103, 104, 105, 106, 107]);
        assert_eq!(batches[0].targets, [101, 102, 103, 104, 105, 106, 107, 108]);
        assert_eq!(batches[0].positions, [0, 1, 2, 0, 0, 1, 2, 0]);
        assert_eq!(batches[0].span, [0, 0, 0, 1, 0, 2, 3, 3, 4, 4, 4, 5, 4, 6, 7, 7]);
        assert_eq!(batches[0].valid, 8);
        assert_eq!(batches[1].tokens, [108, 109, 110, 0, 0, 0, 0, 0]);
        assert_eq!(batches[1].targets[..3], [109, 110, IGNORED]);
        assert!(batches[1].targets[3..].iter().all(|&t| t == IGNORED));
        assert_eq!(batches[1].positions, [0, 1, 2, 0, 0, 0, 0, 0]);
        assert_eq!(batches[1].span, [0, 0, 0, 1, 0, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]);
        assert_eq!(batches[1].valid, 2);
    }

    #[test]
    fn validation_predicts_every_token_but_the_first_once() {
        for total in [0, 1, 2, 8, 9, 10, 31] {
            let stream = stream(&[total]);
            let batches: Vec<Batch> = validation(&stream, 2, 4).unwrap().collect();
            let targets = batches.iter().flat_map(|b| &b.targets).copied();
            let targets: Vec<u32> = targets.filter(|&t| t != IGNORED).collect();
            assert_eq!(targets, stream.tokens.get(1..).unwrap_or_default(), "{total}");
            assert_eq!(batches.iter().map(|b| b.valid).sum::<usize>(), targets.len());
            assert!(batches.iter().all(|b| b.tokens.len() == 8 && b.span.len() == 16 && b.valid > 0));
        }
    }

    #[test]
    fn an_epoch_covers_whole_rows_once_and_orders_differ() {
        let stream = stream(&[40, 1, 22]);
        let mut batches = Batches::new(stream, 1, 6, 3).unwrap();
        assert_eq!(batches.rows(), 10);
        let mut epochs = Vec::new();
        for epoch in 0..3 {
            let mut rows: Vec<u32> = (0..10)
                .map(|_| batches.next_batch())
                .map(|b| {
                    assert_eq!(b.valid, 6, "every token of a training row has a target");
                    b.tokens[0]
                })
                .collect();
            assert_eq!((batches.state().epoch, batches.state().position), (epoch, 10));
            epochs.push(rows.clone());
            rows.sort_unstable();
            assert!(rows.windows(2).all(|pair| pair[1] - pair[0] == 6), "{rows:?}");
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        assert!(!epochs[0].is_sorted());
    }

    #[test]
    fn a_resumed_run_sees_the_same_batches() {
        let stream = stream(&[9, 30, 24]);
        let mut whole = Batches::new(stream.clone(), 3, 5, 11).unwrap();
        for _ in 0..7 {
            let state: BatchState = serde_json::from_str(&serde_json::to_string(&whole.state()).unwrap()).unwrap();
            let mut resumed = Batches::resume(stream.clone(), 3, 5, state).unwrap();
            for _ in 0..5 {
                assert_eq!(resumed.next_batch(), whole.next_batch());
            }
            assert_eq!(resumed.state(), whole.state());
        }
        assert!(whole.state().epoch > 3);
        let other = Batches::new(stream, 3, 5, 12).unwrap().next_batch();
        assert_ne!(
            other,
            Batches::resume(whole.stream.clone(), 3, 5, BatchState { epoch: 0, position: 0, seed: 11 })
                .unwrap()
                .next_batch()
        );
    }

    #[test]
    fn a_stream_shorter_than_a_row_is_filled_up() {
        let mut batches = Batches::new(stream(&[3]), 2, 5, 1).unwrap();
        let batch = batches.next_batch();
        assert_eq!(batch.tokens, [100, 101, 102, 0, 0, 100, 101, 102, 0, 0]);
        assert_eq!(batch.targets[..3], [101, 102, IGNORED]);
        assert_eq!(batch.valid, 4);
        assert_eq!(batch.span[16..], [8, 8, 9, 9]);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let error = |result: Result<Batches>| result.unwrap_err().to_string();
        assert!(error(Batches::new(stream(&[1]), 1, 4, 0)).contains("fewer than two tokens"));
        assert!(error(Batches::new(stream(&[9]), 0, 4, 0)).contains("batch × context"));
        let state = BatchState { epoch: 0, position: 3, seed: 0 };
        assert!(error(Batches::resume(stream(&[9]), 1, 4, state)).contains("used 3 rows of an epoch that has 2"));
    }
}
