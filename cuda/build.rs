//! Writes the table of kernel sources, headers and ready cubins, so that a new file needs no other edit.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let mut code = String::new();
    list(&mut code, "KERNELS", "(&str, &str)", &root.join("kernels"), "cu", |stem, path| {
        format!("({stem:?}, include_str!({path:?}))")
    })?;
    list(&mut code, "HEADERS", "(&str, &str)", &root.join("kernels/include"), "cuh", |stem, path| {
        format!("({:?}, include_str!({path:?}))", format!("{stem}.cuh"))
    })?;
    list(&mut code, "ARCHIVES", "&[u8]", &root.join("cubins"), "bin", |_, path| format!("include_bytes!({path:?})"))?;
    fs::write(Path::new(&variable("OUT_DIR")?).join("embedded.rs"), code)
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(|e| io::Error::other(format!("{name}: {e}")))
}

/// A constant with one element for each file of `folder` that ends in `.extension`, sorted.
fn list(
    code: &mut String,
    name: &str,
    element: &str,
    folder: &Path,
    extension: &str,
    line: impl Fn(&str, &str) -> String,
) -> io::Result<()> {
    // Cargo looks at the whole folder, so that added and removed files count.
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    let _ = writeln!(code, "pub(super) const {name}: &[{element}] = &[");
    for path in files {
        let text = |part: Option<&std::ffi::OsStr>| part.and_then(|p| p.to_str()).map(str::to_string);
        let (Some(stem), Some(path)) = (text(path.file_stem()), text(Some(path.as_os_str()))) else {
            return Err(io::Error::other(format!("{} is not UTF-8", path.display())));
        };
        let _ = writeln!(code, "    {},", line(&stem, &path));
    }
    code.push_str("];\n");
    Ok(())
}
