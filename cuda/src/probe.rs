//! Loading the driver library and asking for its version.
#![allow(unsafe_code)]

use libloading::Library;
use std::ffi::c_int;

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A driver that initialises and has a device.
    Driver {
        /// CUDA version that it supports, e.g. `12.9`.
        version: String,
    },
    /// No usable driver.
    Absent {
        /// Why, as a sentence.
        why: String,
    },
}

#[cfg(windows)]
const NAMES: &[&str] = &["nvcuda.dll"];
#[cfg(not(windows))]
const NAMES: &[&str] = &["libcuda.so.1", "libcuda.so"];

/// `CUresult fn(unsigned)`, `CUresult fn(int *)`.
type Init = unsafe extern "C" fn(u32) -> c_int;
type Query = unsafe extern "C" fn(*mut c_int) -> c_int;

/// Looks for an NVIDIA driver. Never panics and creates no context.
pub fn probe() -> Probe {
    match ask() {
        Ok(version) => Probe::Driver { version },
        Err(why) => Probe::Absent { why },
    }
}

fn ask() -> Result<String, String> {
    let library = NAMES.iter().find_map(|name| {
        // SAFETY: the names are those of NVIDIA's driver library, whose initialisers have no
        // preconditions; nothing else is loaded.
        unsafe { Library::new(*name) }.ok()
    });
    let library = library.ok_or_else(|| format!("no NVIDIA driver ({} cannot be loaded)", NAMES[0]))?;
    // SAFETY: `cuInit`, `cuDriverGetVersion` and `cuDeviceGetCount` have had these C signatures since
    // CUDA 2.0; the symbols do not outlive `library`.
    let (init, version, count) = unsafe {
        let symbol =
            |name: &[u8]| library.get::<Query>(name).map_err(|e| format!("the NVIDIA driver lacks a function: {e}"));
        let init = library.get::<Init>(b"cuInit\0").map_err(|e| format!("the NVIDIA driver lacks a function: {e}"))?;
        (init, symbol(b"cuDriverGetVersion\0")?, symbol(b"cuDeviceGetCount\0")?)
    };
    // SAFETY: 0 is the only flag that `cuInit` accepts.
    let code = unsafe { init(0) };
    if code != 0 {
        return Err(format!("the NVIDIA driver does not start (cuInit gives error {code})"));
    }
    let devices = query(&count, "cuDeviceGetCount")?;
    if devices == 0 {
        return Err("the NVIDIA driver finds no device".into());
    }
    let version = query(&version, "cuDriverGetVersion")?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

fn query(function: &Query, name: &str) -> Result<c_int, String> {
    let mut value = 0;
    // SAFETY: both functions write one int through the pointer, which is valid for the call.
    match unsafe { function(&raw mut value) } {
        0 => Ok(value),
        code => Err(format!("the NVIDIA driver fails ({name} gives error {code})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_answers_with_a_version_or_a_reason() {
        match probe() {
            Probe::Driver { version } => {
                assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{version}")
            }
            Probe::Absent { why } => assert!(why.contains("NVIDIA"), "{why}"),
        }
    }
}
