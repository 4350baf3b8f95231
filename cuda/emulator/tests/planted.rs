//! Planted faults: each must be found under every order of threads, at the line that has it, and the
//! correct twin must pass. A fault may not spoil the launches after it.

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::PathBuf;
use std::sync::Arc;
use tritter_cuda::driver::{Address, Driver, Fault, Launch, Operand};
use tritter_cuda_emulator::{Compiler, Emulator, Options};

const ROUNDS: usize = 24;
const X: usize = 132;
const Y: usize = 128;

/// A fault: the kernels `<name>_bad` and `<name>_good` in `planted/<file>.cu`, blocks, and what the
/// message must say (one of these).
struct Planted(&'static str, &'static str, u32, &'static [&'static str]);

const PLANTED: &[Planted] = &[
    Planted("barriers", "missing", 1, &["race: ", "nobody has written"]),
    Planted("barriers", "reuse", 1, &["race: "]),
    Planted("barriers", "divergent", 1, &["divergent barrier"]),
    Planted("barriers", "early", 1, &["returns without reaching the barrier", "have returned"]),
    Planted("barriers", "unwritten", 1, &["nobody has written"]),
    Planted("barriers", "halves", 1, &["race: "]),
    Planted("barriers", "atomic", 1, &["race: "]),
    Planted("barriers", "dynamic", 1, &["of which the launch has 512 bytes"]),
    Planted("memory", "beyond", 1, &["out of bounds: reads 4 bytes at offset 528 of operand 0, which has 528 bytes"]),
    Planted("memory", "before", 1, &["out of bounds: reads 4 bytes at offset -4 of operand 0"]),
    Planted("memory", "half", 1, &["out of bounds: writes 2 bytes at offset 512 of operand 1"]),
    Planted("memory", "vector", 1, &["misaligned: "]),
    Planted("memory", "store", 1, &["misaligned: "]),
    Planted("memory", "blocks", 3, &["race: "]),
    Planted("memory", "other_block", 3, &["race: ", "nobody has written"]),
    Planted("memory", "read_only", 1, &["writes operand 0, which the launch may only read"]),
    Planted("memory", "output", 1, &["nobody has written"]),
    Planted("memory", "index", 1, &["index 128 is outside its array"]),
    Planted("memory", "shift", 1, &["shifts by 32"]),
    Planted("memory", "endless", 1, &["runs for ever"]),
    Planted("warps", "sync", 1, &["race: ", "nobody has written"]),
    Planted("warps", "shuffle_order", 1, &["race: ", "nobody has written"]),
    Planted("warps", "lanes", 1, &["lanes missing", "returns without the warp operation"]),
    Planted("warps", "source", 1, &["which mask 0x0000ffff leaves out"]),
    Planted("warps", "places", 1, &["lanes of one mask are at different places"]),
    Planted("warps", "wait", 1, &["under way (its group was not waited for)", "nobody has written"]),
    Planted("warps", "commit", 1, &["under way (its group was not committed)"]),
    Planted("warps", "barrier", 1, &["race: ", "nobody has written", "its group was not waited for"]),
    Planted("warps", "align", 1, &["cp.async: misaligned"]),
    Planted("warps", "target", 1, &["under way (its group was not waited for)"]),
    Planted("warps", "changed", 1, &["its source was overwritten"]),
];

