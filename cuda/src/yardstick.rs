//! cuBLAS as the yardstick of benches, where the machine has it. Nothing else uses it.
//!
//! The library is loaded at run time; it computes in the context and memory of our own driver
//! handle, so both sides of a ratio come from one process and one card.
#![allow(unsafe_code)]

use crate::driver::{Address, Driver, Fault};
use crate::find;
use crate::probe;
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::time::{Duration, Instant};
use tritter_runtime::bench::median;

/// A measured product `y[m,n] = x[m,k] · w[n,k]ᵀ` in bf16 with f32 accumulation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Rows of `x`.
    pub m: usize,
    /// Rows of `w`.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
    /// Time of one product, the median of several series.
    pub time: Duration,
}

impl Product {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        2.0 * (self.m * self.n * self.k) as f64 / self.time.as_secs_f64().max(1e-12)
    }
}

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type Synchronize = unsafe extern "C" fn() -> c_int;
type GemmEx = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// `cublasOperation_t`, `cudaDataType_t`, `cublasComputeType_t`, `cublasGemmAlgo_t` of cublas_api.h.
const OP_N: c_int = 0;
const OP_T: c_int = 1;
const R_16BF: c_int = 14;
const COMPUTE_32F: c_int = 68;
const GEMM_DEFAULT: c_int = -1;

/// An open cuBLAS.
pub struct Yardstick<'a> {
    driver: &'a dyn Driver,
    handle: Handle,
    gemm: GemmEx,
    destroy: Destroy,
    synchronize: Synchronize,
}

