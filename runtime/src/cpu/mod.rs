//! The CPU backend: programs run in this process, in order, when they are submitted.

pub(crate) mod attention;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(not(target_arch = "wasm32"))]
mod feed;
pub mod math;
mod memory;
pub mod parallel;
#[cfg(not(target_arch = "wasm32"))]
pub mod peaks;
mod program;
pub(crate) mod ternary;
pub(crate) mod weights;

use crate::device::{Arena, Backend, Buffer, Caps, Device, Pending, Program, Support};
use crate::dtype::Spec;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::ledger::{Kind, Ledger};
use crate::op::Op;
use crate::plan::Plan;
use crate::stream::HostMemory;
#[cfg(not(target_arch = "wasm32"))]
use crate::stream::{Feed, Load, Way};
use crate::tensor::Role;
use memory::Memory;
use std::sync::Arc;

/// Opens the CPU.
pub fn open() -> Device {
    Device::new(Arc::new(Cpu::new()))
}

struct Cpu {
    caps: Caps,
    ledger: Arc<Ledger>,
}

impl Cpu {
    fn new() -> Self {
        let (name, memory, threads) = system();
        let caps = Caps {
            backend: "cpu",
            id: "cpu".into(),
            name,
            driver: instruction_sets(),
            f16: true,
            max_binding: u64::MAX,
            memory,
            threads,
            timestamps: true,
            ..Caps::default()
        };
        Cpu { ledger: Ledger::new(&caps), caps }
    }

    fn memory_of(&self, buffer: &Buffer) -> Result<Arc<Memory>> {
        let foreign = || self.error("the buffer belongs to another device".into());
        buffer.downcast::<Memory>().ok_or_else(foreign)
    }

    fn error(&self, message: String) -> Error {
        Error::Device { device: self.caps.id.clone(), message }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn system() -> (String, Option<u64>, usize) {
    use sysinfo::{CpuRefreshKind, RefreshKind, System};
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let name = system.cpus().first().map(|c| c.brand().trim().to_string()).unwrap_or_default();
    let name = if name.is_empty() { std::env::consts::ARCH.to_string() } else { name };
    (name, available(), rayon::current_num_threads())
}

/// Bytes of memory that this process may still take, as the system says.
#[cfg(not(target_arch = "wasm32"))]
fn available() -> Option<u64> {
    use sysinfo::{MemoryRefreshKind, RefreshKind, System};
    let ram = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(ram));
    let free = Some(system.available_memory()).filter(|&bytes| bytes > 0);
    #[cfg(target_os = "linux")]
    let free = free.into_iter().chain(cgroup::room()).min();
    free
}

#[cfg(target_arch = "wasm32")]
fn system() -> (String, Option<u64>, usize) {
    ("wasm32".into(), None, 1)
}

/// Instruction sets that the kernels look for.
fn instruction_sets() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let mut found = Vec::new();
        macro_rules! look {
            ($($feature:tt)*) => { $(if is_x86_feature_detected!($feature) { found.push($feature); })* };
        }
        look!("avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vnni");
        found.join(" ")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH.to_string()
    }
}

struct Ready(Vec<u8>);

impl Pending for Ready {
    fn wait(self: Box<Self>) -> Result<Vec<u8>> {
        Ok(self.0)
    }
}

impl Backend for Cpu {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn supports(&self, op: &Op, operands: &[Spec]) -> Support {
        match op.check_operands(operands) {
            Ok(()) if !(op.row().cpu_takes)(operands) => Support::Missing("the CPU kernel takes no bf16".into()),
            Ok(()) => Support::Variant("cpu"),
            Err(e) => Support::Missing(e.to_string()),
        }
    }

    fn alloc(&self, bytes: u64, _role: Role, name: &str) -> Result<Buffer> {
        let memory = Memory::new(self.ledger.take(Kind::Planned, bytes, name)?);
        let memory = memory.ok_or_else(|| self.error(format!("out of memory: {bytes} bytes for `{name}`")))?;
        Ok(Buffer::new(Arc::new(memory), bytes))
    }

    fn write(&self, to: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let memory = self.memory_of(to)?;
        if memory.is_read_only() {
            return Err(self.error("the memory of a file is only read".into()));
        }
        let mut lines = memory.write();
        let stored: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
        let first = offset as usize;
        match stored.get_mut(first..first + bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            None => return Err(self.error(format!("{} bytes at {offset} lie outside a buffer", bytes.len()))),
        }
        Ok(())
    }

    fn fetch(&self, from: &Buffer, offset: u64, bytes: u64) -> Result<Box<dyn Pending>> {
        let memory = self.memory_of(from)?;
        let reading = memory.read();
        let stored: &[u8] = bytemuck::cast_slice(reading.words());
        let part = stored.get(offset as usize..(offset + bytes) as usize);
        let part = part.ok_or_else(|| self.error(format!("{bytes} bytes at {offset} lie outside a buffer")))?;
        Ok(Box::new(Ready(part.to_vec())))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn way(&self) -> Way {
        Way::InPlace
    }

    fn adopt(&self, memory: &Arc<dyn HostMemory>) -> Result<Buffer> {
        let bytes = memory.bytes().len() as u64;
        let adopted = Memory::adopt(memory.clone());
        let adopted = adopted.ok_or_else(|| self.error("host memory lies in no whole lines of 64 bytes".into()))?;
        Ok(Buffer::new(Arc::new(adopted), bytes))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn feed(&self, load: Load) -> Result<Box<dyn Feed>> {
        Ok(Box::new(feed::InPlace::new(load)?))
    }

    fn compile(&self, graph: &Graph, plan: &Plan, arena: &Arena) -> Result<Box<dyn Program>> {
        Ok(Box::new(program::CpuProgram::new(self, graph, plan, arena)?))
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}
