//! Memory that saving and loading a prompt's cache takes beside the cache itself. A test binary of its own, because
//! allocations are counted for the whole process.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout as Wanted, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use tritter_model::cache::{CacheFormat, CacheKind};
use tritter_model::cache_file::{Prompt, load, save};
use tritter_model::config::Family;
use tritter_model::presets::preset;
use tritter_model::programs::Layout;
use tritter_model::session::{Session, SessionPlan};
use tritter_model::weights::{Form, Model};
use tritter_runtime::cpu;

/// Bytes in use, and the most there were.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Wanted) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Wanted) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes in use while something runs, beyond those before it.
fn taken<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = IN_USE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = run();
    (result, MOST.load(Ordering::Relaxed) - before)
}

#[test]
fn a_long_cache_goes_to_a_file_and_back_in_pieces() {
    const TOKENS: usize = 32 << 10;
    let mut config = preset("test").unwrap().config(Family::Llama, Some(64), Some(TOKENS));
    (config.hidden_size, config.intermediate_size, config.num_layers) = (64, 64, 4);
    (config.num_heads, config.num_kv_heads, config.head_dim) = (4, 4, 64);
    let model = Model::new(&config, Form::Run, TOKENS);
    let folder = tempfile::tempdir().unwrap();
    for kind in [CacheKind::F16, CacheKind::Int4] {
        let path = folder.path().join("prompt.cache");
        let open = || -> Session {
            let layout = Layout::single(TOKENS, CacheFormat::from(kind));
            SessionPlan::with(&model, layout).unwrap().open(&cpu::open()).unwrap()
        };
        let (mut first, mut second) = (open(), open());
        first.fill(0, TOKENS - 3, 1).unwrap();
        let prompt = Prompt { ids: vec![7; TOKENS - 3], conversation: None };
        let ((), saving) = taken(|| save(&path, &first, 0, &prompt, 1).unwrap());
        let (loaded, loading) = taken(|| load(&path, &mut second, 0, 1).unwrap());
        assert_eq!(loaded, prompt);
        let file = std::fs::metadata(&path).unwrap().len();
        println!("{}: a file of {file} bytes, {saving} taken to save it and {loading} to load it", kind.name());
        assert!(file > 30 << 20, "the file is too small to tell");
        // A few pieces of 4 MiB, ids and the writer's buffer.
        assert!(saving < 12 << 20 && loading < 4 << 20, "{saving} and {loading} bytes");
    }
}
