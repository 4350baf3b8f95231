//! The wgpu backend: Vulkan, Metal and Direct3D 12 natively, WebGPU in a browser.
//!
//! A graph is lowered once ([`lower`]) to a linear list of dispatches with their
//! pipelines, bind groups and parameters, and encoded anew at every run
//! ([`program`]); wgpu has no reusable compute object. Nothing here panics on what
//! a driver does: errors are queued ([`context`]) and raised by the next call.

mod adapter;
mod context;
#[cfg(not(target_arch = "wasm32"))]
mod feed;
mod fetch;
mod lower;
mod memory;
mod pipeline;
#[cfg(not(target_arch = "wasm32"))]
mod pipeline_file;
mod program;
mod submits;
mod timing;
mod trusted;

use crate::device::{Arena, Backend, Buffer, Caps, Device, MemoryUse, Opened, Pending, Program, Support};
use crate::dtype::Spec;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::ledger::Ledger;
use crate::op::Op;
use crate::plan::Plan;
#[cfg(not(target_arch = "wasm32"))]
use crate::stream::{Feed, Load, Way};
use crate::tensor::Role;
use context::Context;
use memory::Memory;
use std::sync::Arc;
use std::time::Duration;

/// How a device is opened; the default is right for everybody but tests and benches.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which adapter, in the order of [`list`]; the first by default.
    pub index: Option<usize>,
    /// Whether a software adapter may be taken.
    pub allow_software: bool,
    /// Rows that have a WGSL variant of this name use it, or are unsupported.
    pub variant: Option<String>,
    /// Parameters by dynamic-offset uniform even where there are immediates.
    pub uniform_params: bool,
    /// A smaller limit on the bytes that one operand binds.
    pub max_binding: Option<u64>,
    /// Predicted work of one submit, 50 ms by default.
    pub submit_budget: Option<Duration>,
    /// Whether compiled pipelines are neither read from nor written to the user's cache folder.
    pub no_pipeline_file: bool,
}

/// Opens adapter `index` in the order of [`list`], or the first.
#[cfg(not(target_arch = "wasm32"))]
pub fn open(index: Option<usize>, allow_software: bool) -> Opened {
    open_with(Options { index, allow_software, ..Options::default() })
}

/// Opens an adapter with options.
#[cfg(not(target_arch = "wasm32"))]
pub fn open_with(options: Options) -> Opened {
    pollster::block_on(open_async(options))
}

/// Opens an adapter without blocking.
pub async fn open_async(options: Options) -> Opened {
    match adapter::open(options).await {
        Ok(context) => Opened::Ready(Device::new(Arc::new(Gpu(Arc::new(context))))),
        Err(why) => Opened::Absent { why },
    }
}

/// All adapters: discrete, integrated, other, and software last.
#[cfg(not(target_arch = "wasm32"))]
pub fn list() -> Vec<Caps> {
    pollster::block_on(list_async())
}

/// All adapters, without blocking.
pub async fn list_async() -> Vec<Caps> {
    let found = adapter::enumerate().await;
    found.iter().enumerate().map(|(i, a)| adapter::caps(i, a)).collect()
}

struct Gpu(Arc<Context>);

impl Gpu {
    fn memory_of(&self, buffer: &Buffer) -> Result<Arc<Memory>> {
        self.0.memory_of(buffer)
    }
}

impl Backend for Gpu {
    fn caps(&self) -> &Caps {
        &self.0.caps
    }

    fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    fn memory(&self) -> MemoryUse {
        let report = self.0.device.generate_allocator_report();
        let ledger = &self.0.ledger;
        MemoryUse { buffers: ledger.planned(), peak: ledger.peak(), reserved: report.map(|r| r.total_reserved_bytes) }
    }

    fn supports(&self, op: &Op, operands: &[Spec]) -> Support {
        match lower::supports(&self.0, op, operands) {
            Ok(variant) => Support::Variant(variant),
            Err(Error::Unsupported { reason, .. }) => Support::Missing(reason),
            Err(e) => Support::Missing(e.to_string()),
        }
    }

    fn alloc(&self, bytes: u64, _role: Role, name: &str) -> Result<Buffer> {
        let memory = Memory::new(&self.0, bytes, name)?;
        Ok(Buffer::new(Arc::new(memory), bytes))
    }

    fn write(&self, to: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let memory = self.memory_of(to)?;
        memory.check_range(&self.0, offset, bytes.len() as u64)?;
        self.0.write(memory.buffer(), offset, bytes)
    }

    fn fetch(&self, from: &Buffer, offset: u64, bytes: u64) -> Result<Box<dyn Pending>> {
        let memory = self.memory_of(from)?;
        memory.check_range(&self.0, offset, bytes)?;
        self.0.raise()?;
        Ok(Box::new(fetch::start(&self.0, memory.buffer(), offset, bytes)?))
    }

    /// Copies go through the one queue, so that a second slot would not let them overlap with kernels.
    #[cfg(not(target_arch = "wasm32"))]
    fn way(&self) -> Way {
        Way::Slots { slots: 1, staging: feed::STAGING }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn feed(&self, load: Load) -> Result<Box<dyn Feed>> {
        Ok(Box::new(feed::Staged::new(&self.0, load)?))
    }

    fn compile(&self, graph: &Graph, plan: &Plan, arena: &Arena) -> Result<Box<dyn Program>> {
        self.0.raise()?;
        Ok(Box::new(program::GpuProgram::new(&self.0, graph, plan, arena)?))
    }

    fn wait(&self) -> Result<()> {
        self.0.wait(None)
    }

    fn pipelines(&self) -> usize {
        self.0.pipelines.count()
    }

    fn trim(&self) -> usize {
        self.0.staging.clear() + self.0.pipelines.clear()
    }
}
