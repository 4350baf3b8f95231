//! The CUDA backend of tritter.
//!
//! Kernels are CUDA C in `cuda/kernels`, one file for each op row. Nothing here links against CUDA:
//! libraries are loaded at run time behind a probe, so that building needs no toolkit and a machine
//! without a driver gets a sentence instead of a loader error.

mod backend;
pub mod cubin;
pub mod driver;
mod feed;
mod find;
mod memory;
pub mod nvidia;
pub mod nvrtc;
mod open;
mod probe;
mod program;
pub mod yardstick;

pub use backend::{Options, open_with_driver};
pub use open::{count, driver, open, status};
pub use probe::{Probe, probe};
