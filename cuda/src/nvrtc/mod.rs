//! NVRTC, NVIDIA's run-time compiler, by a binding of our own.
//!
//! cudarc's binding opens the library under names of its own choice and panics where there is none;
//! here any path may be opened, and a library that is missing or lacks a function is a sentence.
#![allow(unsafe_code)]

use crate::cubin::{Arch, HEADERS, Image, OPTIONS, Source, Target};
use crate::find;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

/// Names the library to use; nothing else is tried then.
pub const VARIABLE: &str = "TRITTER_NVRTC";

/// How to get NVRTC.
pub const ADVICE: &str =
    "`pip install nvidia-cuda-nvrtc-cu12` provides NVRTC, and TRITTER_NVRTC may name the library's file";

/// `nvrtcProgram`.
type Handle = *mut std::ffi::c_void;
/// `nvrtcResult`; a number, because libraries to come may know more of them than we do.
type Code = c_int;
type SizeOf = unsafe extern "C" fn(Handle, *mut usize) -> Code;
type BytesOf = unsafe extern "C" fn(Handle, *mut c_char) -> Code;

/// The oldest compiler that is used: the first of CUDA 12, whose code all drivers of CUDA 12 load.
const OLDEST: (u32, u32) = (12, 0);

/// An open NVRTC library.
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    archs: Vec<Arch>,
    functions: Functions,
}

struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code,
    arch_count: unsafe extern "C" fn(*mut c_int) -> Code,
    archs: unsafe extern "C" fn(*mut c_int) -> Code,
    error: unsafe extern "C" fn(Code) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Code,
    destroy: unsafe extern "C" fn(*mut Handle) -> Code,
    log: (SizeOf, BytesOf),
    cubin: (SizeOf, BytesOf),
    ptx: (SizeOf, BytesOf),
}

/// What a compilation gave.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code, or PTX with its closing NUL.
    pub image: Image,
    /// The compiler's messages.
    pub log: String,
}

/// How much use a library is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rank {
    /// Nothing better is looked for.
    Best,
    /// Taken if there is nothing better; the first found of these.
    Usable,
    /// Never taken, and why.
    Useless(String),
}

impl Nvrtc {
    /// The best library found, by a rank, or why there is none.
    pub fn find(rank: impl Fn(&Nvrtc) -> Rank) -> Result<Nvrtc, String> {
        let candidates = match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => vec![path.into()],
            None => find::candidates(&find::NVRTC, |name| std::env::var_os(name)),
        };
        Nvrtc::choose(candidates, rank)
    }

    fn choose(candidates: Vec<PathBuf>, rank: impl Fn(&Nvrtc) -> Rank) -> Result<Nvrtc, String> {
        let mut usable = None;
        let mut reasons = Vec::new();
        for path in candidates {
            match Nvrtc::open(&path) {
                Ok(found) => match rank(&found) {
                    Rank::Best => return Ok(found),
                    Rank::Usable => usable = usable.or(Some(found)),
                    Rank::Useless(why) => reasons.push(why),
                },
                // That the loader knows no such name says nothing.
                Err(why) if path.is_absolute() || std::env::var_os(VARIABLE).is_some() => reasons.push(why),
                Err(_) => {}
            }
        }
        if reasons.is_empty() {
            reasons.push("NVRTC is not installed".into());
        }
        usable.ok_or_else(|| reasons.join("; "))
    }

    /// Opens a library.
    pub fn open(path: &Path) -> Result<Nvrtc, String> {
        // Where the loader would not look beside NVRTC, it takes these because they are loaded already.
        for builtins in find::builtins(path) {
            // SAFETY: a library of NVIDIA's, whose initialisers have no preconditions.
            match unsafe { Library::new(&builtins) } {
                Ok(library) => std::mem::forget(library),
                Err(why) => tracing::debug!("{}: {why}", builtins.display()),
            }
        }
        // SAFETY: as above. Nothing but NVRTC has these names; what `TRITTER_NVRTC` names is the
        // user's choice, as with any library that the loader finds through the environment.
        let library = unsafe { Library::new(path) }.map_err(|e| format!("{} cannot be loaded: {e}", path.display()))?;
        // Never unloaded: what it has started may outlive us, and the functions stay good for ever.
        let library = ManuallyDrop::new(library);
        let functions = Functions::of(&library).map_err(|e| format!("{} is not NVRTC: {e}", path.display()))?;
        let mut found = Nvrtc { path: path.into(), version: (0, 0), archs: Vec::new(), functions };
        (found.version, found.archs) = found.ask().map_err(|e| format!("{}: {e}", path.display()))?;
        if found.version < OLDEST {
            let ((major, minor), path) = (found.version, path.display());
            return Err(format!("{path} is NVRTC {major}.{minor}, older than {}.{}", OLDEST.0, OLDEST.1));
        }
        Ok(found)
    }

    /// Version and architectures.
    fn ask(&self) -> Result<((u32, u32), Vec<Arch>), String> {
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: each writes one int through each pointer.
        unsafe {
            self.check((self.functions.version)(&raw mut major, &raw mut minor), "nvrtcVersion")?;
            self.check((self.functions.arch_count)(&raw mut count), "nvrtcGetNumSupportedArchs")?;
        }
        let mut numbers = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: it writes as many ints as the function before has said, and there is room for them.
        unsafe { self.check((self.functions.archs)(numbers.as_mut_ptr()), "nvrtcGetSupportedArchs")? };
        let archs = numbers.into_iter().filter_map(|n| u32::try_from(n).ok()).map(Arch::from_number);
        Ok(((major.unsigned_abs(), minor.unsigned_abs()), archs.collect()))
    }

    /// Version, e.g. `(12, 9)`.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Architectures that it compiles for.
    pub fn archs(&self) -> &[Arch] {
        &self.archs
    }

    /// Name and version, as caches and archives note them: `NVRTC 12.9`.
    pub fn name(&self) -> String {
        format!("NVRTC {}.{}", self.version.0, self.version.1)
    }

    /// Compiles a file of `cuda/kernels`. The error is the compiler's log, with file and line.
    pub fn compile(&self, source: &Source, target: Target, more: &[&str]) -> Result<Compiled, String> {
        let program = Program::new(self, source)?;
        let options = [target.option()].into_iter().chain(OPTIONS.iter().chain(more).map(|o| o.to_string()));
        let options = options.map(text).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive; there are as many pointers as said, to texts that end in NUL
        // and live until the call has returned.
        let code = unsafe { (self.functions.compile)(program.handle, pointers.len() as c_int, pointers.as_ptr()) };
        let log = program.take(self.functions.log, "log").map(text_of).unwrap_or_default();
        if let Err(why) = self.check(code, "nvrtcCompileProgram") {
            return Err(format!("{}.cu does not compile for {target:?}: {why}\n{}", source.name, log.trim_end()));
        }
        let image = match target {
            Target::Cubin(_) => program.take(self.functions.cubin, "cubin")?,
            Target::Ptx(_) => closed(program.take(self.functions.ptx, "PTX")?),
        };
        if image.is_empty() {
            return Err(format!("{} gave nothing for {}.cu", self.name(), source.name));
        }
        Ok(Compiled { image: Image(image), log })
    }

    fn check(&self, code: Code, function: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: it takes any number and gives a text that lives as long as the library.
        let message = unsafe { (self.functions.error)(code) };
        // SAFETY: not null, so it is that text.
        let message = (!message.is_null()).then(|| unsafe { CStr::from_ptr(message) }.to_string_lossy());
        Err(format!("{} ({function})", message.unwrap_or_else(|| format!("error {code}").into())))
    }
}

