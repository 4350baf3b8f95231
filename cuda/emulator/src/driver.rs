//! The emulator as a CUDA driver. Everything takes effect before a call returns.
#![allow(unsafe_code)]

use crate::Options;
use crate::compiler::{Compiler, What};
use crate::library::{Entry, Library};
use crate::machine::{Machine, Operand, Work};
use crate::memory::Memory;
use crate::source;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tritter_cuda::driver::{
    Address, Copies, CopyTimes, Description, Download, Driver, Fault, Kernel, Launch, Outcome, Replay,
};

/// A CUDA driver without a card.
#[derive(Clone)]
pub struct Emulator(Arc<Inner>);

struct Inner {
    description: Description,
    compiler: Compiler,
    folder: PathBuf,
    options: Options,
    state: Mutex<State>,
}

struct State {
    machine: Machine,
    memory: Memory,
    libraries: HashMap<String, Arc<Library>>,
    kernels: Vec<Loaded>,
    sequence: Sequence,
    launches: u64,
}

#[derive(Clone)]
struct Loaded {
    name: String,
    library: Arc<Library>,
    entry: Entry,
}

/// The launches of one op, as far as a driver can tell: the same parameters and operands, until the
/// first launch comes again.
#[derive(Default)]
struct Sequence {
    first: Option<Launch>,
}

impl Sequence {
    fn continues(&self, launch: &Launch) -> bool {
        let same = |first: &Launch| {
            first != launch
                && first.params == launch.params
                && first.operands.iter().map(|o| o.address).eq(launch.operands.iter().map(|o| o.address))
        };
        self.first.as_ref().is_some_and(same)
    }
}

impl Emulator {
    /// Finds a compiler and prepares a device; a sentence if that cannot be.
    pub fn open(options: Options) -> Result<Emulator, String> {
        let compiler = Compiler::find()?;
        let machine = Machine::new(&compiler)?;
        let folder = options.kernels.clone().unwrap_or_else(source::kernels);
        let folder = folder.canonicalize().map_err(|e| format!("{}: {e}", folder.display()))?;
        let description = Description {
            ordinal: 0,
            name: "CUDA emulator".into(),
            driver: format!("kernels compiled by {}", compiler.version()),
            compute: options.compute,
            processors: 8,
            emulated: true,
        };
        let state = State {
            machine,
            memory: Memory::default(),
            libraries: HashMap::new(),
            kernels: Vec::new(),
            sequence: Sequence::default(),
            launches: 0,
        };
        Ok(Emulator(Arc::new(Inner { description, compiler, folder, options, state: Mutex::new(state) })))
    }
}

impl Inner {
    fn load(&self, state: &mut State, file: &str) -> Outcome<Arc<Library>> {
        if let Some(library) = state.libraries.get(file) {
            return Ok(library.clone());
        }
        let path = self.folder.join(format!("{file}.cu"));
        let fault = |e: String| Fault::Failed(format!("{}: {e}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|e| fault(e.to_string()))?;
        let what = What::Kernel { checked: self.options.checked, runtime: state.machine.path() };
        let folders = source::include_folders(&self.folder);
        let made = self.compiler.library(file, &source::wrapper(&path, &text), &folders, what).map_err(fault)?;
        let library = Arc::new(Library::load(&made).map_err(fault)?);
        state.libraries.insert(file.into(), library.clone());
        Ok(library)
    }

    fn launch(&self, launch: &Launch) -> Outcome<()> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let loaded = state.kernels.get(launch.kernel.0).cloned();
        let loaded = loaded.ok_or_else(|| Fault::Failed("no such kernel".into()))?;
        let fault = |e: String| Fault::Failed(format!("`{}`: {e}", loaded.name));
        verify(launch, &loaded.entry).map_err(fault)?;
        let continues = state.sequence.continues(launch);
        if !continues {
            state.sequence.first = Some(launch.clone());
        }
        let began = state.sequence.first.as_ref().unwrap_or(launch);
        let mut operands = Vec::with_capacity(launch.operands.len());
        for (operand, first) in launch.operands.iter().zip(&began.operands) {
            let (words, splits) = if self.options.checked {
                state.memory.shadow(operand.address, operand.bytes)?
            } else {
                state.memory.bytes(operand.address, operand.bytes, |_| (null_mut(), null_mut()))?
            };
            operands.push(Operand {
                address: operand.address,
                bytes: operand.bytes,
                reads: operand.reads.into(),
                writes: operand.writes.into(),
                fresh: (!first.reads).into(),
                padding: 0,
                words,
                splits,
            });
        }
        state.launches += 1;
        let work = Work {
            library: &loaded.library,
            thunk: loaded.entry.thunk,
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            checked: self.options.checked,
            continues,
            seed: self.options.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(state.launches),
            params: &launch.params,
            operands: &operands,
        };
        // SAFETY: `verify` has compared sizes and counts with the kernel's own; `memory` has made sure
        // that each operand lies in an allocation, and the lock keeps others away. Kernels that are
        // not checked are for sources that have passed the checks.
        unsafe { state.machine.run(&work) }.map_err(fault)
    }
}

/// What `cuLaunchKernel` would object to, or silently get wrong.
fn verify(launch: &Launch, entry: &Entry) -> Result<(), String> {
    let Launch { grid: [x, y, z], block, shared, .. } = *launch;
    if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
        return Err(format!("no grid has {x} x {y} x {z} blocks"));
    }
    if block == 0 || block > entry.bound.min(1024) {
        return Err(format!("{block} threads, and its launch bound is {}", entry.bound));
    }
    if shared > source::SHARED_MAX {
        return Err(format!("{shared} bytes of dynamic shared memory"));
    }
    if launch.params.len() != entry.params as usize {
        return Err(format!("takes a struct of {} bytes, {} were given", entry.params, launch.params.len()));
    }
    if launch.operands.len() != entry.pointers as usize {
        return Err(format!("takes {} pointers, {} were given", entry.pointers, launch.operands.len()));
    }
    match launch.operands.iter().position(|o| o.address % 4 != 0) {
        Some(i) => Err(format!("operand {i} does not start at a multiple of 4 bytes")),
        None => Ok(()),
    }
}

