//! The backend over a [`Driver`]: capabilities, memory, choice of variants.

use crate::driver::{Driver, Fault, Kernel};
use crate::feed::{CudaFeed, SLOTS};
use crate::memory::{Fetch, Memory};
use crate::program::CudaProgram;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tritter_runtime::device::{Arena, Backend, Buffer, Caps, Device, Pending, Program, Support, Ticket};
use tritter_runtime::dtype::Spec;
use tritter_runtime::ledger::{Held, Kind, Ledger};
use tritter_runtime::op::{CudaChoice, Op};
use tritter_runtime::stream::{Feed, Load, Way};
use tritter_runtime::{Error, Graph, Plan, Result, Role};

/// How a device is opened; the default is right for everybody but tests and the search for a fault.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Rows that have a CUDA variant of this name use it, or are unsupported.
    pub variant: Option<String>,
    /// Wait after every launch, so that an error names its op. Slow.
    pub serial: bool,
}

/// Wraps a driver as a device named `id`.
pub fn open_with_driver(driver: Arc<dyn Driver>, id: &str, options: Options) -> Result<Device> {
    Ok(Device::new(Arc::new(Cuda(Arc::new(Context::new(driver, id, options)?)))))
}

/// One open device.
pub(crate) struct Context {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) caps: Caps,
    pub(crate) options: Options,
    pub(crate) ledger: Arc<Ledger>,
    kernels: Mutex<HashMap<(&'static str, &'static str), Kernel>>,
    workspace: Mutex<Option<Arc<Memory>>>,
    /// Held while launches go out one by one: programs share scratch memory, so they may not mix.
    pub(crate) order: Mutex<()>,
    tickets: AtomicU64,
}

impl Context {
    fn new(driver: Arc<dyn Driver>, id: &str, mut options: Options) -> Result<Context> {
        let about = driver.describe().clone();
        options.serial |= about.emulated;
        let memory = driver.memory().map_err(|fault| device_error(id, &fault))?;
        let caps = Caps {
            backend: "cuda",
            id: id.into(),
            name: about.name,
            driver: about.driver,
            software: about.emulated,
            discrete: !about.emulated,
            f16: true,
            subgroups: (32, 32),
            max_binding: u64::MAX,
            memory: memory.map(|(free, _)| free),
            timestamps: true,
            processors: about.processors,
            compute: about.compute,
            ..Caps::default()
        };
        Ok(Context {
            ledger: Ledger::new(&caps),
            driver,
            caps,
            options,
            kernels: Mutex::default(),
            workspace: Mutex::default(),
            order: Mutex::default(),
            tickets: AtomicU64::new(0),
        })
    }

    /// A driver's fault as the runtime's error.
    pub(crate) fn error(&self, fault: &Fault) -> Error {
        device_error(&self.caps.id, fault)
    }

    /// A driver's fault in an op, with its operands.
    pub(crate) fn error_in(&self, op: &Op, operands: &[Spec], fault: &Fault) -> Error {
        let at = |message: &str| format!("`{}` on {}: {message}", op.row().name, op.describe(operands));
        match fault {
            Fault::Lost(message) => device_error(&self.caps.id, &Fault::Lost(at(message))),
            other => device_error(&self.caps.id, &Fault::Failed(at(&other.to_string()))),
        }
    }

    pub(crate) fn refuse(&self, message: impl Into<String>) -> Error {
        Error::Device { device: self.caps.id.clone(), message: message.into() }
    }

    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Counts bytes of an allocation. Where the budget has no room for them, scratch memory that no program holds
    /// makes some.
    pub(crate) fn hold(&self, bytes: u64, name: &str) -> Result<Held> {
        let held = self.ledger.take(Kind::Planned, bytes, name);
        // The lock is held while scratch memory itself is allocated.
        let scratch = if held.is_err() { self.workspace.try_lock().and_then(|mut kept| kept.take()) } else { None };
        match scratch {
            Some(scratch) => {
                drop(scratch);
                self.ledger.take(Kind::Planned, bytes, name)
            }
            None => held,
        }
    }

    pub(crate) fn memory_of(&self, buffer: &Buffer) -> Result<Arc<Memory>> {
        let memory = buffer.downcast::<Memory>().filter(|m| m.belongs_to(self));
        memory.ok_or_else(|| self.refuse("the buffer belongs to another device"))
    }

