#![allow(clippy::unwrap_used)]
use super::*;
use tempfile::TempDir;

const HOPPER: Arch = Arch::new(9, 0);
const ROW: &str = "rms_norm";

fn hash() -> u64 {
    Source::named(ROW).unwrap().hash()
}

fn archive(arch: Arch, cubins: &[(&str, u64, &[u8])]) -> Archive {
    Archive::parse(Vec::leak(Archive::write(arch, "NVRTC 12.9", cubins))).unwrap()
}

/// Without a compiler, so that what is tested does not depend on the machine.
fn supply(arch: Arch, archives: &[Archive], cache: Option<Cache>) -> Supply {
    let supply = Supply::of(arch, (12, 9), archives, cache);
    let _ = supply.nvrtc.set(Err("NVRTC is not installed".into()));
    supply
}

fn first(supply: &Supply) -> Outcome<Vec<u8>> {
    supply.load(ROW, |image| Ok(image.0.clone()))
}

#[test]
fn ready_kernels_of_the_nearest_architecture_come_first() {
    let archives = [
        archive(Arch::new(8, 0), &[(ROW, hash(), b"80")]),
        archive(Arch::new(8, 6), &[(ROW, hash(), b"86")]),
        archive(HOPPER, &[(ROW, hash(), b"90")]),
    ];
    let of = |major, minor| first(&supply(Arch::new(major, minor), &archives, None)).ok();
    assert_eq!(of(8, 0).unwrap(), b"80");
    assert_eq!(of(8, 9).unwrap(), b"86");
    assert_eq!(of(9, 0).unwrap(), b"90");
    assert_eq!(of(12, 0), None);
    let supply = supply(Arch::new(8, 9), &archives, None);
    let mut tried = Vec::new();
    let outcome = supply.load(ROW, |image| -> Outcome<()> {
        tried.push(image.0.clone());
        Err(Fault::Failed("no binary for the device".into()))
    });
    assert_eq!(tried, [b"86", b"80"]);
    let why = outcome.unwrap_err().to_string();
    assert!(why.contains("no kernels of rms_norm.cu for sm_89: the ready kernels are refused: no binary"), "{why}");
    assert!(why.contains("NVRTC is not installed (`pip install nvidia-cuda-nvrtc-cu12`"), "{why}");
}

#[test]
fn stale_ready_kernels_are_left_alone() {
    let folder = TempDir::new().unwrap();
    let cache = Cache::at(folder.path().into(), Cache::LARGEST);
    let supply = supply(HOPPER, &[archive(HOPPER, &[(ROW, hash() ^ 1, b"stale")])], Some(cache.clone()));
    assert!(first(&supply).is_err());
    let key = Key { name: ROW, hash: hash(), arch: HOPPER, compiler: Some("NVRTC 12.4") };
    cache.put(&key, b"kept");
    assert_eq!(first(&supply).unwrap(), b"kept");
    assert!(supply.describe().starts_with("no kernels for sm_90: NVRTC is not installed"), "{}", supply.describe());
}

#[test]
fn a_lost_device_ends_the_search() {
    let archives =
        [archive(Arch::new(8, 6), &[(ROW, hash(), b"86")]), archive(Arch::new(8, 0), &[(ROW, hash(), b"80")])];
    let supply = supply(Arch::new(8, 6), &archives, None);
    let mut tries = 0;
    let outcome = supply.load(ROW, |_| -> Outcome<()> {
        tries += 1;
        Err(Fault::Lost("gone".into()))
    });
    assert_eq!((outcome, tries), (Err(Fault::Lost("gone".into())), 1));
}

#[test]
fn an_unknown_file_is_a_sentence() {
    let outcome = supply(HOPPER, &[], None).load("no_such_row", |_| Ok(()));
    assert_eq!(outcome, Err(Fault::Failed("there is no cuda/kernels/no_such_row.cu".into())));
}

#[test]
fn all_ready_is_said_so() {
    let all: Vec<(&str, u64, &[u8])> = Source::all().map(|s| (s.name, s.hash(), &b"cubin"[..])).collect();
    let supply = supply(HOPPER, &[archive(HOPPER, &all)], None);
    assert_eq!(supply.describe(), "ready kernels for sm_90");
}

#[test]
fn compiled_kernels_are_kept() {
    let folder = TempDir::new().unwrap();
    let cache = Cache::at(folder.path().into(), Cache::LARGEST);
    let fresh = || Supply::of(HOPPER, (12, 9), &[], Some(cache.clone()));
    let supply = fresh();
    if let Err(why) = supply.nvrtc() {
        return println!("not run: {why}; {ADVICE}");
    }
    let compiled = first(&supply).unwrap();
    assert!(compiled.starts_with(b"\x7fELF"));
    assert!(supply.describe().contains("NVRTC 1"), "{}", supply.describe());
    let kept: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path()).collect();
    assert_eq!(kept.len(), 1);
    std::fs::write(&kept[0], b"TRITKEY1 and nothing more").unwrap();
    assert_eq!(first(&fresh()).unwrap(), compiled, "a damaged entry is compiled again");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let mut tries = 0;
    let second = fresh().load(ROW, |image| {
        tries += 1;
        if tries == 1 { Err(Fault::Failed("refused".into())) } else { Ok(image.0.clone()) }
    });
    assert_eq!((second.unwrap(), tries), (compiled, 2), "a refused entry is compiled again");
    // CUDA 11's drivers load nothing of a compiler of CUDA 12.
    let old = Supply::of(HOPPER, (11, 8), &[], None);
    assert!(old.describe().contains("newer than the driver"), "{}", old.describe());
}
