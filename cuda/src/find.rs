//! Where NVIDIA's libraries may lie: the toolkit, the loader's path, and the wheels of `pip`.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// A library by its names.
pub(crate) struct Wanted {
    /// Names for the system's loader.
    names: &'static [&'static str],
    /// What files begin with: version 12 before 13, which fewer drivers load code of.
    beginnings: &'static [&'static str],
    /// Folders of wheels in `site-packages`.
    wheels: &'static [&'static str],
}

/// NVRTC.
#[cfg(windows)]
pub(crate) const NVRTC: Wanted = Wanted {
    names: &["nvrtc64_120_0.dll", "nvrtc64_130_0.dll"],
    beginnings: &["nvrtc64_12", "nvrtc64_13"],
    wheels: &["nvidia/cuda_nvrtc/bin", "nvidia/cu13/bin/x86_64", "nvidia/cu13/bin"],
};
/// NVRTC.
#[cfg(not(windows))]
pub(crate) const NVRTC: Wanted = Wanted {
    names: &["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"],
    beginnings: &["libnvrtc.so.12", "libnvrtc.so.13"],
    wheels: &["nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"],
};

/// cuBLAS.
#[cfg(windows)]
pub(crate) const CUBLAS: Wanted = Wanted {
    names: &["cublas64_12.dll", "cublas64_13.dll"],
    beginnings: &["cublas64_12", "cublas64_13"],
    wheels: &["nvidia/cublas/bin", "nvidia/cu13/bin/x86_64", "nvidia/cu13/bin"],
};
/// cuBLAS.
#[cfg(not(windows))]
pub(crate) const CUBLAS: Wanted = Wanted {
    names: &["libcublas.so.12", "libcublas.so.13", "libcublas.so"],
    beginnings: &["libcublas.so.12", "libcublas.so.13"],
    wheels: &["nvidia/cublas/lib", "nvidia/cu13/lib"],
};

/// Library folders of a toolkit or a conda environment.
#[cfg(windows)]
const TOOLKIT: &[&str] = &["bin", "bin/x64"];
#[cfg(not(windows))]
const TOOLKIT: &[&str] = &["lib64", "lib"];

/// Libraries to try, best first. Those named in full exist; bare names are the loader's business.
pub(crate) fn candidates(wanted: &Wanted, variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut found = Vec::new();
    for root in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable) {
        TOOLKIT.iter().for_each(|part| found.extend(libraries(wanted, &root.join(part))));
    }
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable) {
        TOOLKIT.iter().for_each(|part| found.extend(libraries(wanted, &root.join(part))));
        found.extend(in_pythons_of(wanted, &root));
    }
    found.extend(wanted.names.iter().map(PathBuf::from));
    if cfg!(windows) {
        let programs = variable("ProgramFiles").unwrap_or_else(|| r"C:\Program Files".into());
        for toolkit in matching(&programs.join("NVIDIA GPU Computing Toolkit").join("CUDA"), "v") {
            TOOLKIT.iter().for_each(|part| found.extend(libraries(wanted, &toolkit.join(part))));
        }
        return found;
    }
    for toolkit in matching(Path::new("/usr/local"), "cuda") {
        TOOLKIT.iter().for_each(|part| found.extend(libraries(wanted, &toolkit.join(part))));
    }
    let home = variable("HOME").map(|home| home.join(".local"));
    for root in home.into_iter().chain(["/usr".into(), "/usr/local".into()]) {
        found.extend(in_pythons_of(wanted, &root));
    }
    found
}

/// Libraries of wheels under a prefix, of all its Pythons.
fn in_pythons_of(wanted: &Wanted, root: &Path) -> Vec<PathBuf> {
    let mut pythons = vec![root.join("Lib")];
    pythons.extend(matching(&root.join("lib"), "python3"));
    let sites = pythons.iter().flat_map(|p| ["site-packages", "dist-packages"].map(|site| p.join(site)));
    sites
        .flat_map(|site| {
            wanted.wheels.iter().flat_map(move |part| libraries(wanted, &site.join(part))).collect::<Vec<_>>()
        })
        .collect()
}

/// Entries of a folder that begin so, the newest version first.
fn matching(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut names: Vec<OsString> = names.filter(|name| name.to_string_lossy().starts_with(beginning)).collect();
    names.sort_by_key(|name| Reverse(numbers(&name.to_string_lossy())));
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// The library's files in a folder, the best version first.
fn libraries(wanted: &Wanted, folder: &Path) -> Vec<PathBuf> {
    let library = |path: &PathBuf| path.to_str().is_some_and(|p| !p.contains(".alt."));
    wanted.beginnings.iter().filter_map(|beginning| matching(folder, beginning).into_iter().find(library)).collect()
}

/// Libraries beside NVRTC that it loads by name: its built-in functions.
pub(crate) fn builtins(library: &Path) -> Vec<PathBuf> {
    let Some(folder) = library.parent().filter(|folder| folder.is_absolute()) else { return Vec::new() };
    let beginning = if cfg!(windows) { "nvrtc-builtins64_" } else { "libnvrtc-builtins.so." };
    matching(folder, beginning)
}

/// The numbers in a name, for comparing versions.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tempfile::TempDir;

    fn touch(root: &TempDir, files: &[&str]) {
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
    }

    /// What is found under `root` when one variable names it.
    fn found(root: &TempDir, name: &str) -> Vec<String> {
        let paths = candidates(&NVRTC, |asked| (asked == name).then(|| root.path().into()));
        let inside = paths.iter().filter_map(|path| path.strip_prefix(root.path()).ok());
        inside.map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_loader_is_asked_by_name() {
        let names = candidates(&NVRTC, |_| None);
        assert!(names.contains(&PathBuf::from("libnvrtc.so.12")), "{names:?}");
    }

    #[test]
    fn toolkits_and_wheels_are_found() {
        let root = TempDir::new().unwrap();
        let (twelve, thirteen) = ("lib64/libnvrtc.so.12.9.86", "lib64/libnvrtc.so.13");
        let wheel = "lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
        let newer = "lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13";
        let others = ["lib64/libnvrtc-builtins.so.12.9", "lib64/libnvrtc.alt.so.12", "lib64/libnvrtc_static.a"];
        touch(&root, &[twelve, thirteen, wheel, newer]);
        touch(&root, &others);
        assert_eq!(found(&root, "CUDA_HOME"), [twelve, thirteen]);
        assert_eq!(found(&root, "VIRTUAL_ENV"), [twelve, thirteen, newer, wheel]);
        let beside = builtins(&root.path().join(twelve));
        assert_eq!(beside, [root.path().join(others[0])]);
        assert!(builtins(Path::new("libnvrtc.so.12")).is_empty());
    }

    #[test]
    fn an_empty_variable_is_none_and_versions_compare_as_numbers() {
        assert!(candidates(&NVRTC, |_| Some("".into())).iter().all(|path| !path.as_os_str().is_empty()));
        let root = TempDir::new().unwrap();
        touch(&root, &["cuda-12.9/x", "cuda-12.10/x", "cuda/x", "other/x"]);
        let names = matching(root.path(), "cuda");
        let names: Vec<_> = names.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["cuda-12.10", "cuda-12.9", "cuda"]);
    }
}