    /// The best variant for operands that all start at a multiple of `align` bytes.
    pub(crate) fn choose(&self, op: &Op, operands: &[Spec], align: u64) -> Result<CudaChoice> {
        op.check_operands(operands)?;
        let forced = self.options.variant.as_deref().filter(|&name| op.row().cuda.iter().any(|v| v.name == name));
        let mut reasons = Vec::new();
        for choice in op.cuda(operands, &self.caps) {
            if forced.is_some_and(|name| name != choice.variant) {
                continue;
            }
            let impossible = choice.launch.kernels.iter().find_map(|kernel| kernel.impossible());
            if choice.align > align {
                reasons.push(format!("variant `{}` needs operands at multiples of {}", choice.variant, choice.align));
            } else if let Some(reason) = impossible {
                reasons.push(reason);
            } else {
                return Ok(choice);
            }
        }
        if reasons.is_empty() {
            reasons.push(match forced {
                Some(name) => format!("variant `{name}` does not take these operands"),
                None => "it has no CUDA variant for these operands".into(),
            });
        }
        Err(Error::unsupported(&self.caps, op, operands, reasons.join("; ")))
    }

    /// A kernel of a row, loaded once.
    pub(crate) fn kernel(&self, file: &'static str, entry: &'static str) -> std::result::Result<Kernel, Fault> {
        let mut kernels = self.kernels.lock();
        if let Some(&kernel) = kernels.get(&(file, entry)) {
            return Ok(kernel);
        }
        let kernel = self.driver.kernel(file, entry)?;
        kernels.insert((file, entry), kernel);
        Ok(kernel)
    }

    /// Scratch memory of at least so many bytes, shared by all programs: they run one after the
    /// other. It grows when a program needs more; programs keep what they were compiled with.
    pub(crate) fn workspace(self: &Arc<Self>, bytes: u64) -> Result<Arc<Memory>> {
        let mut workspace = self.workspace.lock();
        if let Some(memory) = workspace.as_ref().filter(|m| m.bytes() >= bytes) {
            return Ok(memory.clone());
        }
        let memory = Arc::new(Memory::new(self, bytes.next_multiple_of(1 << 20), "scratch memory of kernels")?);
        *workspace = Some(memory.clone());
        Ok(memory)
    }
}

fn device_error(id: &str, fault: &Fault) -> Error {
    let device = id.to_string();
    match fault {
        Fault::Lost(message) => Error::Lost { device, message: message.clone() },
        other => Error::Device { device, message: other.to_string() },
    }
}

struct Cuda(Arc<Context>);

/// What every value that a program does not slice starts at.
const ALIGNED: u64 = 256;

impl Backend for Cuda {
    fn caps(&self) -> &Caps {
        &self.0.caps
    }

    fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    fn supports(&self, op: &Op, operands: &[Spec]) -> Support {
        match self.0.choose(op, operands, ALIGNED) {
            Ok(choice) => Support::Variant(choice.variant),
            Err(Error::Unsupported { reason, .. }) => Support::Missing(reason),
            Err(e) => Support::Missing(e.to_string()),
        }
    }

    fn alloc(&self, bytes: u64, _role: Role, name: &str) -> Result<Buffer> {
        let memory = Memory::new(&self.0, bytes, name)?;
        self.0.driver.clear(memory.address(), memory.size()).map_err(|fault| self.0.error(&fault))?;
        Ok(Buffer::new(Arc::new(memory), bytes))
    }

    fn write(&self, to: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let memory = self.0.memory_of(to)?;
        memory.check_range(&self.0, offset, bytes.len() as u64)?;
        self.0.driver.upload(memory.address() + offset, bytes).map_err(|fault| self.0.error(&fault))
    }

    fn fetch(&self, from: &Buffer, offset: u64, bytes: u64) -> Result<Box<dyn Pending>> {
        let memory = self.0.memory_of(from)?;
        memory.check_range(&self.0, offset, bytes)?;
        let download = self.0.driver.download(memory.address() + offset, bytes);
        let download = download.map_err(|fault| self.0.error(&fault))?;
        Ok(Box::new(Fetch { context: self.0.clone(), download, _memory: memory }))
    }

    fn way(&self) -> Way {
        Way::Slots { slots: SLOTS, staging: 0 }
    }

    fn feed(&self, load: Load) -> Result<Box<dyn Feed>> {
        Ok(Box::new(CudaFeed::new(&self.0, load)?))
    }

    fn compile(&self, graph: &Graph, plan: &Plan, arena: &Arena) -> Result<Box<dyn Program>> {
        Ok(Box::new(CudaProgram::new(&self.0, graph, plan, arena)?))
    }

    fn wait(&self) -> Result<()> {
        self.0.driver.wait().map_err(|fault| self.0.error(&fault))
    }

    fn pipelines(&self) -> usize {
        self.0.kernels.lock().len()
    }

    fn free(&self) -> Option<u64> {
        self.0.driver.untaken().ok().flatten()
    }

    fn trim(&self) -> usize {
        // Programs hold what scratch memory they need. A fault here is raised by whatever runs next.
        let scratch = self.0.workspace.lock().take();
        let _ = self.0.driver.trim();
        usize::from(scratch.is_some())
    }
}
