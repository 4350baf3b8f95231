//! Opening a device by name.

use crate::device::{Device, Opened};
use crate::error::{Error, Result};

/// An open device and why it is this one.
#[derive(Debug)]
pub struct Choice {
    /// The device.
    pub device: Device,
    /// Why it was taken, a sentence.
    pub reason: String,
}

impl Device {
    /// Opens `cpu`, `wgpu`, `wgpu:N` or `auto`; see [`Device::choose`].
    pub fn open(name: &str) -> Result<Device> {
        Ok(Device::choose(name)?.device)
    }

    /// Opens a device by name and says why it is this one.
    ///
    /// `auto` is the first wgpu adapter that is hardware (discrete before integrated), else the
    /// CPU: the CPU backend is faster than any software adapter. `wgpu` is the first adapter,
    /// software if there is no other. `cuda` is not known to this crate and always absent.
    pub fn choose(name: &str) -> Result<Choice> {
        let absent = |why: String| Error::Absent { name: name.into(), why };
        match name.split_once(':').unwrap_or((name, "")) {
            ("cpu", "") if !name.contains(':') => Ok(cpu("it was asked for".into())),
            ("auto", "") if !name.contains(':') => Ok(match open_wgpu(None, false) {
                Opened::Ready(device) => with_reason(device, "it is the first hardware adapter"),
                Opened::Absent { why } => cpu(why),
            }),
            ("wgpu", index) => {
                let unknown = || Error::UnknownDevice { name: name.into() };
                let index = match name.contains(':') {
                    true => Some(index.parse().map_err(|_| unknown())?),
                    false => None,
                };
                match open_wgpu(index, true) {
                    Opened::Ready(device) => Ok(with_reason(device, "it was asked for")),
                    Opened::Absent { why } => Err(absent(why)),
                }
            }
            ("cuda", index) if !name.contains(':') || index.parse::<usize>().is_ok() => {
                Err(absent("this build of the runtime has no CUDA backend of its own".into()))
            }
            _ => Err(Error::UnknownDevice { name: name.into() }),
        }
    }
}

fn cpu(why: String) -> Choice {
    Choice { device: crate::cpu::open(), reason: format!("the CPU was taken: {why}") }
}

fn with_reason(device: Device, why: &str) -> Choice {
    let software = if device.caps().software { "; it is a software adapter, slower than `cpu`" } else { "" };
    Choice { reason: format!("{} was taken: {why}{software}", device.label()), device }
}

#[cfg(not(target_arch = "wasm32"))]
fn open_wgpu(index: Option<usize>, allow_software: bool) -> Opened {
    crate::gpu::open(index, allow_software)
}

#[cfg(target_arch = "wasm32")]
fn open_wgpu(_: Option<usize>, _: bool) -> Opened {
    Opened::Absent { why: "a browser opens WebGPU asynchronously, with `gpu::open_async`".into() }
}
