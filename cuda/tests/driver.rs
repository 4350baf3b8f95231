//! The real driver's side against a driver library without a device (`mock/cuda.c`).
//!
//! The mock stands in for `libcuda.so.1` on the loader's path, which a process reads when it starts, so
//! every test runs itself again in a process of its own. The mock ends that process when the driver
//! API is misused, and says `mock: closed` when the context was given back with nothing left in it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tritter_cuda::cubin::{Arch, Cache, Key, Source};
use tritter_cuda::driver::{CopyTimes, Driver, Fault, Kernel, Launch, Operand};
use tritter_cuda::nvidia;

/// Set in the process that has the mock.
const INSIDE: &str = "TRITTER_MOCK";

/// Runs `body` in a process with the mock; with `closed`, it must have given everything back.
fn with_mock(test: &str, variables: &[(&str, &str)], closed: bool, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let folder = TempDir::new().unwrap();
    let flags: Vec<&str> = variables.iter().filter(|(name, _)| *name == "CFLAGS").map(|(_, value)| *value).collect();
    if !compile(folder.path(), &flags) {
        return println!("not run: there is no C compiler");
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    command.env("LD_LIBRARY_PATH", folder.path()).env("XDG_CACHE_HOME", folder.path());
    command.env("TRITTER_NVRTC", "/nowhere/libnvrtc.so.12").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(text.contains("mock: closed"), closed, "{text}");
}

/// The mock as `libcuda.so.1` in a folder; `false` without a compiler.
fn compile(folder: &Path, flags: &[&str]) -> bool {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/mock/cuda.c");
    let library = folder.join("libcuda.so.1");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source);
    let Ok(output) = command.args(flags).arg("-lpthread").output() else { return false };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

/// The mock's one card that will do, with an image for it in the cache.
fn driver() -> Arc<dyn Driver> {
    keep(b"any image will do\0");
    nvidia::open(None).unwrap()
}

/// Puts an image of `rms_norm` into the cache.
fn keep(image: &[u8]) {
    let hash = Source::named("rms_norm").unwrap().hash();
    let key = Key { name: "rms_norm", hash, arch: Arch::new(10, 0), compiler: Some("a compiler") };
    Cache::of_user().unwrap().put(&key, image);
}

/// A launch of the mock's kernel, `y = 2 x`.
fn double(kernel: Kernel, count: u32, [x, w, y, r]: [u64; 4]) -> Launch {
    let params = [count.to_ne_bytes(), 1u32.to_ne_bytes(), 1e-5f32.to_ne_bytes()].concat();
    let operand = |address| Operand { address, bytes: u64::from(count) * 4, reads: true, writes: true };
    Launch { kernel, grid: [count, 1, 1], block: 32, shared: 0, params, operands: [x, w, y, r].map(operand).into() }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn read(driver: &dyn Driver, from: u64, bytes: u64) -> Vec<u8> {
    driver.download(from, bytes).unwrap().wait().unwrap()
}

#[test]
fn cards_are_listed_and_the_suitable_one_is_opened() {
    with_mock("cards_are_listed_and_the_suitable_one_is_opened", &[], true, || {
        let cards = nvidia::list().unwrap();
        assert_eq!(cards.len(), 2);
        assert_eq!((cards[1].id.as_str(), cards[1].name.as_str(), cards[1].compute), ("cuda:1", "Mock 1", (10, 0)));
        assert_eq!((cards[1].memory, cards[1].processors, cards[1].driver.as_str()), (64 << 20, 84, "12.9"));
        assert!(cards[0].kernels.contains("compute capability 7.5 is too old"), "{:?}", cards[0]);
        assert!(cards[1].kernels.contains("pip install nvidia-cuda-nvrtc-cu12"), "{:?}", cards[1]);
        let driver = driver();
        let about = driver.describe();
        assert_eq!((about.name.as_str(), about.compute, about.processors), ("Mock 1", (10, 0), 84));
        assert!(about.driver.starts_with("CUDA 12.9, ") && !about.emulated, "{about:?}");
        let why = |ordinal| nvidia::open(Some(ordinal)).err().unwrap();
        assert!(why(0).contains("too old"), "{}", why(0));
        assert_eq!(why(2), "there is no cuda:2; the last is cuda:1");
    });
}

#[test]
fn an_old_driver_is_a_sentence() {
    with_mock("an_old_driver_is_a_sentence", &[("MOCK_VERSION", "11080")], false, || {
        let why = nvidia::open(None).err().unwrap();
        assert!(why.contains("too old: it supports CUDA 11.8"), "{why}");
    });
}

#[test]
fn a_driver_without_devices_is_a_sentence() {
    with_mock("a_driver_without_devices_is_a_sentence", &[("MOCK_DEVICES", "0")], false, || {
        assert_eq!(nvidia::list().err().unwrap(), "the NVIDIA driver finds no device");
    });
}

#[test]
fn bytes_go_up_and_come_back() {
    with_mock("bytes_go_up_and_come_back", &[], true, || {
        let driver = driver();
        let to = driver.alloc(1000).unwrap();
        driver.clear(to, 1000).unwrap();
        let mut sent: Vec<u8> = (0..=255).collect();
        driver.upload(to + 8, &sent).unwrap();
        // Free as soon as `upload` has returned.
        sent.fill(0xff);
        driver.clear(to, 0).unwrap();
        driver.upload(to, &[]).unwrap();
        let found = read(&*driver, to, 1000);
        assert_eq!(found[..8], [0; 8]);
        assert_eq!(found[8..264], (0..=255).collect::<Vec<u8>>());
        assert_eq!(found[264..], [0; 736]);
        assert_eq!(read(&*driver, to, 0), []);
        driver.free(to);
        driver.wait().unwrap();
    });
}

#[test]
fn a_download_shows_what_was_there_when_it_began() {
    with_mock("a_download_shows_what_was_there_when_it_began", &[], true, || {
        let driver = driver();
        let at = driver.alloc(4).unwrap();
        driver.upload(at, &[1; 4]).unwrap();
        let first = driver.download(at, 4).unwrap();
        driver.upload(at, &[2; 4]).unwrap();
        let second = driver.download(at, 4).unwrap();
        // Nobody waits for this one; its buffer serves the next.
        drop(driver.download(at, 4).unwrap());
        driver.upload(at, &[3; 4]).unwrap();
        let third = driver.download(at, 4).unwrap();
        // Memory is given back after the copies from it, and downloads outlive the driver's handle.
        driver.free(at);
        drop(driver);
        let found = [third, first, second].map(|download| download.wait().unwrap()[0]);
        assert_eq!(found, [3, 1, 2]);
    });
}

#[test]
fn large_copies_go_through_staging_memory_in_parts() {
    with_mock("large_copies_go_through_staging_memory_in_parts", &[("MOCK_MEMORY", "100000000")], true, || {
        let driver = driver();
        // More than the ring, more than a download at once, and no multiple of a part.
        let sent: Vec<u8> = (0..45_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let to = driver.alloc(sent.len() as u64).unwrap();
        driver.upload(to, &sent).unwrap();
        assert!(read(&*driver, to, sent.len() as u64) == sent);
        // Many small ones, far more than may be under way at once.
        for i in 0..3000u64 {
            driver.upload(to + i * 4, &(i as u32).to_ne_bytes()).unwrap();
        }
        let found = read(&*driver, to, 12_000);
        let expected: Vec<u8> = (0..3000u32).flat_map(|i| i.to_ne_bytes()).collect();
        assert!(found == expected);
    });
}

#[test]
fn kernels_run_alone_recorded_and_timed() {
    with_mock("kernels_run_alone_recorded_and_timed", &[], true, || {
        let driver = driver();
        let kernel = driver.kernel("rms_norm", "rms_norm_f32").unwrap();
        assert_eq!(driver.kernel("rms_norm", "rms_norm_f32").unwrap(), kernel);
        let places = [(); 4].map(|()| driver.alloc(1024).unwrap());
        let [x, _, y, _] = places;
        driver.upload(x, &bytes(&[1.0, 2.0, 3.0])).unwrap();
        let launch = double(kernel, 3, places);
        driver.launch(&launch).unwrap();
        assert_eq!(floats(&read(&*driver, y, 12)), [2.0, 4.0, 6.0]);
        // x -> y -> x, three times.
        let back = double(kernel, 3, [y, x, x, y]);
        let recorded = driver.record(&[launch.clone(), back.clone()]).unwrap();
        (0..3).for_each(|_| recorded.submit().unwrap());
        assert_eq!(floats(&read(&*driver, x, 12)), [64.0, 128.0, 192.0]);
        assert_eq!(driver.time(&[launch, back]).unwrap(), [Duration::from_micros(1500); 2]);
        assert!(driver.time(&[]).unwrap().is_empty());
        driver.record(&[]).unwrap().submit().unwrap();
        recorded.submit().unwrap();
        // The recording holds what it needs, and goes last.
        drop(driver);
        drop(recorded);
    });
}

#[test]
fn what_no_kernel_takes_is_refused() {
    with_mock("what_no_kernel_takes_is_refused", &[], true, || {
        let driver = driver();
        let kernel = driver.kernel("rms_norm", "rms_norm_f32").unwrap();
        let place = driver.alloc(1024).unwrap();
        let good = double(kernel, 3, [place; 4]);
        let refused = |launch: Launch| match (driver.launch(&launch), driver.record(&[launch]).map(drop)) {
            (Err(Fault::Failed(why)), Err(Fault::Failed(again))) if why == again => why,
            other => panic!("{other:?}"),
        };
        assert!(refused(Launch { params: vec![0; 8], ..good.clone() }).contains("[12, 8, 8, 8, 8]"));
        assert!(refused(Launch { operands: good.operands[..3].to_vec(), ..good.clone() }).contains("was given"));
        assert!(refused(Launch { block: 512, ..good.clone() }).contains("`rms_norm_f32`: 512 threads"));
        assert!(refused(Launch { shared: 227 << 10, ..good.clone() }).contains("shared memory"));
        assert!(refused(Launch { kernel: Kernel(7), ..good.clone() }).contains("Kernel(7)"));
        driver.launch(&Launch { shared: 99 << 10, ..good }).unwrap();
        let why = driver.kernel("rms_norm", "rms_norm_f64").err().unwrap().to_string();
        assert!(why.contains("`rms_norm_f64` of cuda/kernels/rms_norm.cu: error 500 in cuModuleGetFunction"), "{why}");
        assert!(driver.kernel("nothing", "f").is_err());
    });
}

#[test]
fn a_driver_that_does_not_tell_of_parameters_will_do() {
    let flags = [("CFLAGS", "-DWITHOUT_PARAM_INFO")];
    with_mock("a_driver_that_does_not_tell_of_parameters_will_do", &flags, true, || {
        let driver = driver();
        let kernel = driver.kernel("rms_norm", "rms_norm_f32").unwrap();
        let places = [(); 4].map(|()| driver.alloc(1024).unwrap());
        driver.upload(places[0], &bytes(&[5.0])).unwrap();
        driver.launch(&double(kernel, 1, places)).unwrap();
        assert_eq!(floats(&read(&*driver, places[2], 4)), [10.0]);
    });
}

#[test]
fn images_that_the_driver_refuses_are_a_sentence() {
    with_mock("images_that_the_driver_refuses_are_a_sentence", &[], true, || {
        let driver = driver();
        keep(b"refuse this one\0");
        let why = driver.kernel("rms_norm", "rms_norm_f32").err().unwrap().to_string();
        assert!(why.contains("no kernels of rms_norm.cu for sm_100: the kept kernels are refused"), "{why}");
        assert!(why.contains("CUDA_ERROR_NO_BINARY_FOR_GPU") && why.contains("pip install"), "{why}");
        keep(b"a text without an end");
        let why = driver.kernel("rms_norm", "rms_norm_f32").err().unwrap().to_string();
        assert!(why.contains("neither a cubin nor a text with an end"), "{why}");
    });
}

fn memory_runs_out_and_comes_back(driver: &dyn Driver) {
    let (free, total) = driver.memory().unwrap().unwrap();
    assert!(total == 64 << 20 && free <= total);
    let half = total / 2;
    let first = driver.alloc(half).unwrap();
    assert!(first.is_multiple_of(256));
    let second = driver.alloc(half - 4096).unwrap();
    assert_eq!(driver.alloc(half), Err(Fault::OutOfMemory));
    // Given back in the order of the stream: there is room once it was waited for.
    driver.clear(first, half).unwrap();
    driver.free(first);
    let third = driver.alloc(half).unwrap();
    driver.clear(third, half).unwrap();
    driver.free(0x1234);
    driver.free(third);
    driver.free(third);
    assert!(driver.memory().unwrap().unwrap().0 >= 4096);
    // `second` is left to the driver's end.
    driver.clear(second, 16).unwrap();
}

#[test]
fn memory_of_a_pool_runs_out_and_comes_back() {
    with_mock("memory_of_a_pool_runs_out_and_comes_back", &[], true, || memory_runs_out_and_comes_back(&*driver()));
}

#[test]
fn memory_without_a_pool_runs_out_and_comes_back() {
    with_mock("memory_without_a_pool_runs_out_and_comes_back", &[("MOCK_POOLS", "0")], true, || {
        memory_runs_out_and_comes_back(&*driver());
    });
}

#[test]
fn after_an_illegal_access_the_device_is_lost() {
    with_mock("after_an_illegal_access_the_device_is_lost", &[], true, || {
        let driver = driver();
        let kernel = driver.kernel("rms_norm", "rms_norm_f32").unwrap();
        let place = driver.alloc(1024).unwrap();
        let mut launch = double(kernel, 1, [place; 4]);
        let pending = driver.download(place, 4).unwrap();
        launch.params[8..].copy_from_slice(&(-1.0f32).to_ne_bytes());
        driver.launch(&launch).unwrap();
        let lost = |outcome: Result<(), Fault>| match outcome {
            Err(Fault::Lost(why)) => assert!(why.contains("an illegal memory access was encountered"), "{why}"),
            other => panic!("{other:?}"),
        };
        lost(driver.wait());
        lost(driver.launch(&launch));
        lost(driver.upload(place, &[0; 4]));
        lost(pending.wait().map(drop));
        lost(driver.alloc(16).map(drop));
        driver.free(place);
    });
}

#[test]
fn many_threads_may_call() {
    with_mock("many_threads_may_call", &[], true, || {
        let driver = driver();
        let kernel = driver.kernel("rms_norm", "rms_norm_f32").unwrap();
        std::thread::scope(|scope| {
            for thread in 0..6u8 {
                let driver = &driver;
                scope.spawn(move || {
                    for round in 0..200u32 {
                        let places = [(); 4].map(|()| driver.alloc(4096).unwrap());
                        let values: Vec<f32> = (0..1000).map(|i| (i + round + u32::from(thread)) as f32).collect();
                        driver.upload(places[0], &bytes(&values)).unwrap();
                        driver.launch(&double(kernel, 1000, places)).unwrap();
                        let download = driver.download(places[2], 4000).unwrap();
                        places.into_iter().for_each(|place| driver.free(place));
                        let found = floats(&download.wait().unwrap());
                        assert!(found.iter().zip(&values).all(|(y, x)| *y == 2.0 * x));
                    }
                });
            }
        });
    });
}

#[test]
fn copies_beside_kernels_arrive_in_their_slots() {
    with_mock("copies_beside_kernels_arrive_in_their_slots", &[], true, || {
        let driver = driver();
        let slots = [driver.alloc(64).unwrap(), driver.alloc(64).unwrap()];
        let copies = driver.copies(256, 2).unwrap();
        for round in 0..600 {
            let slot = round % 2;
            copies.fill(slot, 128 * slot, &bytes(&[round as f32; 16])).unwrap();
            copies.start(slot, 128 * slot..128 * slot + 64, slots[slot]).unwrap();
            copies.arrive(slot).unwrap();
            assert_eq!(floats(&read(&*driver, slots[slot], 64)), [round as f32; 16]);
            copies.leave(slot).unwrap();
        }
        // A copy takes a quarter of a millisecond there, and no kernel waits for it.
        let times = copies.times().unwrap();
        assert_eq!(times, CopyTimes { copying: Duration::from_millis(150), waiting: Duration::ZERO });
        copies.start(1, 0..0, slots[1]).unwrap();
        for fault in [
            copies.fill(2, 0, &[0]),
            copies.start(2, 0..4, slots[0]),
            copies.arrive(2),
            copies.leave(7),
            copies.fill(0, 250, &[0; 8]),
            copies.fill(0, usize::MAX, &[0; 8]),
            copies.start(0, 192..257, slots[0]),
        ] {
            assert!(matches!(fault, Err(Fault::Failed(_))), "{fault:?}");
        }
        drop(copies);
        slots.into_iter().for_each(|slot| driver.free(slot));
    });
}
