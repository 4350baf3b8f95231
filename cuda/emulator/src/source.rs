//! Kernel sources: where they are, which entry points they have, and the wrapper behind which the
//! host compiler sees them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Bytes of dynamic shared memory that a launch can have (`EMU_SHARED_MAX` of emulated.cuh).
pub(crate) const SHARED_MAX: u32 = 99 << 10;

/// Folder of the backend's kernels.
pub(crate) fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels")
}

/// Folder of the emulator's own C++.
pub(crate) fn runtime() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp")
}

/// Where a kernel's includes are searched.
pub(crate) fn include_folders(kernels: &Path) -> Vec<PathBuf> {
    let own = kernels.join("include");
    let mut folders = if own.is_dir() { vec![own] } else { Vec::new() };
    let shared = self::kernels().join("include");
    if !folders.contains(&shared) {
        folders.push(shared);
    }
    folders.push(runtime());
    folders
}

/// An entry point as the text shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// What stands in `__launch_bounds__(..)`; empty without.
    pub(crate) bounds: String,
}

/// Entry points: `__global__ void [__launch_bounds__(..)] name(`, in any order of the two in between.
pub(crate) fn entries(text: &str) -> Vec<Entry> {
    let text = without_comments(text);
    let mut found = Vec::new();
    for part in text.split("__global__").skip(1) {
        let (mut rest, mut bounds) = (part, String::new());
        while let Some(open) = rest.find('(') {
            let Some(word) = rest[..open].split_whitespace().last() else { break };
            if word != "__launch_bounds__" {
                found.push(Entry { name: word.into(), bounds });
                break;
            }
            let Some(close) = closing(&rest[open..]) else { break };
            bounds = rest[open + 1..open + close].trim().into();
            rest = &rest[open + close + 1..];
        }
    }
    found
}

/// The translation unit that is compiled for a kernel file.
pub(crate) fn wrapper(file: &Path, text: &str) -> String {
    let mut wrapper = format!("#include \"{}\"\n\n", file.display());
    wrapper.push_str("extern \"C\" __attribute__((visibility(\"default\"))) const EmuEntry emu_entries[] = {\n");
    for entry in entries(text) {
        let bounds = if entry.bounds.is_empty() { String::new() } else { format!(", {}", entry.bounds) };
        let _ = writeln!(wrapper, "    EMU_ENTRY({}{bounds}),", entry.name);
    }
    wrapper.push_str("    {0, 0, 0, 0, 0},\n};\n");
    // The hash of compiled libraries covers this text, so it covers the kernel, too.
    for line in text.lines() {
        let _ = writeln!(wrapper, "//{}", line.trim_end_matches('\\'));
    }
    wrapper
}

fn without_comments(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        plain.push_str(&rest[..start]);
        let (end, skip) = if rest[start..].starts_with("//") { ("\n", 0) } else { ("*/", 2) };
        rest = rest[start..].find(end).map_or("", |at| &rest[start + at + skip..]);
    }
    plain.push_str(rest);
    plain
}

/// Position of the parenthesis that closes the one at the start.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(i, c)| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        (depth == 0).then_some(i)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_with_and_without_bounds_and_not_in_comments() {
        let text = "extern \"C\" __global__ void __launch_bounds__(2 * (64), 2)\n    one(P p, float* x) {}\n\
                    // __global__ void no(P p)\n/* __global__ void never( */\n\
                    extern \"C\" __global__ void two(P p, int* y) { f(y); }\n";
        let entry = |name: &str, bounds: &str| Entry { name: name.into(), bounds: bounds.into() };
        assert_eq!(entries(text), [entry("one", "2 * (64), 2"), entry("two", "")]);
    }
}
