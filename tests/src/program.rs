//! The `tritter` executable, what runs of it must be like, and a small model that it made.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

/// A command that runs the executable beside the tests' own.
///
/// `cargo test --workspace` has built it. Where it is missing (`-p tritter-tests` alone does not
/// build it) it is built once; one that is there is taken as it is.
pub fn tritter() -> Command {
    let mut command = Command::new(executable());
    // Without it some Vulkan loaders complain on standard error.
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir()).stdin(Stdio::null());
    command.env_remove("TRITTER_LOG").env_remove("RUST_BACKTRACE");
    command
}

fn executable() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = profile_folder().join(format!("tritter{}", std::env::consts::EXE_SUFFIX));
        if !path.exists() {
            build(&profile_folder());
        }
        assert!(path.exists(), "{} is missing; build it with `cargo build -p tritter`", path.display());
        path
    })
}

/// `target/debug` of `target/debug/deps/cli-0123456789abcdef`.
fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).expect("tests lie in a `deps` folder").to_path_buf()
}

fn build(profile_folder: &Path) {
    let profile = match profile_folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "-p", "tritter", "--bin", "tritter", "--profile", profile, "--target-dir"]);
    let status = command.arg(profile_folder.parent().unwrap()).current_dir(repository()).status();
    assert!(status.expect("cargo cannot be run").success(), "tritter cannot be built");
}

/// The folder of the workspace.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A text to train on.
pub fn text() -> PathBuf {
    repository().join("model/assets/demo/01.txt")
}

/// A copy of a golden fixture.
pub fn fixture(name: &str) -> tempfile::TempDir {
    copy(&repository().join("tests/fixtures").join(name))
}

/// A copy of a folder without subfolders.
pub fn copy(folder: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

/// Runs with arguments on the CPU, with bytes on standard input.
pub fn fed(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = tritter();
    command.args(arguments).args(["--device", "cpu"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut to = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A program that ends without reading closes the pipe, which is no failure here.
        scope.spawn(move || to.write_all(input).is_ok());
        child.wait_with_output().unwrap()
    })
}

/// Runs with arguments on the CPU.
pub fn on_cpu(arguments: &[&str]) -> Output {
    tritter().args(arguments).args(["--device", "cpu"]).output().unwrap()
}

/// Runs on the CPU and gives standard output; the run must succeed.
pub fn succeeds(arguments: &[&str]) -> Vec<u8> {
    let output = on_cpu(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Every file under a folder, with its bytes.
pub fn listing(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(listing(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            files.insert(path, bytes);
        }
    }
    files
}

/// A trained model and its tokenizer, made by the executable.
pub struct Made {
    /// Folder of the run: two steps at batch 1, context 32.
    pub run: PathBuf,
    /// `tokenizer.json` of 320 tokens.
    pub tokenizer: PathBuf,
}

/// The model that tests share; nobody may write into it.
///
/// It is kept beside the build, by the time of the executable: a test runner with a process for
/// each test makes it once, a new build makes it again.
pub fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let built = std::fs::metadata(executable()).and_then(|m| m.modified()).unwrap();
        let name = format!("small-model-{}", built.duration_since(UNIX_EPOCH).unwrap().as_nanos());
        let parent = profile_folder().join("tritter-tests");
        let folder = parent.join(&name);
        if !folder.exists() {
            make(&parent, &folder, &name);
        }
        Made { run: folder.join("run"), tokenizer: folder.join("tokenizer.json") }
    })
}

/// Makes the model elsewhere and moves it, so that one that is there is whole.
fn make(parent: &Path, folder: &Path, name: &str) {
    std::fs::create_dir_all(parent).unwrap();
    let old = std::fs::read_dir(parent).unwrap().flatten();
    for entry in old.filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with("small-model-") && n != name)) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
    let temporary = tempfile::tempdir_in(parent).unwrap();
    let (text, tokenizer, run) = (text(), temporary.path().join("tokenizer.json"), temporary.path().join("run"));
    let [text, tokenizer, run] = [&text, &tokenizer, &run].map(|p| p.to_str().unwrap());
    succeeds(&["tokenizer", "train", text, "--out", tokenizer, "--vocab", "320"]);
    let mut arguments = vec!["train", "--data", text, "--tokenizer", tokenizer, "--out", run];
    arguments.extend(["--preset", "test", "--batch", "1", "--context", "32", "--steps", "2"]);
    succeeds(&arguments);
    // Another process may have been first.
    if std::fs::rename(temporary.path(), folder).is_err() {
        assert!(folder.exists(), "{} cannot be made", folder.display());
    }
}
