//! Where the file of streamed layers goes: to a disk, so that it takes none of the memory that it is to save.

use std::path::{Path, PathBuf};

/// The user's cache folder, if it is on a disk; else the system's temporary folders, the first that is. Where none
/// is, the cache folder all the same, and [`in_memory`] says so.
pub fn folder() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || variable("HOME").map(|home| home.join(".cache"));
    let base = if cfg!(windows) { variable("LOCALAPPDATA") } else { variable("XDG_CACHE_HOME").or_else(home) };
    let cache = base.map(|base| base.join("tritter"));
    // What lies in the second one outlives a restart, so it is on a disk by custom.
    let lasting = cfg!(unix).then(|| PathBuf::from("/var/tmp"));
    let all: Vec<PathBuf> = cache.into_iter().chain([std::env::temp_dir()]).chain(lasting).collect();
    choose(all, &in_memory)
}

/// The first folder on a disk, else the first.
fn choose(folders: Vec<PathBuf>, in_memory: &dyn Fn(&Path) -> bool) -> PathBuf {
    let found = folders.iter().find(|folder| !in_memory(folder)).or(folders.first());
    found.cloned().unwrap_or_default()
}

/// Whether files of a folder lie in the memory of the system (tmpfs), which is told on Linux alone. A folder that is
/// to be made counts where it will be.
pub fn in_memory(folder: &Path) -> bool {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else { return false };
    let there = folder.ancestors().find_map(|folder| folder.canonicalize().ok());
    there.is_some_and(|folder| is_mounted_in_memory(&folder, &mounts))
}

/// The same by a list of mounts `device folder type options`; of several at a folder the last one counts.
fn is_mounted_in_memory(folder: &Path, mounts: &str) -> bool {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        // Spaces are written in octal.
        let (at, kind) = (fields.next()?.replace("\\040", " "), fields.next()?);
        let at = PathBuf::from(at);
        folder.starts_with(&at).then(|| (at.components().count(), matches!(kind, "tmpfs" | "ramfs")))
    };
    let innermost = mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth);
    innermost.is_some_and(|(_, memory)| memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\ntmpfs /tmp tmpfs rw,nosuid 0 0\n\
                          /dev/vdb /tmp/disk ext4 rw 0 0\ntmpfs /run/my\\040files tmpfs rw 0 0\n";

    #[test]
    fn the_innermost_mount_tells_what_a_folder_is_on() {
        for (folder, expected) in [
            ("/home/me/.cache", false),
            ("/tmp", true),
            ("/tmp/a/b", true),
            ("/tmpfile", false),
            ("/tmp/disk/a", false),
            ("/run/my files/a", true),
        ] {
            assert_eq!(is_mounted_in_memory(Path::new(folder), MOUNTS), expected, "{folder}");
        }
        assert!(!is_mounted_in_memory(Path::new("/a"), "") && !is_mounted_in_memory(Path::new("/a"), "x\n\n"));
        let twice = "/dev/vda /tmp ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n";
        assert!(is_mounted_in_memory(Path::new("/tmp/a"), twice));
    }

    #[test]
    fn a_folder_on_a_disk_is_preferred() {
        let memory = |folder: &Path| folder.starts_with("/tmp") || folder.starts_with("/dev");
        let chosen = |folders: &[&str]| choose(folders.iter().map(PathBuf::from).collect(), &memory);
        assert_eq!(chosen(&["/home/cache", "/tmp"]), Path::new("/home/cache"));
        assert_eq!(chosen(&["/dev/shm", "/tmp", "/var/tmp"]), Path::new("/var/tmp"));
        assert_eq!(chosen(&["/dev/shm", "/tmp"]), Path::new("/dev/shm"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_of_this_system_is_told_from_its_disks() {
        if std::fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| mounts.contains(" /dev/shm tmpfs ")) {
            assert!(in_memory(Path::new("/dev/shm/a/b")));
        }
        assert!(!in_memory(Path::new("/proc/self")));
    }
}