impl<'a> Yardstick<'a> {
    /// Loads cuBLAS beside an open driver; a sentence where it is not to be had.
    pub fn open(driver: &'a dyn Driver) -> Result<Yardstick<'a>, String> {
        if driver.describe().emulated {
            return Err("cuBLAS needs a card".into());
        }
        // A driver call makes its context current on this thread, where cuBLAS looks for it.
        driver.wait().map_err(|fault| fault.to_string())?;
        let mut reasons = vec!["cuBLAS comes with the CUDA toolkit or by `pip install nvidia-cublas-cu12`".to_string()];
        for path in find::candidates(&find::CUBLAS, |name| std::env::var_os(name)) {
            match Yardstick::with(driver, &path) {
                Ok(yardstick) => return Ok(yardstick),
                Err(why) if path.is_absolute() => reasons.push(format!("{}: {why}", path.display())),
                // That the loader knows no such name says nothing.
                Err(_) => {}
            }
        }
        Err(reasons.join("; "))
    }

    fn with(driver: &'a dyn Driver, path: &Path) -> Result<Yardstick<'a>, String> {
        // cuBLAS needs its other half, which lies beside it but not always where the loader looks.
        let other = path.file_name().and_then(|file| file.to_str()).map(|file| file.replacen("cublas", "cublasLt", 1));
        if let (true, Some(other)) = (path.is_absolute(), other) {
            let _ = load(&path.with_file_name(other));
        }
        let blas = load(path)?;
        let cuda = probe::library()?.library;
        let lacks = |e: libloading::Error| format!("cuBLAS lacks a function: {e}");
        // SAFETY: these C functions have had these signatures since cuBLAS 11 (cublas_api.h) and CUDA 2
        // (cuda.h); neither library is ever unloaded.
        let (create, destroy, gemm, synchronize) = unsafe {
            (
                *blas.get::<Create>(b"cublasCreate_v2\0").map_err(lacks)?,
                *blas.get::<Destroy>(b"cublasDestroy_v2\0").map_err(lacks)?,
                *blas.get::<GemmEx>(b"cublasGemmEx\0").map_err(lacks)?,
                *cuda.get::<Synchronize>(b"cuCtxSynchronize\0").map_err(lacks)?,
            )
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call, and this thread has a current context.
        let status = unsafe { create(&raw mut handle) };
        check("cublasCreate", status)?;
        Ok(Yardstick { driver, handle, gemm, destroy, synchronize })
    }

    /// Measures a product; weights rotate over more memory than a cache holds.
    pub fn product(&self, m: usize, n: usize, k: usize) -> Result<Product, String> {
        let copies = (256usize << 20).div_ceil(2 * n * k).clamp(1, 8);
        let mut memory = Vec::new();
        let time = self.series(m, n, k, copies, &mut memory);
        // After an error cuBLAS may still be at work, in a stream that ours does not wait for.
        let _ = self.synchronize();
        for address in memory {
            self.driver.free(address);
        }
        Ok(Product { m, n, k, time: time? })
    }

    fn series(
        &self,
        m: usize,
        n: usize,
        k: usize,
        copies: usize,
        memory: &mut Vec<Address>,
    ) -> Result<Duration, String> {
        let mut filled = |elements: usize| -> Result<Address, String> {
            let address = self.driver.alloc(2 * elements as u64).map_err(|fault| fault.to_string())?;
            memory.push(address);
            self.fill(address, 2 * elements as u64).map_err(|fault| fault.to_string())?;
            Ok(address)
        };
        let (x, y) = (filled(m * k)?, filled(m * n)?);
        let weights = (0..copies).map(|_| filled(n * k)).collect::<Result<Vec<_>, _>>()?;
        self.driver.wait().map_err(|fault| fault.to_string())?;
        let run = |times: usize| -> Result<Duration, String> {
            let start = Instant::now();
            for i in 0..times {
                self.launch([m, n, k], x, weights[i % weights.len()], y)?;
            }
            self.synchronize()?;
            Ok(start.elapsed() / times as u32)
        };
        let once = run(3)?.as_secs_f64();
        let times = (0.05 / once.max(1e-6)).clamp(10.0, 2000.0) as usize;
        let series = (0..5).map(|_| run(times)).collect::<Result<Vec<_>, _>>()?;
        Ok(median(series, Duration::cmp))
    }

    /// Small random values: zeros would let the card run at higher clocks than work does.
    fn fill(&self, to: Address, bytes: u64) -> Result<(), Fault> {
        let mut random = tritter_runtime::random::Random::new(7);
        let block: Vec<u8> = (0..1 << 19)
            .flat_map(|_| ((((random.normal() as f32) * 0.1).to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        let mut at = 0;
        while at < bytes {
            let part = &block[..(bytes - at).min(block.len() as u64) as usize];
            self.driver.upload(to + at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn launch(&self, [m, n, k]: [usize; 3], x: Address, w: Address, y: Address) -> Result<(), String> {
        let (one, zero) = (1f32, 0f32);
        let int = |size: usize| c_int::try_from(size).map_err(|_| format!("cuBLAS takes no extent of {size}"));
        let (m, n, k) = (int(m)?, int(n)?, int(k)?);
        // Column-major: yᵀ[n,m] = w[n,k] · x[m,k]ᵀ.
        // SAFETY: the addresses are device memory of m·k, n·k and m·n bf16 values that live until after
        // the next synchronisation; the scalars are read during the call.
        let status = unsafe {
            (self.gemm)(
                self.handle,
                OP_T,
                OP_N,
                n,
                m,
                k,
                (&raw const one).cast(),
                w as *const c_void,
                R_16BF,
                k,
                x as *const c_void,
                R_16BF,
                k,
                (&raw const zero).cast(),
                y as *mut c_void,
                R_16BF,
                n,
                COMPUTE_32F,
                GEMM_DEFAULT,
            )
        };
        check("cublasGemmEx", status)
    }

    fn synchronize(&self) -> Result<(), String> {
        // SAFETY: it has no preconditions but a current context.
        check("cuCtxSynchronize", unsafe { (self.synchronize)() })
    }
}

impl Drop for Yardstick<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is from `cublasCreate` and is not used again.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

/// Opens a library for good: those of CUDA leave threads and exit handlers behind.
fn load(path: &Path) -> Result<&'static Library, String> {
    // SAFETY: the candidates are files and names of cuBLAS, whose initialisers have no preconditions.
    let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
    Ok(Box::leak(Box::new(library)))
}

fn check(function: &str, status: c_int) -> Result<(), String> {
    match status {
        0 => Ok(()),
        code => Err(format!("{function} gives error {code}")),
    }
}
