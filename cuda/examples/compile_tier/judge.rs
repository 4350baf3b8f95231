//! What must not be.

use crate::Unit;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use tritter_cuda::cubin::{Arch, Source};
use tritter_runtime::device::Caps;
use tritter_runtime::op::{CudaKernel, Row, Size};

/// Faults that were found, each a line or more.
#[derive(Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    pub(crate) fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Prints them, or that all is well; the verdict.
    pub(crate) fn report(&self, well: &str) -> ExitCode {
        for problem in &self.0 {
            println!("problem: {problem}");
        }
        if self.0.is_empty() {
            println!("{well}");
            ExitCode::SUCCESS
        } else {
            println!("{} problems", self.0.len());
            ExitCode::FAILURE
        }
    }

    /// Compile errors, warnings, and local memory where there must be none.
    pub(crate) fn in_units(&mut self, units: &[Unit]) {
        let hot = hot_entries(Row::all());
        for unit in units {
            let at = format!("{}.cu for {}", unit.source.name, unit.arch);
            let made = match &unit.outcome {
                Ok(made) => made,
                Err(why) => {
                    self.add(format!("{at}: {why}"));
                    continue;
                }
            };
            made.warnings.iter().for_each(|line| self.add(format!("{at}: {line}")));
            for entry in made.entries.iter().filter(|entry| hot.contains(entry.name.as_str())) {
                let (stores, loads) = entry.spills;
                // Without a disassembler a stack is as good as its use.
                let local = entry.counts.map_or(entry.stack, |counts| counts.local);
                if stores + loads + local > 0 {
                    let counted = entry.counts.map(|counts| format!(", {} accesses to local memory", counts.local));
                    self.add(format!(
                        "{at}: `{}` is hot and has {} bytes of stack, {stores} bytes spilled and {loads} reloaded{}",
                        entry.name,
                        entry.stack,
                        counted.unwrap_or_default()
                    ));
                }
            }
        }
    }

    /// Entry points that rows name and files lack, and the other way round.
    pub(crate) fn in_rows(&mut self, units: &[Unit]) {
        let mut compiled: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for unit in units {
            if let Ok(made) = &unit.outcome {
                let names = made.entries.iter().map(|entry| entry.name.as_str());
                compiled.entry(unit.source.name).or_default().extend(names);
            }
        }
        for (file, entries) in &compiled {
            let Some(row) = Row::all().iter().find(|row| row.name == *file) else {
                self.add(format!("{file}.cu belongs to no row"));
                continue;
            };
            self.differences(file, entries, &row.cuda.iter().flat_map(|v| v.entries.iter().copied()).collect());
        }
        for row in Row::all().iter().filter(|row| !row.cuda.is_empty() && Source::named(row.name).is_none()) {
            self.add(format!("row `{}` has CUDA variants and no file", row.name));
        }
    }

    /// Launches that no block has room for: static shared memory, known only now, and dynamic.
    pub(crate) fn in_launches(&mut self, units: &[Unit]) {
        let mut found = BTreeSet::new();
        for unit in units {
            let Some(row) = Row::all().iter().find(|row| row.name == unit.source.name) else { continue };
            let entries = unit.outcome.iter().flat_map(|made| &made.entries);
            let fixed: BTreeMap<&str, u32> = entries.map(|entry| (entry.name.as_str(), entry.shared)).collect();
            for kernel in launches(row, unit.arch) {
                let fixed = fixed.get(kernel.entry).copied().unwrap_or(0);
                if fixed + kernel.shared > SHARED {
                    found.insert((kernel.entry, fixed, kernel.shared));
                }
            }
        }
        for (entry, fixed, dynamic) in found {
            self.add(format!("`{entry}` has {fixed} bytes of static and {dynamic} of dynamic shared memory: too much"));
        }
    }

    fn differences(&mut self, file: &str, in_file: &BTreeSet<&str>, in_row: &BTreeSet<&str>) {
        for entry in in_row.difference(in_file) {
            self.add(format!("row `{file}` names `{entry}`, which {file}.cu lacks"));
        }
        for entry in in_file.difference(in_row) {
            self.add(format!("{file}.cu has `{entry}`, which no variant of the row names"));
        }
    }
}

