//! Loading the driver library and asking whether it is of use.
//!
//! Everything else of the driver is reached only through [`library`], which answers with a sentence
//! where there is no driver, it does not start, finds no device, or is too old.
#![allow(unsafe_code)]

use libloading::Library;
use std::ffi::c_int;
use std::sync::OnceLock;

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

/// The oldest driver that is used: it loads cubins of any compiler of CUDA 12 and has all functions of
/// [`crate::nvidia`].
const OLDEST: Version = Version(12, 0);
const OLDEST_NAME: &str = "525";

/// Names of the library, and where it lies on systems whose loader does not know it (WSL, NixOS).
#[cfg(windows)]
const NAMES: &[&str] = &["nvcuda.dll"];
#[cfg(not(windows))]
const NAMES: &[&str] =
    &["libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1", "/run/opengl-driver/lib/libcuda.so.1"];

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The driver library, started.
pub(crate) struct Loaded {
    /// Never unloaded: drivers leave threads and exit handlers behind.
    pub(crate) library: &'static Library,
    /// CUDA version that it supports.
    pub(crate) version: Version,
    /// Devices that it shows, at least one.
    pub(crate) devices: usize,
}

/// `CUresult fn(unsigned)`, `CUresult fn(int *)`.
type Init = unsafe extern "C" fn(u32) -> c_int;
type Query = unsafe extern "C" fn(*mut c_int) -> c_int;

/// Looks for an NVIDIA driver. Never panics and creates no context.
pub fn probe() -> Probe {
    match library() {
        Ok(loaded) => Probe::Driver { version: loaded.version.to_string() },
        Err(why) => Probe::Absent { why },
    }
}

/// The driver library, loaded once for this process, or why there is none.
pub(crate) fn library() -> Result<&'static Loaded, String> {
    static LOADED: OnceLock<Result<Loaded, String>> = OnceLock::new();
    LOADED.get_or_init(|| load(NAMES)).as_ref().map_err(Clone::clone)
}

fn load(names: &[&str]) -> Result<Loaded, String> {
    let library = names.iter().find_map(|name| {
        // SAFETY: the names are those of NVIDIA's driver library, whose initialisers have no
        // preconditions; nothing else is loaded.
        unsafe { Library::new(*name) }.ok()
    });
    let name = names.first().unwrap_or(&"the driver library");
    let library = library.ok_or_else(|| format!("no NVIDIA driver ({name} cannot be loaded)"))?;
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: `cuInit`, `cuDriverGetVersion` and `cuDeviceGetCount` have had these C signatures since
    // CUDA 2.0; the symbols do not outlive `library`.
    let (init, version, count) = unsafe {
        let symbol =
            |name: &str| library.get::<Query>(name).map_err(|e| format!("the NVIDIA driver lacks a function: {e}"));
        let init = library.get::<Init>("cuInit").map_err(|e| format!("the NVIDIA driver lacks a function: {e}"))?;
        (init, symbol("cuDriverGetVersion")?, symbol("cuDeviceGetCount")?)
    };
    // SAFETY: 0 is the only flag that `cuInit` accepts.
    started(unsafe { init(0) })?;
    let version = new_enough(query(&version, "cuDriverGetVersion")?)?;
    let devices = query(&count, "cuDeviceGetCount")?;
    match usize::try_from(devices) {
        Ok(devices) if devices > 0 => Ok(Loaded { library, version, devices }),
        _ => Err("the NVIDIA driver finds no device".into()),
    }
}

fn query(function: &Query, name: &str) -> Result<c_int, String> {
    let mut value = 0;
    // SAFETY: both functions write one int through the pointer, which is valid for the call.
    match unsafe { function(&raw mut value) } {
        0 => Ok(value),
        code => Err(format!("the NVIDIA driver fails ({name} gives error {code})")),
    }
}

/// What `cuInit` answers, as a sentence.
fn started(code: c_int) -> Result<(), String> {
    let why = match code {
        0 => return Ok(()),
        34 => "it is the toolkit's stand-in for the real one",
        100 => "it finds no device",
        802 => "the system is not ready; is the fabric manager running?",
        803 => "library and kernel module are of different versions; restart the machine",
        804 => "the compatibility package does not support this device",
        _ => return Err(format!("the NVIDIA driver does not start (cuInit gives error {code})")),
    };
    Err(format!("the NVIDIA driver does not start: {why} (cuInit gives error {code})"))
}

/// The version from the driver's number, e.g. 12090.
fn new_enough(number: c_int) -> Result<Version, String> {
    let number = number.unsigned_abs();
    let version = Version(number / 1000, number % 1000 / 10);
    if version >= OLDEST {
        return Ok(version);
    }
    Err(format!(
        "the NVIDIA driver is too old: it supports CUDA {version}, and CUDA {OLDEST} is needed (driver {OLDEST_NAME} or newer)"
    ))
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

    #[test]
    fn a_missing_library_is_a_sentence() {
        let why = load(&["libcuda-that-nobody-has.so"]).err();
        assert_eq!(why.as_deref(), Some("no NVIDIA driver (libcuda-that-nobody-has.so cannot be loaded)"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn another_library_is_a_sentence() {
        let Some(why) = load(&["libm.so.6", "libc.so.6"]).err() else { return };
        assert!(why.contains("lacks a function") || why.contains("cannot be loaded"), "{why}");
    }

    #[test]
    fn versions_are_compared_and_named() {
        assert_eq!(new_enough(12090), Ok(Version(12, 9)));
        assert_eq!(new_enough(12000), Ok(Version(12, 0)));
        assert_eq!(new_enough(13010), Ok(Version(13, 1)));
        let why = new_enough(11080).err().unwrap_or_default();
        assert!(why.contains("supports CUDA 11.8") && why.contains("525 or newer"), "{why}");
    }

    #[test]
    fn a_driver_that_does_not_start_says_why() {
        assert_eq!(started(0), Ok(()));
        for (code, word) in [(100, "no device"), (803, "restart"), (999, "error 999")] {
            assert!(started(code).err().is_some_and(|why| why.contains(word)), "{code}");
        }
    }
}
