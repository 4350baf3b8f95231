//! The C side of the emulator (`cpp/runtime.hpp`): the same structs, and a machine to run launches on.
#![allow(unsafe_code)]

use crate::compiler::{Compiler, What};
use crate::library::{Dynamic, Library, Thunk, reason};
use crate::source;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

/// `Cell` of the runtime: who touched a word last. All zero is "nobody".
#[repr(C)]
pub(crate) struct Cell {
    stamps: [u64; 3],
    places: [u32; 3],
    split: u32,
}

/// `Operand` of the runtime.
#[repr(C)]
pub(crate) struct Operand {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    pub(crate) reads: u32,
    pub(crate) writes: u32,
    /// Reads need a write in this sequence of launches first.
    pub(crate) fresh: u32,
    pub(crate) padding: u32,
    pub(crate) words: *mut Cell,
    pub(crate) splits: *mut Cell,
}

/// `Launch` of the runtime.
#[repr(C)]
struct RawLaunch {
    thunk: Thunk,
    arguments: *mut *mut c_void,
    dynamic: Dynamic,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    checked: u32,
    continues: u32,
    operand_count: u32,
    operands: *const Operand,
    seed: u64,
    same_place: unsafe extern "C" fn(*const c_void, u32, u32) -> u32,
    context: *const c_void,
}

/// `Fault` of the runtime.
#[repr(C)]
struct RawFault {
    text: [c_char; 512],
    file: [c_char; 256],
    line: u32,
    block: [u32; 3],
    thread: u32,
    at: u32,
    other: u32,
}

/// What a launch is made of.
pub(crate) struct Work<'a> {
    pub(crate) library: &'a Library,
    pub(crate) thunk: Thunk,
    pub(crate) grid: [u32; 3],
    pub(crate) block: u32,
    pub(crate) shared: u32,
    pub(crate) checked: bool,
    pub(crate) continues: bool,
    pub(crate) seed: u64,
    pub(crate) params: &'a [u8],
    pub(crate) operands: &'a [Operand],
}

type NewMachine = unsafe extern "C" fn() -> *mut c_void;
type FreeMachine = unsafe extern "C" fn(*mut c_void);
type RunLaunch = unsafe extern "C" fn(*mut c_void, *const RawLaunch, u64, *mut RawFault) -> u32;

/// The emulator's runtime, and the state of one device in it.
pub(crate) struct Machine {
    state: NonNull<c_void>,
    free: FreeMachine,
    launch: RunLaunch,
    path: PathBuf,
    _library: libloading::Library,
}

// SAFETY: the state is used by one thread at a time (`run` takes `&mut self`), and nothing in it
// belongs to the thread that made it.
unsafe impl Send for Machine {}

impl Machine {
    pub(crate) fn new(compiler: &Compiler) -> Result<Machine, String> {
        let folder = source::runtime();
        let files = ["fibers", "blocks", "shadow", "warps", "copies"];
        let text: String = files.map(|file| format!("#include \"{file}.cpp\"\n")).concat();
        let path = compiler.library("runtime", &text, &[folder], What::Runtime)?;
        // SAFETY: the library was made from this crate's sources, it has no initialisers with effects,
        // and the symbols have the types of their C++ definitions in `blocks.cpp`.
        unsafe {
            let library = libloading::Library::new(&path).map_err(|e| reason(&e))?;
            let new = *library.get::<NewMachine>(b"emu_machine_new\0").map_err(|e| reason(&e))?;
            let free = *library.get::<FreeMachine>(b"emu_machine_free\0").map_err(|e| reason(&e))?;
            let launch = *library.get::<RunLaunch>(b"emu_launch\0").map_err(|e| reason(&e))?;
            let state = NonNull::new(new()).ok_or("no address space for the stacks of a block")?;
            Ok(Machine { state, free, launch, path, _library: library })
        }
    }

    /// The runtime's library, against which kernels are linked.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a launch to its end; a sentence on the fault if there is one.
    ///
    /// # Safety
    /// The thunk belongs to `library` and takes `params` of this size and this many pointers. The
    /// operands' bytes and cells are valid and nobody else uses them meanwhile. A kernel that is
    /// not `checked` stays inside its operands.
    pub(crate) unsafe fn run(&mut self, work: &Work<'_>) -> Result<(), String> {
        // Params by value need the alignment of their 4-byte fields.
        let mut params = vec![0u64; work.params.len().div_ceil(8).max(1)];
        for (to, from) in params.iter_mut().zip(work.params.chunks(8)) {
            let mut word = [0; 8];
            word[..from.len()].copy_from_slice(from);
            *to = u64::from_ne_bytes(word);
        }
        let mut addresses: Vec<u64> = work.operands.iter().map(|o| o.address).collect();
        let mut arguments = vec![params.as_mut_ptr().cast::<c_void>()];
        arguments.extend(addresses.iter_mut().map(|a| std::ptr::from_mut(a).cast::<c_void>()));
        let raw = RawLaunch {
            thunk: work.thunk,
            arguments: arguments.as_mut_ptr(),
            dynamic: work.library.dynamic(),
            grid: work.grid,
            block: work.block,
            shared: work.shared,
            checked: work.checked.into(),
            continues: work.continues.into(),
            operand_count: work.operands.len() as u32,
            operands: work.operands.as_ptr(),
            seed: work.seed,
            same_place,
            context: std::ptr::from_ref(work.library).cast(),
        };
        let mut fault = Box::<RawFault>::new_uninit();
        // SAFETY: all pointers in `raw` are valid for the call; `emu_launch` first clears the fault, so
        // it is initialised afterwards; the caller vouches for the rest.
        let (good, fault) = unsafe {
            let array = u64::from(source::SHARED_MAX);
            let good = (self.launch)(self.state.as_ptr(), &raw const raw, array, fault.as_mut_ptr());
            (good, fault.assume_init())
        };
        if good != 0 { Ok(()) } else { Err(describe(&fault, work)) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: the state came from `emu_machine_new` of this library and is freed once.
        unsafe { (self.free)(self.state.as_ptr()) };
    }
}

/// The runtime asks this between switches of fibers, on the stack of the thread that called `run`.
unsafe extern "C" fn same_place(library: *const c_void, a: u32, b: u32) -> u32 {
    // SAFETY: `run` passes the address of a library that it borrows until the launch ends.
    let library = unsafe { &*library.cast::<Library>() };
    library.places().same(a, b).into()
}

fn describe(fault: &RawFault, work: &Work<'_>) -> String {
    let places = work.library.places();
    let file = text(&fault.file);
    let name = file.rsplit('/').next().unwrap_or_default();
    let mut place = places.of(fault.at);
    if !name.is_empty() && !place.starts_with(name) {
        place = format!("{name}:{}", fault.line);
    }
    let [x, y, z] = fault.block;
    let mut message = format!("block ({x}, {y}, {z})");
    if fault.thread != u32::MAX {
        message.push_str(&format!(", thread {}", fault.thread));
    }
    if !place.is_empty() {
        message.push_str(&format!(", {place}"));
    }
    message.push_str(&format!(": {}", text(&fault.text)));
    let other = places.of(fault.other);
    if !other.is_empty() {
        message.push_str(&format!(" (the other: {other})"));
    }
    message
}

fn text(bytes: &[c_char]) -> String {
    // SAFETY: the runtime ends its texts with a zero (`snprintf`, `memset`) inside the array.
    unsafe { CStr::from_ptr(bytes.as_ptr()) }.to_string_lossy().into_owned()
}
