//! What `ptxas -v` says of each entry point.

use crate::disassembly::Counts;

/// One entry point for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) registers: u32,
    /// Bytes of static shared memory.
    pub(crate) shared: u32,
    /// Bytes of stack for each thread.
    pub(crate) stack: u32,
    /// Bytes spilled: stored and loaded.
    pub(crate) spills: (u32, u32),
    /// Instructions, if there was a disassembler.
    pub(crate) counts: Option<Counts>,
}

/// The entries of a log by name, and the lines that warn.
pub(crate) fn read(log: &str) -> (Vec<Entry>, Vec<String>) {
    let mut entries: Vec<Entry> = Vec::new();
    let mut warnings = Vec::new();
    // Functions that are called and not inlined have properties too; they are not entries.
    let mut about_entry = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_string();
            entries.push(Entry { name, ..Entry::default() });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            about_entry = entries.last().is_some_and(|entry| entry.name == name.trim());
        } else if let Some(entry) = entries.last_mut().filter(|_| line.contains("bytes stack frame")) {
            let [stack, stores, loads] = ["bytes stack frame", "bytes spill stores", "bytes spill loads"]
                .map(|unit| number_before(line, unit).unwrap_or(0));
            // A called function's spills are its caller's, too.
            entry.spills = (entry.spills.0 + stores, entry.spills.1 + loads);
            entry.stack = if about_entry { entry.stack + stack } else { entry.stack.max(stack) };
        } else if let Some(entry) = entries.last_mut().filter(|_| line.contains("Used ")) {
            entry.registers = number_before(line, "registers").unwrap_or(0);
            entry.shared = number_before(line, "bytes smem").unwrap_or(0);
        }
        let lower = line.to_ascii_lowercase();
        if lower.contains("warning") || lower.contains("ignored") {
            warnings.push(line.trim().to_string());
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    (entries, warnings)
}

/// The number that stands before a unit.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'rope_f32' for 'sm_80'
ptxas info    : Function properties for rope_f32
ptxas         .     40 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 20 registers, used 1 barriers, 40 bytes cumulative stack size, 128 bytes smem, 392 bytes cmem[0]
ptxas info    : Compile time = 35.966 ms
ptxas info    : Compiling entry function 'rope_bf16' for 'sm_80'
ptxas info    : Function properties for helper
ptxas         .     0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for rope_bf16
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, 392 bytes cmem[0]
ptxas warning : Value of threads per SM for entry rope_bf16 is out of range. .minnctapersm will be ignored
";

    #[test]
    fn entries_and_warnings_are_read() {
        let (entries, warnings) = read(LOG);
        assert_eq!(entries.len(), 2);
        let (bf16, f32) = (&entries[0], &entries[1]);
        assert_eq!((bf16.name.as_str(), bf16.registers, bf16.shared, bf16.spills), ("rope_bf16", 16, 0, (4, 0)));
        assert_eq!((f32.name.as_str(), f32.registers, f32.shared), ("rope_f32", 20, 128));
        assert_eq!((f32.stack, f32.spills), (40, (12, 16)));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("minnctapersm"));
    }
}
