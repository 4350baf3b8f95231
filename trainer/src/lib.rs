//! Training of ternary and dense transformers.
//!
//! [`backward`] differentiates recorded graphs, [`steps`] records the programs of
//! training, [`data`] feeds them, [`run`] drives them and [`checkpoint`] keeps what they made.

pub mod backward;
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod metrics;
pub mod run;
pub mod schedule;
pub mod steps;

pub use error::{Error, Result};