impl fmt::Display for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name(), self.path.display())
    }
}

impl Functions {
    fn of(library: &ManuallyDrop<Library>) -> Result<Functions, String> {
        /// A function of a library that is never unloaded.
        fn find<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
            // SAFETY: `F` is the C signature that nvrtc.h has given the function of this name since
            // CUDA 11.2; the compiler of this crate fixes it by the field that the value goes to.
            let symbol = unsafe { library.get::<F>(name) };
            symbol.map(|symbol| *symbol).map_err(|e| e.to_string())
        }
        Ok(Functions {
            version: find(library, "nvrtcVersion")?,
            arch_count: find(library, "nvrtcGetNumSupportedArchs")?,
            archs: find(library, "nvrtcGetSupportedArchs")?,
            error: find(library, "nvrtcGetErrorString")?,
            create: find(library, "nvrtcCreateProgram")?,
            compile: find(library, "nvrtcCompileProgram")?,
            destroy: find(library, "nvrtcDestroyProgram")?,
            log: (find(library, "nvrtcGetProgramLogSize")?, find(library, "nvrtcGetProgramLog")?),
            cubin: (find(library, "nvrtcGetCUBINSize")?, find(library, "nvrtcGetCUBIN")?),
            ptx: (find(library, "nvrtcGetPTXSize")?, find(library, "nvrtcGetPTX")?),
        })
    }
}

/// A program under compilation.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: Handle,
}

impl<'a> Program<'a> {
    fn new(nvrtc: &'a Nvrtc, source: &Source) -> Result<Self, String> {
        let (code, name) = (text(source.text)?, text(format!("{}.cu", source.name))?);
        let headers = HEADERS.iter().map(|(name, code)| Ok((text(*name)?, text(*code)?)));
        let headers = headers.collect::<Result<Vec<(CString, CString)>, String>>()?;
        let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let codes: Vec<*const c_char> = headers.iter().map(|(_, code)| code.as_ptr()).collect();
        let mut handle = null_mut();
        let (texts, includes) = match headers.is_empty() {
            true => (null(), null()),
            false => (codes.as_ptr(), names.as_ptr()),
        };
        // SAFETY: all texts end in NUL and live until the call has returned, which copies them; the
        // arrays have as many elements as said; the handle is written before it is used.
        let code = unsafe {
            let count = headers.len() as c_int;
            (nvrtc.functions.create)(&raw mut handle, code.as_ptr(), name.as_ptr(), count, texts, includes)
        };
        nvrtc.check(code, "nvrtcCreateProgram")?;
        Ok(Program { nvrtc, handle })
    }

    /// One of its results.
    fn take(&self, (size, bytes): (SizeOf, BytesOf), what: &str) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program is alive; the size is written through the pointer.
        self.nvrtc.check(unsafe { size(self.handle, &raw mut length) }, what)?;
        let mut result = vec![0u8; length];
        // SAFETY: there is room for as many bytes as the library has said it writes.
        self.nvrtc.check(unsafe { bytes(self.handle, result.as_mut_ptr().cast()) }, what)?;
        Ok(result)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the program is alive and used no more.
        let _ = unsafe { (self.nvrtc.functions.destroy)(&raw mut self.handle) };
    }
}

fn text(text: impl Into<Vec<u8>>) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a source has a NUL in it".into())
}

/// A C text with its NUL as a string.
fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}

/// PTX has to end in NUL for the driver.
fn closed(mut ptx: Vec<u8>) -> Vec<u8> {
    if ptx.last().is_some_and(|&last| last != 0) {
        ptx.push(0);
    }
    ptx
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
