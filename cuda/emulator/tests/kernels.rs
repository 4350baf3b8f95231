//! Fragment layouts against plain loops, parameter structs against their Rust definitions, entry
//! points against the rows' tables, and launches from several threads at once.

#[path = "../../tests/params/mod.rs"]
mod params;

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::PathBuf;
use std::sync::Arc;
use tritter_cuda::driver::{Address, Driver, Fault, Launch, Operand};
use tritter_cuda_emulator::{Compiler, Emulator, Options, device};
use tritter_runtime::Opened;
use tritter_runtime::check::{check_case, check_streamed};
use tritter_runtime::op::{Row, Size};

fn main() {
    let arguments = Arguments::from_args();
    let compiler = Compiler::find();
    let mut trials = vec![
        trial(&compiler, "fragments::bf16".into(), |_| {
            product16("product_bf16", |x| half::bf16::from_f64(x).to_bits())
        }),
        trial(&compiler, "fragments::f16".into(), |_| product16("product_f16", |x| half::f16::from_f64(x).to_bits())),
        trial(&compiler, "fragments::i8".into(), |_| product8()),
        trial(&compiler, "f16::conversions".into(), |_| conversions()),
        trial(&compiler, "launches::parallel".into(), |_| parallel()),
        trial(&compiler, "params::mismatch_is_seen".into(), mismatch),
        trial(&compiler, "streamed::bits".into(), |_| streamed()),
    ];
    for row in Row::all().iter().filter(|row| !row.cuda.is_empty()) {
        trials.push(trial(&compiler, format!("params::{}", row.name), |compiler| {
            compiler.accepts(&asserted(row, None)?).map_err(Failed::from)
        }));
        trials.push(trial(&compiler, format!("entries::{}", row.name), |_| entries(row)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(
    compiler: &Result<Compiler, String>,
    name: String,
    test: impl FnOnce(&Compiler) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    match compiler.clone() {
        Err(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
        Ok(compiler) => Trial::test(name, move || test(&compiler)),
    }
}

fn words(fault: Fault) -> Failed {
    fault.to_string().into()
}

/// Runs an entry of `planted/fragments.cu` on two inputs; the words of its output.
fn run(entry: &str, n: u32, grid: u32, block: u32, inputs: &[&[u32]], output: usize) -> Result<Vec<u32>, Failed> {
    let kernels = Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/planted"));
    let driver = Emulator::open(Options { kernels, ..Options::default() })?;
    let operand = |address: Address, n: usize, writes: bool| {
        let bytes = 4 * n as u64;
        Operand { address, bytes, reads: !writes, writes }
    };
    let mut operands = Vec::new();
    for input in inputs {
        let address = driver.alloc(4 * input.len() as u64).map_err(words)?;
        driver.upload(address, bytemuck::cast_slice(input)).map_err(words)?;
        operands.push(operand(address, input.len(), false));
    }
    let address = driver.alloc(4 * output as u64).map_err(words)?;
    operands.push(operand(address, output, true));
    let kernel = driver.kernel("fragments", entry).map_err(words)?;
    let params = n.to_ne_bytes().to_vec();
    let launch = Launch { kernel, grid: [grid, 1, 1], block, shared: 0, params, operands };
    driver.launch(&launch).map_err(words)?;
    let bytes = driver.download(address, 4 * output as u64).and_then(|d| d.wait()).map_err(words)?;
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}

/// A value of an asymmetric matrix that 16-bit floats hold exactly.
fn value(i: usize, j: usize) -> f64 {
    ((i * 7 + j * 5) % 23) as f64 - 11.0 + (j % 4) as f64 / 4.0
}

fn product16(entry: &str, bits: fn(f64) -> u16) -> Result<(), Failed> {
    let pack = |at: &dyn Fn(usize, usize) -> f64| -> Vec<u32> {
        let pair = |i: usize| (bits(at(i / 8, i % 8 * 2)), bits(at(i / 8, i % 8 * 2 + 1)));
        (0..128).map(pair).map(|(low, high)| u32::from(low) | u32::from(high) << 16).collect()
    };
    let b = |k: usize, n: usize| value(k + 3, 2 * n);
    let a = pack(&value);
    for (transposed, packed) in [(0, pack(&b)), (1, pack(&|n, k| b(k, n)))] {
        let y = run(entry, transposed, 1, 32, &[&a, &packed], 256)?;
        for (i, y) in y.into_iter().enumerate() {
            let (row, column) = (i / 16, i % 16);
            let expected = (0..16).map(|k| value(row, k) * b(k, column)).sum::<f64>() + 0.5;
            if f64::from(f32::from_bits(y)) != expected {
                return Err(format!("({row}, {column}): {} for {expected}", f32::from_bits(y)).into());
            }
        }
    }
    Ok(())
}

fn product8() -> Result<(), Failed> {
    let at = |i: usize, j: usize| ((i * 37 + j * 11) % 255) as i32 - 127;
    let b = |n: usize, k: usize| at(n + 5, 3 * k);
    let pack = |at: &dyn Fn(usize, usize) -> i32| -> Vec<u32> {
        let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|byte| at(i / 8, i % 8 * 4 + byte) as u8));
        (0..128).map(word).collect()
    };
    let y = run("product_i8", 7, 1, 32, &[&pack(&at), &pack(&b)], 256)?;
    for (i, y) in y.into_iter().enumerate() {
        let expected = (0..32).map(|k| at(i / 16, k) * b(i % 16, k)).sum::<i32>() + 7;
        if y as i32 != expected {
            return Err(format!("({}, {}): {} for {expected}", i / 16, i % 16, y as i32).into());
        }
    }
    Ok(())
}

/// All f16 there and back, and f32 of every magnitude, ties included, to f16.
fn conversions() -> Result<(), Failed> {
    let x: Vec<u32> = (0..65_536u32).map(|i| i << 16 | (i.wrapping_mul(40_503) & 0xe000) | i & 1 << 12 | i).collect();
    let y = run("halves", 0, 256, 256, &[&x], x.len())?;
    for (x, y) in x.into_iter().zip(y) {
        let (there, narrow) = (half::f16::from_bits(x as u16), half::f16::from_f32(f32::from_bits(x)));
        let same = |bits: u16, expected: half::f16| bits == expected.to_bits() || expected.is_nan();
        if !same(y as u16, there) || !same((y >> 16) as u16, narrow) {
            return Err(format!("{x:08x} gives {y:08x}, expected {there} and {narrow}").into());
        }
    }
    Ok(())
}

/// Two devices, each used by two threads at once: results are those of the reference all the time.
fn parallel() -> Result<(), Failed> {
    let open = |seed| match device(Options { seed, ..Options::default() }) {
        Opened::Ready(device) => Ok(Arc::new(device)),
        Opened::Absent { why } => Err(why),
    };
    let devices = [open(1)?, open(2)?];
    let wanted = ["rms_norm", "quantize_int8", "add"];
    let work = |device: &tritter_runtime::Device, seed: u64| -> Result<(), String> {
        for row in Row::all().iter().filter(|row| wanted.contains(&row.name)) {
            for case in (row.cases)(Size::Ragged) {
                let found = check_case(device, &case, seed).map_err(|e| e.to_string())?;
                if let Some(fault) = found.fault {
                    return Err(format!("{} {}: {fault}", found.row, found.case));
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|i| {
                let device = devices[i % 2].clone();
                scope.spawn(move || (0..3).try_for_each(|round| work(&device, 10 * i as u64 + round)))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a thread panicked".to_string())?)
    })?;
    Ok(())
}

/// The row's kernel file with assertions about its struct.
fn asserted(row: &Row, bytes: Option<usize>) -> Result<String, String> {
    Ok(format!("#include \"{}.cu\"\n{}", row.name, params::assertions(row, bytes)?))
}

/// The compiler does object.
fn mismatch(compiler: &Compiler) -> Result<(), Failed> {
    match compiler.accepts(&asserted(&Row::all()[0], Some(4096))?) {
        Err(why) if why.contains("size") => Ok(()),
        Err(why) => Err(why.into()),
        Ok(()) => Err("a wrong size was accepted".into()),
    }
}

/// Every entry point of the row's table is in the row's file.
fn entries(row: &Row) -> Result<(), Failed> {
    let driver = Emulator::open(Options::default())?;
    for entry in row.cuda.iter().flat_map(|variant| variant.entries) {
        driver.kernel(row.name, entry).map_err(words)?;
    }
    Ok(())
}

/// Streamed weights give the bits of resident ones.
fn streamed() -> Result<(), Failed> {
    let Opened::Ready(device) = device(Options::default()) else { return Err("no emulator".into()) };
    if check_streamed(&device, 5)? > Some(0) { Ok(()) } else { Err("nothing was streamed".into()) }
}
