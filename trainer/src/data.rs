//! Training data: from files to batches.
//!
//! [`Source`] finds documents in files and folders, [`Corpus`] tokenises them into one stream of
//! tokens for training and one for validation, [`Batches`] cuts a stream into rows of `L` tokens
//! in a shuffled order that a checkpoint can resume, and [`validation`] covers a stream once.

mod batches;
mod corpus;
mod source;

pub use batches::{Batch, BatchState, Batches, IGNORED, validation};
pub use corpus::{Corpus, Stream};
pub use source::{Document, Source, Summary};
