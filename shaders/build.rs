//! Lists `wgsl/*.wgsl` and `wgsl/lib/*.wgsl`, sorted by name, into the table
//! `FILES: &[(name, text)]` that `src/lib.rs` includes, so that a new shader
//! needs no Rust edit. A library file is named `lib/<name>`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("wgsl");
    // A directory is watched with all that it holds.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=wgsl");

    let mut names = list(&root, "")?;
    let library = root.join("lib");
    if library.is_dir() {
        names.extend(list(&library, "lib/")?);
    }
    names.sort();

    let mut table = String::from("&[\n");
    for name in &names {
        writeln!(table, "    ({name:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/wgsl/{name}.wgsl\"))),")?;
    }
    table.push_str("]\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("files.rs"), table)?;
    Ok(())
}

/// Names (with `prefix`, without the extension) of the shaders directly in `folder`.
fn list(folder: &Path, prefix: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "wgsl") {
            continue;
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        match stem {
            Some(stem) if is_snake_case(stem) => names.push(format!("{prefix}{stem}")),
            _ => {
                return Err(format!(
                    "{}: a shader's file name is lower-case letters, digits and underscores",
                    path.display()
                )
                .into());
            }
        }
    }
    Ok(names)
}

fn is_snake_case(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
