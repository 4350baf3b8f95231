//! Memory that a container leaves to this process: what its control groups allow, less what they hold.
//!
//! The system's own figure of available memory does not know of these limits, and who goes beyond them is ended.

use std::path::{Path, PathBuf};

/// Bytes that the control groups of this process have room for; `None` where none of them limits memory.
pub(super) fn room() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    room_of(&read(Path::new("/proc/self/cgroup"))?, &read)
}

/// Where the files of groups lie.
const FOLDER: &str = "/sys/fs/cgroup";

/// The same of a list `id:controllers:path`, one group a line, and what reads a file.
fn room_of(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    groups.lines().flat_map(levels).filter_map(|(group, names)| names.room(&group, read)).min()
}

/// Files of a group, by version.
struct Names {
    limit: &'static str,
    used: &'static str,
    /// Lines of `memory.stat` with pages of files, which the system takes back when it needs them.
    files: [&'static str; 2],
}

const FIRST: &Names = &Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    files: ["total_inactive_file", "total_active_file"],
};
const SECOND: &Names = &Names { limit: "memory.max", used: "memory.current", files: ["inactive_file", "active_file"] };

/// Folders of a group and all above it: the limit of each holds. What the list calls a path may begin above what
/// this process can see; then only the last folder is there.
fn levels(line: &str) -> Vec<(PathBuf, &'static Names)> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let folder = Path::new(FOLDER);
    let (roots, names) = match controllers {
        "" => (vec![folder.to_path_buf(), folder.join("unified")], SECOND),
        _ if controllers.split(',').any(|name| name == "memory") => (vec![folder.join("memory")], FIRST),
        _ => return Vec::new(),
    };
    let path = Path::new(path.trim_start_matches('/'));
    let above = |root: PathBuf| path.ancestors().map(move |part| (root.join(part), names)).collect::<Vec<_>>();
    roots.into_iter().flat_map(above).collect()
}

impl Names {
    fn room(&self, group: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
        let number = |name: &str| read(&group.join(name))?.trim().parse::<u64>().ok();
        // Without a limit the first version says a number near 2^63, and the second says `max`.
        let limit = number(self.limit).filter(|&limit| limit < 1 << 60)?;
        let stat = read(&group.join("memory.stat")).unwrap_or_default();
        let line = |line: &str| {
            let (name, bytes) = line.split_once(' ')?;
            self.files.contains(&name).then(|| bytes.trim().parse().unwrap_or(0))
        };
        let files: u64 = stat.lines().filter_map(line).sum();
        Some(limit.saturating_sub(number(self.used)?.saturating_sub(files)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The room that files below [`FOLDER`] leave.
    fn room(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let read = |path: &Path| {
            let name = path.strip_prefix(FOLDER).ok()?.to_str()?;
            files.iter().find(|(file, _)| *file == name).map(|(_, text)| (*text).to_owned())
        };
        room_of(groups, &read)
    }

    #[test]
    fn the_tightest_limit_above_a_process_counts_and_pages_of_files_do_not() {
        let outer = [
            ("outer/memory.max", "1000\n"),
            ("outer/memory.current", "600\n"),
            ("outer/memory.stat", "anon 5\ninactive_file 100\nactive_file 50\nfile 170\n"),
            ("outer/inner/memory.current", "9\n"),
        ];
        let with = |inner: &'static str| [&outer[..], &[("outer/inner/memory.max", inner)]].concat();
        assert_eq!(room("0::/outer/inner\n", &with("max\n")), Some(1000 - (600 - 150)));
        assert_eq!(room("0::/outer/inner\n", &with("30\n")), Some(21));
        // A path that begins above what can be seen.
        let root = [("memory.max", "500"), ("memory.current", "700")];
        assert_eq!(room("0::/elsewhere/this", &root), Some(0));
    }

    #[test]
    fn both_versions_are_read_and_no_limit_is_none() {
        let files = |limit: &'static str| {
            let stat = "inactive_file 1\ntotal_inactive_file 20\ntotal_active_file 3\n";
            [
                ("memory/a/memory.limit_in_bytes", limit),
                ("memory/a/memory.usage_in_bytes", "77"),
                ("memory/a/memory.stat", stat),
            ]
        };
        let list = "9:name=systemd:/\n4:memory:/a\n0::/\n";
        assert_eq!(room(list, &files("9223372036854771712")), None);
        assert_eq!(room(list, &files("100")), Some(100 - (77 - 23)));
        for broken in ["", "4", "4:memory", "x:y:z\n::\n"] {
            assert_eq!(room(broken, &files("100")), None, "{broken}");
        }
    }
}
