//! Recorded tensor programs on CPU and wgpu.
//!
//! Ops are recorded into a [`graph::Graph`], [`plan::Plan`] assigns every value a
//! place, [`device::Device::compile`] gives a [`device::Program`], and submitting
//! it replays it. See `ARCHITECTURE.md` for the ideas behind.

pub mod bench;
pub mod budget;
pub mod check;
pub mod cpu;
pub mod device;
pub mod dtype;
pub mod error;
pub mod gpu;
pub mod gradient;
pub mod graph;
pub mod layout;
pub mod ledger;
pub mod op;
pub mod open;
pub mod ops;
pub mod plan;
pub mod random;
pub mod reference;
pub mod stream;
pub mod tensor;

pub use device::{Device, Opened};
pub use dtype::{DType, Spec};
pub use error::{Error, Result};
pub use graph::{Graph, Value};
pub use plan::Plan;
pub use tensor::{Role, Tensor};
