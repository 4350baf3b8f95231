//! Devices: the trait that a backend implements and the handle that users hold.
//!
//! Backends are few and crossed once per program, so they are trait objects; ops
//! are a closed set, so they are an enum, and no op is a method here.

mod transfer;

use crate::dtype::Spec;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Value, widen};
use crate::ledger::Ledger;
use crate::op::Op;
use crate::plan::Plan;
use crate::stream::{Feed, HostMemory, Load, Way};
use crate::tensor::{Role, Tensor};
use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a device can do.
#[derive(Clone, Debug, Default)]
pub struct Caps {
    /// `cpu`, `wgpu` or `cuda`.
    pub backend: &'static str,
    /// Name as `--device` takes it, e.g. `wgpu:0`.
    pub id: String,
    /// Name for people: processor or card.
    pub name: String,
    /// Driver and its version, instruction sets on a CPU.
    pub driver: String,
    /// A software rasteriser (llvmpipe, WARP, SwiftShader); `auto` never takes one.
    pub software: bool,
    /// A card of its own, not a part of the processor.
    pub discrete: bool,
    /// Half-precision arithmetic in shaders.
    pub f16: bool,
    /// Smallest and largest subgroup, `(0, 0)` where there are none.
    pub subgroups: (u32, u32),
    /// Sides of the square cooperative matrices that shaders can use, with f16 operands and f32 sums.
    pub matrices: Vec<u32>,
    /// Bytes of the largest range that one operand can bind.
    pub max_binding: u64,
    /// Bytes of memory that may be planned with, if the system says.
    pub memory: Option<u64>,
    /// Worker threads (CPU) or 0.
    pub threads: usize,
    /// Streaming multiprocessors of a CUDA device, or 0.
    pub processors: u32,
    /// Compute capability of a CUDA device, e.g. `(12, 0)`, or `(0, 0)`.
    pub compute: (u32, u32),
    /// Timestamps can be taken on the device.
    pub timestamps: bool,
}

/// Memory in use, as the allocator or driver reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes asked for by live buffers that plans count.
    pub buffers: u64,
    /// The most that buffers of all kinds took at a time.
    pub peak: u64,
    /// Bytes that the allocator holds for them, if it says.
    pub reserved: Option<u64>,
}

/// Whether a device runs an op on given operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// Yes, with this variant.
    Variant(&'static str),
    /// No, and why.
    Missing(String),
}

/// How a device runs an op on given operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runs {
    /// With this variant.
    Native(&'static str),
    /// With this variant in f32, between casts of the bf16 operands.
    ThroughF32(&'static str),
    /// Not at all, and why.
    Missing(String),
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Runs::Native(name) => f.write_str(name),
            Runs::ThroughF32(name) => write!(f, "{name} through f32"),
            Runs::Missing(_) => f.write_str("missing"),
        }
    }
}

/// Memory of one device, or a part of it. Freed when the last clone is dropped.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<dyn Any + Send + Sync>,
    first: u64,
    bytes: u64,
}

impl Buffer {
    /// Wraps a backend's own buffer type.
    pub fn new(inner: Arc<dyn Any + Send + Sync>, bytes: u64) -> Self {
        Buffer { inner, first: 0, bytes }
    }

    /// Bytes of it as a buffer; `None` if they lie outside.
    pub fn part(&self, first: u64, bytes: u64) -> Option<Buffer> {
        let inside = first.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        inside.then(|| Buffer { inner: self.inner.clone(), first: self.first + first, bytes })
    }

    /// Its first byte in the backend's own buffer. Backends are given offsets that count it already.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The backend's own type, or `None` if the buffer is another backend's.
    pub fn downcast<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.inner.clone().downcast::<T>().ok()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

/// A point in a device's queue: everything submitted before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A read that is under way.
pub trait Pending: Send {
    /// Waits and copies the bytes out.
    fn wait(self: Box<Self>) -> Result<Vec<u8>>;
}

/// How long the steps of a program took.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// One run from submission to completion, each repeat.
    pub total: Vec<Duration>,
    /// Per node of the graph, the median over repeats; empty if it cannot be told.
    pub nodes: Vec<Duration>,
}

/// Activations' memory: the slabs that the programs of one set share.
#[derive(Clone, Debug)]
pub struct Arena {
    /// One buffer a slab.
    pub slabs: Vec<Buffer>,
}

