//! The system's C++ compiler, and libraries that it has made before.

use crate::source;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

/// For all that is compiled.
const COMMON: &[&str] = &["-std=c++17", "-fPIC", "-fvisibility=hidden", "-g1", "-gdwarf-4"];

/// For linking, which knows nothing of sanitizers: the emulator supplies what they call.
const LINK: &[&str] = &["-shared", "-Wl,-z,now", "-Wl,-Bsymbolic"];

/// For kernels: one load in the source is one load in the program, a barrier is called where it
/// stands, and two libraries with the same names share nothing.
const KERNEL: &[&str] = &[
    "-w",
    "-fno-gnu-unique",
    "-fno-threadsafe-statics",
    "-fno-extern-tls-init",
    "-fno-math-errno",
    "-fno-crossjumping",
    "-fno-tree-tail-merge",
    "-fno-optimize-sibling-calls",
    "-ffp-contract=fast",
    "-fno-strict-aliasing",
];

/// For checked kernels.
const CHECKED: &[&str] = &[
    "-O1",
    "-fsanitize=thread,alignment,bounds,shift-exponent",
    "-fno-sanitize-recover=all",
    "--param",
    "tsan-instrument-func-entry-exit=0",
];

/// What is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What<'a> {
    /// The emulator's own runtime.
    Runtime,
    /// A kernel file behind a wrapper, linked against the runtime.
    Kernel {
        /// With the calls that verify each access.
        checked: bool,
        /// The runtime.
        runtime: &'a Path,
    },
}

/// A C++ compiler that was found.
#[derive(Clone, Debug)]
pub struct Compiler {
    program: OsString,
    version: String,
}

impl Compiler {
    /// `$CXX` or `g++`; a sentence if there is none that serves.
    pub fn find() -> Result<Compiler, String> {
        if !cfg!(target_os = "linux") {
            return Err("the CUDA emulator runs on Linux only".into());
        }
        let program = std::env::var_os("CXX").filter(|c| !c.is_empty()).unwrap_or_else(|| "g++".into());
        let shown = program.to_string_lossy().into_owned();
        let answer = Command::new(&program).arg("--version").output();
        let answer =
            answer.map_err(|e| format!("the CUDA emulator needs a C++ compiler, and `{shown}` does not start: {e}"))?;
        let version = String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or_default().to_string();
        if !answer.status.success() || version.to_lowercase().contains("clang") {
            return Err(format!("the CUDA emulator needs GCC, and `{shown}` says `{version}`"));
        }
        let addr2line = Command::new("addr2line").arg("--version").output().is_ok_and(|o| o.status.success());
        if !addr2line {
            return Err("the CUDA emulator needs `addr2line` of GNU binutils".into());
        }
        Ok(Compiler { program, version })
    }

    /// What it calls itself.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compiles a text that may include kernel files, for its `static_assert`s; the compiler's words
    /// if it objects.
    pub fn accepts(&self, text: &str) -> Result<(), String> {
        let kernels = source::kernels();
        let mut folders = source::include_folders(&kernels);
        folders.push(kernels);
        let source = scratch("cpp", text)?;
        let mut command = Command::new(&self.program);
        run(command.args(["-std=c++17", "-w", "-fsyntax-only"]).args(include(&folders)).arg(source.path()))
    }

    /// Makes a library of a text that includes files from `folders`, or finds the one made before.
    pub(crate) fn library(
        &self,
        name: &str,
        text: &str,
        folders: &[PathBuf],
        what: What<'_>,
    ) -> Result<PathBuf, String> {
        let flags = flags(what);
        let mut hasher = DefaultHasher::new();
        (&self.version, &flags, LINK, text).hash(&mut hasher);
        for folder in folders {
            hash_headers(folder, &mut hasher).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        let cache = PathBuf::from(env!("OUT_DIR")).join("compiled");
        fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
        let library = cache.join(format!("{name}-{:016x}.so", hasher.finish()));
        if library.exists() {
            return Ok(library);
        }
        let (source, object) = (scratch("cpp", text)?, scratch("o", "")?);
        run(Command::new(&self.program)
            .args(&flags)
            .args(include(folders))
            .arg("-c")
            .arg(source.path())
            .arg("-o")
            .arg(object.path()))?;
        let made =
            tempfile::Builder::new().prefix(name).suffix(".so").tempfile_in(&cache).map_err(|e| e.to_string())?;
        let mut link = Command::new(&self.program);
        link.args(LINK).arg(object.path()).arg("-o").arg(made.path());
        if let What::Kernel { runtime, .. } = what {
            link.arg(runtime);
        }
        run(&mut link)?;
        // In one step, for other processes may make the same library now.
        made.persist(&library).map_err(|e| format!("{}: {e}", library.display()))?;
        Ok(library)
    }
}

fn flags(what: What<'_>) -> Vec<OsString> {
    let mut flags: Vec<OsString> = COMMON.iter().map(Into::into).collect();
    // As the device does, kernels fuse products and sums.
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        flags.push("-mfma".into());
    }
    match what {
        What::Runtime => flags.push("-O2".into()),
        What::Kernel { checked, runtime } => {
            flags.extend(KERNEL.iter().map(Into::into));
            let rest: &[&str] = if checked { CHECKED } else { &["-O2"] };
            flags.extend(rest.iter().map(Into::into));
            // The name of the runtime has its hash.
            let mut linked = OsString::from("-DEMU_RUNTIME=");
            linked.push(runtime.file_name().unwrap_or_default());
            flags.push(linked);
        }
    }
    flags
}

fn include(folders: &[PathBuf]) -> Vec<OsString> {
    folders.iter().flat_map(|folder| [OsString::from("-I"), folder.into()]).collect()
}

/// Contents of all sources of a folder (not of its folders), in the order of their names.
fn hash_headers(folder: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "cuh" || e == "hpp" || e == "cpp") {
            files.push(path);
        }
    }
    files.sort();
    for file in files {
        file.hash(hasher);
        fs::read(&file)?.hash(hasher);
    }
    Ok(())
}

fn scratch(extension: &str, text: &str) -> Result<tempfile::NamedTempFile, String> {
    let file = tempfile::Builder::new().suffix(&format!(".{extension}")).tempfile().map_err(|e| e.to_string())?;
    fs::write(file.path(), text).map_err(|e| e.to_string())?;
    Ok(file)
}

fn run(command: &mut Command) -> Result<(), String> {
    let answer = command.output().map_err(|e| e.to_string())?;
    if answer.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&answer.stderr).into_owned()) }
}
