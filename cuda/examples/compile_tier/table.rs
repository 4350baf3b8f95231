//! The table of what the compiler made of each entry point.

use crate::Unit;
use crate::ptxas::Entry;
use std::fmt::Write as _;
use tritter_cuda::cubin::Arch;

/// Architectures of the table: sm_86 is left out, its code is nearly that of sm_80.
const SHOWN: &[Arch] = &[Arch::new(8, 0), Arch::new(8, 9), Arch::new(9, 0), Arch::new(12, 0)];

const HEAD: &str = "\
| entry | arch | registers | shared | stack | spilled | reloaded | instructions | LDG.128 | LDGSTS.128 | MMA | local |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
";

/// Its lines, sorted by file, entry and architecture.
pub(crate) struct Table {
    compiler: String,
    counted: bool,
    lines: Vec<String>,
}

impl Table {
    /// Of what was compiled; `counted` if instructions were counted.
    pub(crate) fn new(compiler: &str, counted: bool, units: &[Unit]) -> Table {
        let mut lines: Vec<(&str, &str, Arch, String)> = Vec::new();
        for unit in units.iter().filter(|unit| SHOWN.contains(&unit.arch)) {
            for entry in unit.outcome.iter().flat_map(|made| &made.entries) {
                lines.push((unit.source.name, &entry.name, unit.arch, line(entry, unit.arch)));
            }
        }
        lines.sort();
        let lines = lines.into_iter().map(|(.., line)| line).collect();
        Table { compiler: compiler.into(), counted, lines }
    }

    /// As committed.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("# Kernels as compiled\n\n");
        let _ = write!(
            text,
            "Written by `cargo run --release -p tritter-cuda --example compile_tier -- --write` with {}. Registers of a\n\
             thread; bytes of static shared memory of a block; bytes of stack, spill stores and spill loads of a thread;\n\
             numbers of instructions: all, 16-byte loads from global memory, 16-byte copies from global to shared memory,\n\
             tensor-core instructions, loads and stores of local memory.\n\n",
            self.compiler
        );
        text.push_str(HEAD);
        self.lines.iter().for_each(|line| text.push_str(line));
        text
    }

    /// The first lines that differ from a committed table, as a report; nothing if none does.
    pub(crate) fn differences(&self, committed: &str) -> Vec<String> {
        let known = |line: &str| if self.counted { line.trim_end().to_string() } else { without_counts(line) };
        let old: Vec<String> = committed.lines().filter(|line| line.starts_with("| `")).map(known).collect();
        let new: Vec<String> = self.lines.iter().map(|line| known(line)).collect();
        let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("committed: {line}"));
        let fresh = new.iter().filter(|line| !old.contains(line)).map(|line| format!("compiled:  {line}"));
        gone.chain(fresh).collect()
    }
}

fn line(entry: &Entry, arch: Arch) -> String {
    let Entry { name, registers, shared, stack, spills: (stores, loads), counts } = entry;
    let counts = match counts {
        Some(c) => format!("{} | {} | {} | {} | {}", c.all, c.loads, c.copies, c.tensor, c.local),
        None => "? | ? | ? | ? | ?".into(),
    };
    format!("| `{name}` | {arch} | {registers} | {shared} | {stack} | {stores} | {loads} | {counts} |\n")
}

/// A line without its last five cells.
fn without_counts(line: &str) -> String {
    line.split('|').take(8).collect::<Vec<_>>().join("|").trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Made;
    use crate::disassembly::Counts;
    use tritter_cuda::cubin::Source;

    fn table(counts: Option<Counts>, registers: u32) -> Table {
        let entry = Entry { name: "rope_f32".into(), registers, counts, ..Entry::default() };
        let made = |arch| Unit {
            source: Source { name: "rope", text: "" },
            arch,
            outcome: Ok(Made { cubin: Vec::new(), entries: vec![entry.clone()], warnings: Vec::new() }),
        };
        let units = [made(Arch::new(8, 0)), made(Arch::new(8, 6)), made(Arch::new(12, 0))];
        Table::new("NVRTC 12.9", counts.is_some(), &units)
    }

    #[test]
    fn a_line_for_each_entry_and_architecture() {
        let text = table(Some(Counts { loads: 4, ..Counts::default() }), 20).text();
        assert!(text.contains("| `rope_f32` | sm_80 | 20 | 0 | 0 | 0 | 0 | 0 | 4 | 0 | 0 | 0 |\n"), "{text}");
        assert!(text.contains("sm_120") && !text.contains("| sm_86"), "{text}");
    }

    #[test]
    fn differences_are_shown_and_counts_only_where_they_are_known() {
        let committed = table(Some(Counts { loads: 4, ..Counts::default() }), 20).text();
        let differ = |table: Table| table.differences(&committed).len();
        assert_eq!(differ(table(Some(Counts { loads: 4, ..Counts::default() }), 20)), 0);
        assert_eq!(differ(table(Some(Counts { loads: 5, ..Counts::default() }), 20)), 4);
        assert_eq!(differ(table(None, 20)), 0);
        assert_eq!(differ(table(None, 21)), 4);
    }
}