/// A compiled program of one device.
pub trait Program: Send + Sync {
    /// Puts one run into the queue. Never waits; raises errors queued earlier.
    fn submit(&self) -> Result<Ticket>;
    /// Runs `repeats` times, waiting each time, and reports times.
    fn time(&self, repeats: u32) -> Result<Timings>;
    /// Device dispatches (or kernel calls) in one run.
    fn dispatches(&self) -> usize;
}

/// A backend. No op is a method.
pub trait Backend: Send + Sync {
    /// Capabilities and names.
    fn caps(&self) -> &Caps;
    /// What is in use of its memory. Every allocation asks it first.
    fn ledger(&self) -> &Ledger;
    /// Memory in use.
    fn memory(&self) -> MemoryUse {
        let ledger = self.ledger();
        MemoryUse { buffers: ledger.planned(), peak: ledger.peak(), reserved: None }
    }
    /// Whether and how an op runs here.
    fn supports(&self, op: &Op, operands: &[Spec]) -> Support;
    /// Zeroed memory.
    fn alloc(&self, bytes: u64, role: Role, name: &str) -> Result<Buffer>;
    /// Writes bytes (a multiple of 4, at a multiple of 4) in queue order.
    fn write(&self, to: &Buffer, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Starts reading bytes (a multiple of 4) as they are after all that was submitted so far.
    fn fetch(&self, from: &Buffer, offset: u64, bytes: u64) -> Result<Box<dyn Pending>>;
    /// How weights that do not stay reach the kernels.
    fn way(&self) -> Way {
        Way::Missing
    }
    /// Host memory as a buffer that kernels read where it lies, where the way is [`Way::InPlace`].
    fn adopt(&self, _memory: &Arc<dyn HostMemory>) -> Result<Buffer> {
        Err(Error::Device {
            device: self.caps().id.clone(),
            message: "kernels cannot read host memory in place".into(),
        })
    }
    /// Opens what brings groups in.
    fn feed(&self, _load: Load) -> Result<Box<dyn Feed>> {
        Err(Error::Device { device: self.caps().id.clone(), message: "weights cannot be streamed to it".into() })
    }
    /// Compiles a graph. Every tensor that it binds must have memory here.
    fn compile(&self, graph: &Graph, plan: &Plan, arena: &Arena) -> Result<Box<dyn Program>>;
    /// Waits until the queue is empty.
    fn wait(&self) -> Result<()>;
    /// Pipelines built so far (0 where there is no such thing).
    fn pipelines(&self) -> usize {
        0
    }
    /// Bytes of the device that its driver calls free now, if there is such a driver. What a pool of this
    /// backend holds unused is not free.
    fn free(&self) -> Option<u64> {
        None
    }
    /// Lets go of caches that can be built again: staging buffers, pipelines that no program uses, unused
    /// memory of pools. Gives the number of things dropped.
    fn trim(&self) -> usize {
        0
    }
}

/// A device; cheap to clone.
#[derive(Clone)]
pub struct Device(Arc<dyn Backend>);

/// What opening a device gave.
pub enum Opened {
    /// It is there.
    Ready(Device),
    /// It is not, and why. A probe never panics.
    Absent {
        /// The reason, a sentence.
        why: String,
    },
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}: {})", self.caps().id, self.caps().name)
    }
}

