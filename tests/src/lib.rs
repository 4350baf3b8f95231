//! Shared pieces of the tests of every op on every device, golden files and whole programs.

pub mod program;
pub mod translate;

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};
use tritter_runtime::device::Caps;
use tritter_runtime::op::{Case, Row, Size};
use tritter_runtime::{Device, Opened, gpu};

/// A device to test on, or the reason why it is absent.
pub struct Candidate {
    /// Name in reports, variant included.
    pub label: String,
    /// The device.
    pub device: Result<Device, String>,
    /// The one variant that is to run; `None` for what the device chooses.
    pub variant: Option<Variant>,
    /// Whether operands are sliced, too: once is enough for a device that runs in several ways.
    pub sliced: bool,
}

/// A kernel variant by name.
#[derive(Clone, Debug)]
pub enum Variant {
    /// Of the WGSL shaders.
    Wgsl(&'static str),
    /// Of the CUDA kernels.
    Cuda(&'static str),
}

impl Variant {
    /// Has the row a variant of this name?
    pub fn of(&self, row: &Row) -> bool {
        match self {
            Variant::Wgsl(name) => row.wgsl.contains(name),
            Variant::Cuda(name) => row.cuda.iter().any(|v| v.name == *name),
        }
    }

    /// Does it take the operands of a case?
    pub fn takes(&self, case: &Case, caps: &Caps) -> bool {
        match self {
            Variant::Wgsl(name) => case.op.wgsl(&case.specs()).iter().any(|choice| choice.variant == *name),
            Variant::Cuda(name) => case.op.cuda(&case.specs(), caps).iter().any(|choice| choice.variant == *name),
        }
    }
}

impl Variant {
    /// What a device lacks that all of a row's cases need in this variant. CUDA's variants go by operands alone.
    pub fn missing(&self, row: &Row, caps: &Caps) -> Option<&'static str> {
        let Variant::Wgsl(name) = self else { return None };
        let cases = [Size::Small, Size::Ragged].into_iter().flat_map(row.cases);
        let mut choices = cases.flat_map(|case| case.op.wgsl(&case.specs())).filter(|choice| choice.variant == *name);
        let first = choices.next()?.needs.missing(caps)?;
        choices.all(|choice| choice.needs.missing(caps).is_some()).then_some(first)
    }
}

impl Candidate {
    /// Has the row anything to run here?
    pub fn runs(&self, row: &Row) -> bool {
        self.variant.as_ref().is_none_or(|v| v.of(row))
    }
}

/// The devices that whole programs run on: the CPU, the first wgpu adapter (software included), and
/// the first CUDA card, or, without one, the kernels in the emulator.
pub fn devices() -> Vec<Candidate> {
    let cpu = Candidate { label: "cpu".into(), device: Ok(tritter_runtime::cpu::open()), variant: None, sliced: true };
    vec![cpu, wgpu("wgpu", None, false), cuda(None)]
}

/// [`devices`], the CUDA kernels in the checking emulator, every WGSL and CUDA variant by itself, and
/// parameters as uniforms (browsers).
pub fn candidates() -> Vec<Candidate> {
    let mut all = devices();
    all.push(emulator(None, (12, 0)));
    all.push(emulator(None, (8, 0)));
    let wgsl = Row::all().iter().flat_map(|row| row.wgsl.iter().copied());
    all.extend(unique(wgsl).map(|name| wgpu(&format!("wgpu.{name}"), Some(name), false)));
    all.push(wgpu("wgpu.uniform", None, true));
    let kernels = Row::all().iter().flat_map(|row| row.cuda.iter().map(|v| v.name));
    all.extend(unique(kernels).map(|name| emulator(Some(name), (12, 0))));
    all
}

fn unique(names: impl Iterator<Item = &'static str>) -> impl Iterator<Item = &'static str> {
    names.collect::<BTreeSet<_>>().into_iter()
}

fn opened(opened: Opened) -> Result<Device, String> {
    match opened {
        Opened::Ready(device) => Ok(device),
        Opened::Absent { why } => Err(why),
    }
}

fn wgpu(label: &str, variant: Option<&'static str>, uniform_params: bool) -> Candidate {
    let name = variant.map(str::to_string);
    let options = gpu::Options { allow_software: true, variant: name, uniform_params, ..gpu::Options::default() };
    let (device, sliced) = (opened(gpu::open_with(options)), variant.is_none());
    Candidate { label: label.into(), device, variant: variant.map(Variant::Wgsl), sliced }
}

/// A card, or the emulator at its fastest.
fn cuda(variant: Option<&'static str>) -> Candidate {
    let options = tritter_cuda::Options { variant: variant.map(str::to_string), ..Default::default() };
    let device = opened(tritter_cuda::open(None, options)).or_else(|_| {
        let options = tritter_cuda_emulator::Options { checked: false, ..Default::default() };
        opened(tritter_cuda_emulator::device(options))
    });
    Candidate { label: "cuda".into(), device, variant: variant.map(Variant::Cuda), sliced: variant.is_none() }
}

/// The emulator with all its checks.
fn emulator(variant: Option<&'static str>, compute: (u32, u32)) -> Candidate {
    let label = match variant {
        Some(name) => format!("emulator.{name}"),
        None => format!("emulator.sm_{}{}", compute.0, compute.1),
    };
    let options = tritter_cuda_emulator::Options {
        checked: true,
        seed: fresh_seed(),
        compute,
        variant: variant.map(str::to_string),
        ..Default::default()
    };
    let (device, sliced) = (opened(tritter_cuda_emulator::device(options)), variant.is_none() && compute.0 >= 9);
    Candidate { label, device, variant: variant.map(Variant::Cuda), sliced }
}

/// A seed that no earlier run had; tests print it when they fail.
pub fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
}
