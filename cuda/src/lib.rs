//! The CUDA backend of tritter.
//!
//! Kernels are CUDA C in `cuda/kernels`, one file for each op row. Nothing here links against CUDA:
//! libraries are loaded at run time behind a probe, so that building needs no toolkit and a machine
//! without a driver gets a sentence instead of a loader error.

pub mod driver;
mod probe;

pub use probe::{Probe, probe};