/// Bytes of shared memory that a block has everywhere (sm_86, sm_89, sm_120).
const SHARED: u32 = 99 << 10;

/// All launches of a row's cases on a card of this architecture.
fn launches(row: &Row, arch: Arch) -> Vec<CudaKernel> {
    let caps = Caps { backend: "cuda", processors: 84, compute: (arch.major, arch.minor), ..Caps::default() };
    let cases =
        [Size::Small, Size::Ragged, Size::Bench].into_iter().flat_map(row.cases).filter(|case| case.fits(&caps));
    let choices = cases.flat_map(|case| case.op.cuda(&case.specs(), &caps));
    choices.flat_map(|choice| choice.launch.kernels).collect()
}

/// Entry points of variants that must not touch local memory.
fn hot_entries(rows: &[Row]) -> BTreeSet<&'static str> {
    let hot = rows.iter().flat_map(|row| row.cuda.iter().filter(|variant| variant.hot));
    hot.flat_map(|variant| variant.entries.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Made;
    use crate::disassembly::Counts;
    use crate::ptxas::Entry;

    fn unit(entries: Vec<Entry>, warnings: Vec<String>) -> Unit {
        let source = Source { name: "rms_norm", text: "" };
        Unit { source, arch: Arch::new(9, 0), outcome: Ok(Made { cubin: Vec::new(), entries, warnings }) }
    }

    /// Problems of a unit with an entry that is hot.
    fn problems(change: impl FnOnce(&mut Entry)) -> Vec<String> {
        let hot = hot_entries(Row::all());
        let name = hot.iter().find(|name| name.starts_with("rms_norm_")).map(|name| name.to_string());
        let mut entry = Entry { name: name.unwrap_or_default(), ..Entry::default() };
        change(&mut entry);
        let mut problems = Problems::default();
        problems.in_units(&[unit(vec![entry], Vec::new())]);
        problems.0
    }

    #[test]
    fn local_memory_in_hot_kernels_is_a_problem() {
        assert_eq!(problems(|_| {}), [""; 0]);
        assert_eq!(problems(|entry| entry.spills = (4, 0)).len(), 1);
        assert_eq!(problems(|entry| entry.stack = 8).len(), 1);
        assert_eq!(problems(|entry| entry.counts = Some(Counts { local: 1, ..Counts::default() })).len(), 1);
        assert_eq!(problems(|entry| *entry = Entry { name: "cold".into(), stack: 8, ..Entry::default() }), [""; 0]);
    }

    #[test]
    fn warnings_and_failures_are_problems() {
        let mut problems = Problems::default();
        problems.in_units(&[unit(Vec::new(), vec!["will be ignored".into()])]);
        let failed = Unit { outcome: Err("rms_norm.cu(3): error".into()), ..unit(Vec::new(), Vec::new()) };
        problems.in_units(&[failed]);
        assert_eq!(problems.0.len(), 2, "{:?}", problems.0);
    }

    #[test]
    fn a_launch_must_have_room_beside_the_static_memory() {
        let entries = |shared| {
            let names = launches(&Row::all()[0], Arch::new(9, 0)).into_iter().map(|kernel| kernel.entry.to_string());
            names.map(|name| Entry { name, shared, ..Entry::default() }).collect::<Vec<_>>()
        };
        let problems = |shared| {
            let source = Source { name: Row::all()[0].name, text: "" };
            let mut problems = Problems::default();
            problems.in_launches(&[Unit { source, ..unit(entries(shared), Vec::new()) }]);
            problems.0.len()
        };
        assert_eq!(problems(0), 0);
        assert!(problems((99 << 10) + 1) > 0);
    }

    #[test]
    fn rows_and_files_must_name_the_same_entries() {
        let mut problems = Problems::default();
        problems.differences("rope", &["a", "b"].into(), &["b", "c"].into());
        assert_eq!(
            problems.0,
            ["row `rope` names `c`, which rope.cu lacks", "rope.cu has `a`, which no variant of the row names"]
        );
    }
}
