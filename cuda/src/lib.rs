//! The CUDA side of tritter: for now the probe that says whether a driver is there.
//!
//! The probe loads the driver library at run time, so that building needs no CUDA
//! toolkit and a machine without a driver gets a sentence instead of a loader error.

mod driver;

pub use driver::{Probe, probe};