impl Device {
    /// Wraps a backend.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Device(backend)
    }

    /// The device with so many bytes to use, whatever it has: a smaller one can be simulated. Plans are held against
    /// them and so is every allocation, by all handles of the device. What a run takes
    /// [beside its plan](crate::budget::overhead) is among them.
    pub fn with_budget(self, bytes: u64) -> Self {
        self.0.ledger().set_limit(Some(bytes));
        self
    }

    /// Bytes that may be planned with: those of [`Device::with_budget`], of a card with a driver that says
    /// what is free the [safe part](crate::budget::safe) of that, else what the system says. `None` is unknown.
    pub fn budget(&self) -> Option<u64> {
        let caps = self.caps();
        let own = if caps.discrete { caps.memory.map(|free| crate::budget::safe(free, 0)) } else { caps.memory };
        self.0.ledger().limit().or(own)
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.0
    }

    /// Capabilities and names.
    pub fn caps(&self) -> &Caps {
        self.0.caps()
    }

    /// `id (name)` for messages.
    pub fn label(&self) -> String {
        format!("{} ({})", self.caps().id, self.caps().name)
    }

    /// Gives a tensor zeroed memory here, once.
    pub fn allocate(&self, tensor: &Tensor) -> Result<()> {
        if tensor.buffer().is_none() {
            tensor.spec().check(tensor.name())?;
            let buffer = self.0.alloc(tensor.spec().bytes(), tensor.role(), tensor.name())?;
            // If another thread was faster, its memory stays: programs may be bound to it.
            let _ = tensor.place(buffer);
        }
        Ok(())
    }

    /// Memory of a tensor on this device.
    fn buffer<'t>(&self, tensor: &'t Tensor) -> Result<&'t Buffer> {
        tensor.buffer().ok_or_else(|| Error::NotAllocated { tensor: tensor.name().into(), device: self.label() })
    }

    /// Memory for the activations of a set of plans: each slab as large as any of them needs.
    pub fn arena(&self, plans: &[&Plan]) -> Result<Arena> {
        let slabs = crate::plan::shared_slabs(plans);
        let slabs = slabs.into_iter().enumerate();
        let slabs = slabs.map(|(i, bytes)| self.0.alloc(bytes, Role::Activation, &format!("arena slab {i}")));
        Ok(Arena { slabs: slabs.collect::<Result<_>>()? })
    }

    /// How an op runs here in a graph that is [widened](Device::widened).
    pub fn runs(&self, op: &Op, operands: &[Spec]) -> Runs {
        match (self.0.supports(op, operands), widen::wide(operands)) {
            (Support::Variant(name), _) => Runs::Native(name),
            (Support::Missing(reason), None) => Runs::Missing(reason),
            (Support::Missing(_), Some(wide)) => match self.0.supports(op, &wide) {
                Support::Variant(name) => Runs::ThroughF32(name),
                Support::Missing(reason) => Runs::Missing(reason),
            },
        }
    }

    /// Ops of a graph that run here in f32 between casts.
    pub fn through_f32(&self, graph: &Graph) -> usize {
        let specs = |operands: &[Value]| operands.iter().map(|&v| graph.spec(v).clone()).collect::<Vec<_>>();
        let runs = |node: &&Node| self.runs(&node.op, &specs(&node.operands));
        graph.nodes().iter().filter(|node| matches!(runs(node), Runs::ThroughF32(_))).count()
    }

    /// The graph that this device runs, see [`Graph::widened`]. Plans are made of it.
    pub fn widened<'g>(&self, graph: &'g Graph) -> Result<Cow<'g, Graph>> {
        graph.widened(self.backend())
    }

    /// Compiles a graph; its tensors and the arena must have memory here. Ops on bf16 that the device
    /// has no kernels for are refused: [widen](Device::widened) the graph before it is planned.
    pub fn compile(&self, graph: &Graph, plan: &Plan, arena: &Arena) -> Result<Box<dyn Program>> {
        self.0.compile(graph, plan, arena)
    }

    /// Allocates what the graph binds, widens and plans it, gives it an arena of its own and compiles it.
    pub fn prepare(&self, graph: &Graph) -> Result<Box<dyn Program>> {
        let graph = &*self.widened(graph)?;
        for tensor in graph.tensors() {
            self.allocate(tensor)?;
        }
        let plan = Plan::new(graph);
        let arena = self.arena(&[&plan])?;
        self.compile(graph, &plan, &arena)
    }

    /// Bytes that a plan may take of the [budget](Device::budget): all but what a run takes
    /// [beside its plan](crate::budget::overhead). `None` is unknown.
    pub fn plannable(&self) -> Option<u64> {
        let beside = crate::budget::overhead(self.caps());
        self.budget().map(|budget| budget.saturating_sub(beside))
    }

    /// Refuses a plan that does not fit this device's budget beside what a run takes
    /// [besides](crate::budget::overhead), with the figures.
    pub fn check_budget(&self, what: &str, planned: u64, advice: &str) -> Result<()> {
        let needed = planned.saturating_add(crate::budget::overhead(self.caps()));
        match self.budget() {
            Some(available) if needed > available => Err(Error::DoesNotFit {
                what: what.into(),
                device: self.label(),
                needed,
                available,
                advice: advice.into(),
            }),
            _ => Ok(()),
        }
    }
}