/// Bytes that were copied at the call.
struct Copied(Vec<u8>);

impl Download for Copied {
    fn wait(self: Box<Self>) -> Outcome<Vec<u8>> {
        Ok(self.0)
    }
}

struct Recorded {
    driver: Emulator,
    launches: Vec<Launch>,
}

impl Replay for Recorded {
    fn submit(&self) -> Outcome<()> {
        self.launches.iter().try_for_each(|launch| self.driver.0.launch(launch))
    }
}

/// Copies that are done at the call.
struct Immediate {
    driver: Emulator,
    memory: Mutex<Vec<u8>>,
    slots: usize,
}

impl Immediate {
    fn known(&self, slot: usize) -> Outcome<()> {
        if slot < self.slots { Ok(()) } else { Err(Fault::Failed(format!("slot {slot} of {}", self.slots))) }
    }
}

impl Copies for Immediate {
    fn fill(&self, slot: usize, at: usize, bytes: &[u8]) -> Outcome<()> {
        self.known(slot)?;
        let mut memory = self.memory.lock();
        let place = at.checked_add(bytes.len()).and_then(|end| memory.get_mut(at..end));
        place.ok_or_else(|| Fault::Failed("a write beyond the pinned memory".into()))?.copy_from_slice(bytes);
        Ok(())
    }

    fn start(&self, slot: usize, from: Range<usize>, to: Address) -> Outcome<()> {
        self.known(slot)?;
        let memory = self.memory.lock();
        let part = memory.get(from).ok_or_else(|| Fault::Failed("a copy beyond the pinned memory".into()))?;
        self.driver.upload(to, part)
    }

    fn arrive(&self, slot: usize) -> Outcome<()> {
        self.known(slot)
    }

    fn leave(&self, slot: usize) -> Outcome<()> {
        self.known(slot)
    }

    fn times(&self) -> Outcome<CopyTimes> {
        Ok(CopyTimes::default())
    }
}

impl Driver for Emulator {
    fn describe(&self) -> &Description {
        &self.0.description
    }

    fn memory(&self) -> Outcome<Option<(u64, u64)>> {
        Ok(None)
    }

    fn alloc(&self, bytes: u64) -> Outcome<Address> {
        self.0.state.lock().memory.alloc(bytes)
    }

    fn free(&self, address: Address) {
        self.0.state.lock().memory.free(address);
    }

    fn clear(&self, to: Address, bytes: u64) -> Outcome<()> {
        let mut state = self.0.state.lock();
        state.sequence = Sequence::default();
        state.memory.bytes(to, bytes, |memory| memory.fill(0))
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Outcome<()> {
        let mut state = self.0.state.lock();
        state.sequence = Sequence::default();
        state.memory.bytes(to, bytes.len() as u64, |memory| memory.copy_from_slice(bytes))
    }

    fn download(&self, from: Address, bytes: u64) -> Outcome<Box<dyn Download>> {
        let copied = self.0.state.lock().memory.bytes(from, bytes, |memory| memory.to_vec())?;
        Ok(Box::new(Copied(copied)))
    }

    fn kernel(&self, file: &str, entry: &str) -> Outcome<Kernel> {
        let mut state = self.0.state.lock();
        let library = self.0.load(&mut state, file)?;
        let missing = || Fault::Failed(format!("{file}.cu has no entry point `{entry}`"));
        let loaded = Loaded { name: entry.into(), entry: library.entry(entry).ok_or_else(missing)?, library };
        state.kernels.push(loaded);
        Ok(Kernel(state.kernels.len() - 1))
    }

    fn launch(&self, launch: &Launch) -> Outcome<()> {
        self.0.launch(launch)
    }

    fn record(&self, launches: &[Launch]) -> Outcome<Box<dyn Replay>> {
        Ok(Box::new(Recorded { driver: self.clone(), launches: launches.to_vec() }))
    }

    fn time(&self, launches: &[Launch]) -> Outcome<Vec<Duration>> {
        let each = |launch: &Launch| {
            let start = Instant::now();
            self.0.launch(launch).map(|()| start.elapsed())
        };
        launches.iter().map(each).collect()
    }

    fn copies(&self, bytes: usize, slots: usize) -> Outcome<Box<dyn Copies>> {
        Ok(Box::new(Immediate { driver: self.clone(), memory: Mutex::new(vec![0; bytes]), slots }))
    }

    fn wait(&self) -> Outcome<()> {
        Ok(())
    }
}
