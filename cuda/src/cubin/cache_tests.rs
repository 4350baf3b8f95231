#![allow(clippy::unwrap_used)]
use super::*;
use tempfile::TempDir;

const KEY: Key<'static> = Key { name: "rms_norm", hash: 7, arch: Arch::new(9, 0), compiler: Some("NVRTC 12.9") };
const ANY: Key<'static> = Key { compiler: None, ..KEY };

fn cache(limit: u64) -> (TempDir, Cache) {
    let folder = TempDir::new().unwrap();
    let cache = Cache::at(folder.path().join("a").join("b"), limit);
    (folder, cache)
}

fn only_file(cache: &Cache) -> PathBuf {
    let entries = cache.entries();
    assert_eq!(entries.len(), 1);
    entries[0].path.clone()
}

#[test]
fn what_was_put_is_got_for_its_key_alone() {
    let (_folder, cache) = cache(Cache::LARGEST);
    assert_eq!(cache.get(&KEY), None);
    cache.put(&KEY, b"image");
    assert_eq!(cache.get(&KEY).unwrap(), b"image");
    assert_eq!(cache.get(&ANY).unwrap(), b"image");
    let others = [
        Key { name: "rms", ..KEY },
        Key { hash: 8, ..KEY },
        Key { arch: Arch::new(8, 9), ..KEY },
        Key { compiler: Some("NVRTC 13.0"), ..KEY },
    ];
    for other in others {
        assert_eq!(cache.get(&other), None, "{other:?}");
    }
    cache.put(&KEY, b"newer");
    assert_eq!(cache.get(&KEY).unwrap(), b"newer");
    only_file(&cache);
}

#[test]
fn any_compiler_means_the_newest_whole_entry() {
    let (_folder, cache) = cache(Cache::LARGEST);
    cache.put(&KEY, b"old");
    let old = only_file(&cache);
    cache.put(&Key { compiler: Some("NVRTC 13.0"), ..KEY }, b"new");
    let hour = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(hour).unwrap();
    assert_eq!(cache.get(&ANY).unwrap(), b"new");
    let new = cache.entries().into_iter().find(|e| e.path != old).unwrap().path;
    fs::write(new, b"TRITKEY1").unwrap();
    assert_eq!(cache.get(&ANY).unwrap(), b"old");
}

#[test]
fn damaged_entries_are_refused_and_replaced() {
    let (_folder, cache) = cache(Cache::LARGEST);
    cache.put(&KEY, b"image");
    let path = only_file(&cache);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(cache.get(&KEY), None, "cut to {length}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        fs::write(&path, bytes).unwrap();
        assert_eq!(cache.get(&KEY), None, "flipped at {at}");
        assert_eq!(cache.get(&ANY), None, "flipped at {at}");
    }
    fs::write(&path, b"").unwrap();
    cache.put(&KEY, b"image");
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn an_entry_under_a_foreign_name_is_refused() {
    let (_folder, cache) = cache(Cache::LARGEST);
    let other = Key { hash: 8, ..KEY };
    cache.put(&other, b"other");
    fs::rename(only_file(&cache), cache.path(&KEY, "NVRTC 12.9")).unwrap();
    assert_eq!(cache.get(&KEY), None);
    assert_eq!(cache.get(&ANY), None);
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let cache = Cache::at(file.join("below"), Cache::LARGEST);
    cache.put(&KEY, b"image");
    assert_eq!(cache.get(&KEY), None);
    assert_eq!(cache.get(&ANY), None);
}

#[test]
fn writers_and_readers_at_once_see_whole_entries() {
    let (_folder, cache) = cache(Cache::LARGEST);
    let image = |writer: u8| vec![writer; 100_000 + usize::from(writer)];
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let cache = &cache;
            scope.spawn(move || (0..20).for_each(|_| cache.put(&KEY, &image(writer))));
        }
        for _ in 0..200 {
            if let Some(found) = cache.get(&KEY) {
                assert_eq!(found, image(found[0]));
            }
        }
    });
    assert!(cache.get(&KEY).is_some());
    only_file(&cache);
}

#[test]
fn the_oldest_entries_make_room() {
    let (_folder, cache) = cache(2500);
    let key = |hash| Key { hash, ..KEY };
    for hash in 0..4 {
        cache.put(&key(hash), &[0; 900]);
        // File times may be coarse; the order of age is made plain.
        let path = cache.path(&key(hash), "NVRTC 12.9");
        let then = SystemTime::now() - Duration::from_secs(100 - hash);
        fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
    }
    cache.put(&key(4), &[0; 900]);
    let kept: Vec<bool> = (0..5).map(|hash| cache.get(&key(hash)).is_some()).collect();
    assert_eq!(kept, [false, false, false, true, true]);
    cache.put(&key(5), &[0; 9000]);
    assert!(cache.get(&key(5)).is_some(), "the newest stays, however large");
}

#[test]
fn abandoned_parts_are_removed_and_fresh_ones_kept() {
    let (_folder, cache) = cache(Cache::LARGEST);
    cache.put(&KEY, b"image");
    let (fresh, old) = (cache.folder.join("x.1-0.part"), cache.folder.join("x.2-0.part"));
    fs::write(&fresh, b"").unwrap();
    fs::write(&old, b"").unwrap();
    let then = SystemTime::now() - 2 * ABANDONED;
    fs::File::options().write(true).open(&old).unwrap().set_modified(then).unwrap();
    cache.put(&KEY, b"image");
    assert!(fresh.exists() && !old.exists());
}

#[test]
fn the_folder_is_the_users_cache() {
    let set = |found: &'static [(&str, &str)]| {
        move |name: &str| found.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
    };
    if cfg!(windows) {
        return;
    }
    assert_eq!(folder(set(&[("HOME", "/h")])), Some("/h/.cache/tritter/cubin".into()));
    assert_eq!(folder(set(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")])), Some("/c/tritter/cubin".into()));
    assert_eq!(folder(set(&[("HOME", "/h"), ("XDG_CACHE_HOME", "relative")])), Some("/h/.cache/tritter/cubin".into()));
    assert_eq!(folder(set(&[])), None);
}
