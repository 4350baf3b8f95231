//! Opening the device that the command line names.

use crate::cli::Global;
use anyhow::{Result, bail};
use tritter_runtime::open::Choice;
use tritter_runtime::{Device, Opened, gpu};

/// As [`open`], with the bytes of `--memory-limit` to plan with.
pub(crate) fn open_within(global: &Global, limit: Option<u64>) -> Result<Device> {
    let device = open(global)?;
    Ok(match limit {
        Some(bytes) => device.with_budget(bytes),
        None => device,
    })
}

/// Opens the device of `--device`, sets the threads, and says what was chosen and why.
pub(crate) fn open(global: &Global) -> Result<Device> {
    if let Some(threads) = global.threads {
        if threads == 0 {
            bail!("--threads must be at least 1");
        }
        // A second call in one process keeps the first pool; commands open one device.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let choice = choose(&global.device)?;
    let caps = choice.device.caps();
    let software = if caps.software { ", a software adapter" } else { "" };
    eprintln!("device: {} ({}{software}): {}", caps.id, caps.name, choice.reason);
    Ok(choice.device)
}

/// Opens a device by name: `auto` is a CUDA card, else what the runtime takes (a hardware wgpu
/// adapter, else the CPU).
pub(crate) fn choose(name: &str) -> Result<Choice> {
    with_variant(name, None)
}

/// As [`choose`], with the kernel variant of this name wherever a row has it.
pub(crate) fn with_variant(name: &str, variant: Option<&str>) -> Result<Choice> {
    let cuda = |ordinal| {
        let variant = variant.map(str::to_string);
        tritter_cuda::open(ordinal, tritter_cuda::Options { variant, ..Default::default() })
    };
    match name.split_once(':').unwrap_or((name, "")) {
        ("auto", "") if name == "auto" => match cuda(None) {
            Opened::Ready(device) => Ok(chosen(device, "it is an NVIDIA card")),
            Opened::Absent { why } => {
                let mut choice = Device::choose(name)?;
                choice.reason = format!("{}; CUDA: {why}", choice.reason);
                Ok(choice)
            }
        },
        ("cuda", ordinal) => {
            let unknown = || tritter_runtime::Error::UnknownDevice { name: name.into() };
            let ordinal = match name.contains(':') {
                true => Some(ordinal.parse().map_err(|_| unknown())?),
                false => None,
            };
            match cuda(ordinal) {
                Opened::Ready(device) => Ok(chosen(device, "it was asked for")),
                Opened::Absent { why } => bail!("device `{name}` is not available: {why}"),
            }
        }
        ("wgpu", index) if variant.is_some() => {
            let index = if index.is_empty() { None } else { Some(index.parse()?) };
            let variant = variant.map(str::to_string);
            let options = gpu::Options { index, allow_software: true, variant, ..Default::default() };
            match gpu::open_with(options) {
                Opened::Ready(device) => Ok(chosen(device, "it was asked for")),
                Opened::Absent { why } => bail!("device `{name}` is not available: {why}"),
            }
        }
        _ => Ok(Device::choose(name)?),
    }
}

fn chosen(device: Device, why: &str) -> Choice {
    Choice { reason: format!("{} was taken: {why}", device.label()), device }
}
