//! The files that are committed: archives and table.

use crate::Unit;
use crate::judge::Problems;
use crate::table::Table;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;
use tritter_cuda::cubin::{Arch, Archive, READY, Source};

const AGAIN: &str = "run this with --write and commit what it writes";

/// Differences of the table that are shown at most.
const SHOWN: usize = 20;

/// Where they lie.
pub(crate) struct Committed {
    cubins: PathBuf,
    table: PathBuf,
}

impl Committed {
    /// In the checkout that this was built of.
    pub(crate) fn here() -> Committed {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        Committed { cubins: root.join("cubins"), table: root.join("kernels").join("TABLE.md") }
    }

    fn archive(&self, arch: Arch) -> PathBuf {
        self.cubins.join(format!("{arch}.bin"))
    }

    /// Writes all. Nothing failed to compile.
    pub(crate) fn write(&self, compiler: &str, units: &[Unit], table: &Table) -> Result<()> {
        let put = |path: &PathBuf, bytes: &[u8]| {
            println!("{}: {} bytes", path.display(), bytes.len());
            fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
        };
        fs::create_dir_all(&self.cubins)?;
        for &arch in READY {
            let cubins: Vec<(&str, u64, &[u8])> = made(units, arch).collect();
            put(&self.archive(arch), &Archive::write(arch, compiler, &cubins))?;
        }
        put(&self.table, table.text().as_bytes())
    }

    /// Adds what is committed otherwise than it was compiled now.
    pub(crate) fn check(&self, compiler: &str, units: &[Unit], table: &Table, problems: &mut Problems) {
        for archive in self.archives(problems) {
            self.check_archive(&archive, compiler, units, problems);
        }
        let committed = fs::read_to_string(&self.table).unwrap_or_default();
        let differences = table.differences(&committed);
        differences.iter().take(SHOWN).for_each(|line| println!("{line}"));
        if !differences.is_empty() {
            problems.add(format!("{} differs in {} lines; {AGAIN}", self.table.display(), differences.len()));
        }
    }

    /// Adds files whose ready cubins are not of the sources in this executable.
    pub(crate) fn check_hashes(&self, problems: &mut Problems) {
        for archive in self.archives(problems) {
            let name = self.archive(archive.arch);
            for source in Source::all().filter(|source| archive.find(source.name, source.hash()).is_none()) {
                problems.add(format!("{} has no cubin of {}.cu as it is now; {AGAIN}", name.display(), source.name));
            }
        }
    }

    /// The archives that can be read.
    fn archives(&self, problems: &mut Problems) -> Vec<Archive> {
        let mut archives = Vec::new();
        for &arch in READY {
            let path = self.archive(arch);
            let read = fs::read(&path).map_err(|e| e.to_string());
            // Leaked: an archive borrows its bytes for good, as those in the executable do.
            match read.and_then(|bytes| Archive::parse(Vec::leak(bytes))) {
                Ok(archive) => archives.push(archive),
                Err(why) => problems.add(format!("{}: {why}; {AGAIN}", path.display())),
            }
        }
        archives
    }

    fn check_archive(&self, archive: &Archive, compiler: &str, units: &[Unit], problems: &mut Problems) {
        let name = self.archive(archive.arch);
        let name = name.display();
        for (file, hash, cubin) in made(units, archive.arch) {
            match archive.find(file, hash).map(|entry| entry.unpack()) {
                None => problems.add(format!("{name} has no cubin of {file}.cu as it is now; {AGAIN}")),
                Some(Err(why)) => problems.add(format!("{name}: {why}")),
                // Equal inputs give equal cubins, but only from one and the same compiler.
                Some(Ok(ready)) if archive.compiler == compiler && ready != cubin => {
                    problems.add(format!("{name}: {file}.cu of the same sources is another cubin than compiled now"));
                }
                Some(Ok(_)) => {}
            }
        }
        let files: Vec<&str> = made(units, archive.arch).map(|(name, ..)| name).collect();
        for entry in archive.entries().iter().filter(|entry| !files.contains(&entry.name)) {
            problems.add(format!("{name} has {}, which is no file any more", entry.name));
        }
    }
}

/// Name, source hash and cubin of all files for an architecture.
fn made(units: &[Unit], arch: Arch) -> impl Iterator<Item = (&'static str, u64, &[u8])> {
    let units = units.iter().filter(move |unit| unit.arch == arch);
    units.filter_map(|unit| {
        let made = unit.outcome.as_ref().ok()?;
        Some((unit.source.name, unit.source.hash(), made.cubin.as_slice()))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Made;

    fn units(cubin: &[u8]) -> Vec<Unit> {
        let made = |arch| Unit {
            source: Source { name: "rope", text: "text" },
            arch,
            outcome: Ok(Made { cubin: cubin.to_vec(), entries: Vec::new(), warnings: Vec::new() }),
        };
        READY.iter().map(|&arch| made(arch)).collect()
    }

    #[test]
    fn what_was_written_passes_and_anything_else_does_not() {
        let folder = tempfile::TempDir::new().unwrap();
        let here = Committed { cubins: folder.path().join("cubins"), table: folder.path().join("TABLE.md") };
        let table = |units: &[Unit]| Table::new("NVRTC 12.9", true, units);
        let passes = |compiler: &str, units: &[Unit]| {
            let mut problems = Problems::default();
            here.check(compiler, units, &table(units), &mut problems);
            problems.is_empty()
        };
        let first = units(b"first");
        assert!(!passes("NVRTC 12.9", &first), "nothing is written");
        here.write("NVRTC 12.9", &first, &table(&first)).unwrap();
        assert!(passes("NVRTC 12.9", &first));
        assert!(!passes("NVRTC 12.9", &units(b"second")), "another cubin");
        assert!(passes("NVRTC 13.0", &units(b"second")), "another compiler's cubins are not compared");
        let mut changed = units(b"first");
        changed.iter_mut().for_each(|unit| unit.source.text = "other text");
        assert!(!passes("NVRTC 12.9", &changed), "other sources");
        assert!(!passes("NVRTC 12.9", &[]), "a file that is gone");
        fs::write(here.archive(READY[0]), b"TRITCUB1").unwrap();
        assert!(!passes("NVRTC 12.9", &first), "a damaged archive");
    }
}
