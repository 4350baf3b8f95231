//! A compiled kernel file.
#![allow(unsafe_code)]

use crate::places::Places;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;

/// Calls a kernel with arguments as `cuLaunchKernel` takes them.
pub(crate) type Thunk = unsafe extern "C" fn(*mut *mut c_void);
/// Where the calling thread's dynamic shared memory starts.
pub(crate) type Dynamic = unsafe extern "C" fn() -> *mut u8;

/// `EmuEntry` of emulated.cuh.
#[repr(C)]
struct RawEntry {
    name: *const c_char,
    thunk: Option<Thunk>,
    bound: u32,
    params: u32,
    pointers: u32,
}

/// An entry point.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) thunk: Thunk,
    /// Threads of a block that `__launch_bounds__` allows.
    pub(crate) bound: u32,
    /// Bytes of the parameter struct.
    pub(crate) params: u32,
    /// Arguments after it.
    pub(crate) pointers: u32,
}

/// A loaded library.
pub(crate) struct Library {
    entries: HashMap<String, Entry>,
    dynamic: Dynamic,
    places: Places,
    _library: libloading::Library,
}

impl Library {
    pub(crate) fn load(path: &Path) -> Result<Library, String> {
        // SAFETY: the library is a kernel file behind our wrapper, without initialisers (kernels
        // declare no globals that need one); the symbols have the types of their definitions in
        // emulated.cuh, and the table ends with a null name.
        unsafe {
            let library = libloading::Library::new(path).map_err(|e| reason(&e))?;
            let dynamic = *library.get::<Dynamic>(b"emu_dynamic\0").map_err(|e| reason(&e))?;
            let mut raw = *library.get::<*const RawEntry>(b"emu_entries\0").map_err(|e| reason(&e))?;
            let mut entries = HashMap::new();
            while let RawEntry { name, thunk: Some(thunk), bound, params, pointers } = *raw {
                let name = CStr::from_ptr(name).to_string_lossy().into_owned();
                entries.insert(name, Entry { thunk, bound, params, pointers });
                raw = raw.add(1);
            }
            Ok(Library { entries, dynamic, places: Places::new(path), _library: library })
        }
    }

    pub(crate) fn entry(&self, name: &str) -> Option<Entry> {
        self.entries.get(name).copied()
    }

    pub(crate) fn dynamic(&self) -> Dynamic {
        self.dynamic
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }
}

/// An error of the loader with what the system says, which `libloading` keeps apart.
pub(crate) fn reason(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}