fn main() {
    let arguments = Arguments::from_args();
    let missing = Compiler::find().err();
    let mut trials = Vec::new();
    for planted in PLANTED {
        trials.push(trial(&missing, format!("{}::{}", planted.0, planted.1), || found(planted)));
    }
    trials.push(trial(&missing, "launches::wrong".into(), wrong_launches));
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(missing: &Option<String>, name: String, test: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    match missing {
        Some(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
        None => Trial::test(name, test),
    }
}

/// An emulator over the planted kernels, with an input and an output.
struct Bench {
    driver: Arc<dyn Driver>,
    x: Address,
    y: Address,
}

impl Bench {
    fn new(checked: bool) -> Result<Bench, Failed> {
        let options = Options { checked, seed: 7, kernels: Some(folder()), ..Options::default() };
        let driver: Arc<dyn Driver> = Arc::new(Emulator::open(options)?);
        let x = driver.alloc(4 * X as u64).map_err(words)?;
        let y = driver.alloc(4 * Y as u64).map_err(words)?;
        let values: Vec<f32> = (0..X).map(|i| i as f32 - 50.0).collect();
        driver.upload(x, bytemuck::cast_slice(&values)).map_err(words)?;
        Ok(Bench { driver, x, y })
    }

    fn launch(&self, file: &str, entry: &str, blocks: u32) -> Result<Launch, Failed> {
        let operand =
            |address, n: usize, writes: bool| Operand { address, bytes: 4 * n as u64, reads: !writes, writes };
        Ok(Launch {
            kernel: self.driver.kernel(file, entry).map_err(words)?,
            grid: [blocks, 1, 1],
            block: 128,
            shared: 512,
            params: 128u32.to_ne_bytes().to_vec(),
            operands: vec![operand(self.x, X, false), operand(self.y, Y, true)],
        })
    }

    /// Runs a launch on an output that nobody has written.
    fn run(&self, launch: &Launch) -> Result<Vec<u8>, Fault> {
        self.driver.upload(self.y, &[0xff; 4 * Y])?;
        self.driver.launch(launch)?;
        self.driver.download(self.y, 4 * Y as u64)?.wait()
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/planted")
}

fn words(fault: Fault) -> Failed {
    fault.to_string().into()
}

fn found(Planted(file, name, blocks, wanted): &Planted) -> Result<(), Failed> {
    let bench = Bench::new(true)?;
    let lines = marked(file, name)?;
    let bad = bench.launch(file, &format!("{name}_bad"), *blocks)?;
    let good = bench.launch(file, &format!("{name}_good"), *blocks)?;
    let mut outputs = Vec::new();
    for round in 0..if *name == "endless" { 2 } else { ROUNDS } {
        let message = match bench.run(&bad) {
            Err(fault) => fault.to_string(),
            Ok(_) => return Err(format!("round {round}: the fault was not found").into()),
        };
        let named = lines.iter().any(|line| message.contains(&format!("{file}.cu:{line}")));
        if !named || !wanted.iter().any(|words| message.contains(words)) {
            return Err(format!("round {round}: expected one of {wanted:?} at lines {lines:?}: {message}").into());
        }
        outputs.push(bench.run(&good).map_err(|e| format!("round {round}: false alarm: {e}"))?);
    }
    let fast = Bench::new(false)?;
    outputs.push(fast.run(&fast.launch(file, &format!("{name}_good"), *blocks)?).map_err(words)?);
    if outputs.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err("the correct kernel's outputs differ between orders".into());
    }
    Ok(())
}

/// Lines of a planted file that say `// FAULT ... <name> ...`.
fn marked(file: &str, name: &str) -> Result<Vec<usize>, Failed> {
    let text = std::fs::read_to_string(folder().join(format!("{file}.cu"))).map_err(|e| e.to_string())?;
    let says = |line: &str| line.split_once("// FAULT").is_some_and(|(_, names)| names.split(' ').any(|n| n == name));
    Ok(text.lines().enumerate().filter(|(_, line)| says(line)).map(|(i, _)| i + 1).collect())
}

/// Launches that no kernel is given to: the driver must see by itself that they do not fit.
fn wrong_launches() -> Result<(), Failed> {
    let bench = Bench::new(true)?;
    let good = bench.launch("memory", "beyond_good", 1)?;
    let refused = |launch: Launch, wanted: &str| match bench.run(&launch) {
        Err(Fault::Failed(message)) if message.contains(wanted) => Ok(()),
        other => Err(Failed::from(format!("expected `{wanted}`, got {other:?}"))),
    };
    refused(Launch { block: 160, ..good.clone() }, "its launch bound is 128")?;
    refused(Launch { grid: [1, 65_536, 1], ..good.clone() }, "no grid")?;
    refused(Launch { shared: 100 << 10, ..good.clone() }, "dynamic shared memory")?;
    refused(Launch { params: vec![0; 8], ..good.clone() }, "takes a struct of 4 bytes")?;
    refused(Launch { operands: good.operands[..1].to_vec(), ..good.clone() }, "takes 2 pointers")?;
    let mut beyond = good.clone();
    beyond.operands[0].bytes += 4;
    refused(beyond, "in no allocation")?;
    match bench.driver.kernel("memory", "absent") {
        Err(fault) if fault.to_string().contains("no entry point") => {}
        other => return Err(format!("{other:?}").into()),
    }
    bench.run(&good).map(|_| ()).map_err(words)
}
