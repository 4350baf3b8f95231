//! The real driver: NVIDIA's, through its own API.
//!
//! One primary context, one stream that does not wait for others (and one for copies of streamed weights), memory from a pool in the order of
//! the stream, copies through pinned memory, kernels from [`crate::cubin`], recorded launches as CUDA
//! graphs. Any thread may call; each call makes the context current in its thread first.
#![allow(unsafe_code)]

mod api;
mod arguments;
mod cards;
mod context;
mod copies;
mod fault;
mod graph;
mod kernels;
mod memory;
mod ring;
mod streamed;

pub use cards::Card;

use crate::cubin::Supply;
use crate::driver::{Address, Copies, Description, Download, Driver, Fault, Kernel, Launch, Outcome, Replay};
use api::{Api, call};
use cards::Device;
use context::{Context, Event};
use copies::{Downloads, Uploads};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use graph::Recorded;
use kernels::Kernels;
use memory::Memory;
use std::sync::Arc;
use std::time::Duration;
use streamed::Streamed;

/// The cards that the driver shows, usable or not, or why there are none. Creates no context.
pub fn list() -> Result<Vec<Card>, String> {
    let (api, loaded) = Api::get()?;
    let card = |ordinal| Device::new(api, loaded, ordinal).and_then(|device| device.card());
    let ordinals = 0..loaded.devices;
    Ok(ordinals.map(|i| card(i).unwrap_or_else(|fault| Card::silent(i, loaded, &fault))).collect())
}

/// Opens the card of a number, or the first that is suitable, or says why not.
pub fn open(ordinal: Option<usize>) -> Result<Arc<dyn Driver>, String> {
    let (api, loaded) = Api::get()?;
    let devices: Vec<_> = (0..loaded.devices)
        .map(|ordinal| Device::new(api, loaded, ordinal).map_err(|fault| fault.to_string()))
        .collect();
    let archs: Vec<_> = devices.iter().map(|device| device.as_ref().map(|d| d.arch).map_err(Clone::clone)).collect();
    let ordinal = cards::choose(ordinal, &archs)?;
    let device = devices.into_iter().nth(ordinal).unwrap_or_else(|| Err("it is gone".into()));
    let opened = device.and_then(|device| Nvidia::new(&device).map_err(|fault| fault.to_string()));
    Ok(Arc::new(opened.map_err(|why| format!("cuda:{ordinal}: {why}"))?))
}

/// A card of NVIDIA's.
struct Nvidia {
    about: Description,
    context: Arc<Context>,
    supply: Supply,
    kernels: Arc<Kernels>,
    memory: Memory,
    uploads: Uploads,
    downloads: Arc<Downloads>,
}

impl Nvidia {
    fn new(device: &Device) -> Outcome<Nvidia> {
        let supply = device.supply();
        let about = Description {
            ordinal: device.ordinal,
            name: device.name()?,
            driver: cards::about(device.loaded.version, &supply),
            compute: (device.arch.major, device.arch.minor),
            processors: device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            emulated: false,
        };
        let shared = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let pools = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0;
        let context = Context::new(device.api, device.handle)?;
        Ok(Nvidia {
            about,
            supply,
            kernels: Kernels::new(&context, shared as usize),
            memory: Memory::new(&context, pools)?,
            uploads: Uploads::new(&context),
            downloads: Downloads::new(&context),
            context,
        })
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        // Copies end before their memory goes, kernels before their modules.
        if let Err(fault) = self.context.wait() {
            tracing::debug!("closing the device: {fault}");
        }
    }
}

// The addresses and sizes in these calls are the backend's, which takes them from live allocations:
// that is the contract of `Driver`, as of every driver below it.
impl Driver for Nvidia {
    fn describe(&self) -> &Description {
        &self.about
    }

    fn memory(&self) -> Outcome<Option<(u64, u64)>> {
        self.context.enter()?;
        self.memory.info().map(Some)
    }

    fn untaken(&self) -> Outcome<Option<u64>> {
        self.context.enter()?;
        self.memory.untaken().map(Some)
    }

    fn trim(&self) -> Outcome<()> {
        self.context.enter()?;
        self.context.wait()?;
        self.memory.trim();
        Ok(())
    }

    fn alloc(&self, bytes: u64) -> Outcome<Address> {
        self.context.enter()?;
        self.memory.alloc(bytes)
    }

    fn free(&self, address: Address) {
        match self.context.enter() {
            Ok(()) => self.memory.free(address),
            Err(fault) => tracing::debug!("memory is not given back: {fault}"),
        }
    }

    fn clear(&self, to: Address, bytes: u64) -> Outcome<()> {
        self.context.enter()?;
        let (api, stream) = (self.context.api, self.context.stream());
        match size(bytes)? {
            0 => Ok(()),
            // SAFETY: the context is current, the stream alive, the memory the backend's.
            bytes => unsafe { call!(api, cuMemsetD8Async(to, 0, bytes, stream)) },
        }
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Outcome<()> {
        self.context.enter()?;
        // SAFETY: the context is current, the memory the backend's.
        unsafe { self.uploads.send(to, bytes) }
    }

    fn download(&self, from: Address, bytes: u64) -> Outcome<Box<dyn Download>> {
        self.context.enter()?;
        // SAFETY: the context is current, the memory the backend's.
        unsafe { self.downloads.receive(from, size(bytes)?) }
    }

    fn kernel(&self, file: &str, entry: &str) -> Outcome<Kernel> {
        self.context.enter()?;
        self.kernels.load(&self.supply, file, entry)
    }

    fn launch(&self, launch: &Launch) -> Outcome<()> {
        self.context.enter()?;
        // SAFETY: the context is current, the operands are the backend's.
        unsafe { self.kernels.launch(launch) }
    }

    fn record(&self, launches: &[Launch]) -> Outcome<Box<dyn Replay>> {
        self.context.enter()?;
        // SAFETY: the context is current; the operands are the backend's, which holds their memory as
        // long as the recording.
        let recorded = unsafe { Recorded::new(&self.context, &self.kernels, launches) }?;
        Ok(Box::new(recorded))
    }

    fn time(&self, launches: &[Launch]) -> Outcome<Vec<Duration>> {
        self.context.enter()?;
        let events = (0..=launches.len()).map(|_| Event::new(&self.context, true));
        let events = events.collect::<Outcome<Vec<Event>>>()?;
        for (launch, before) in launches.iter().zip(&events) {
            before.record()?;
            // SAFETY: the context is current, the operands are the backend's.
            unsafe { self.kernels.launch(launch) }?;
        }
        if let Some(last) = events.last() {
            last.record()?;
        }
        self.context.wait()?;
        let between = |pair: &[Event]| match pair {
            [before, after] => before.until(after),
            _ => Ok(0.0),
        };
        let times = events.windows(2).map(|pair| between(pair).map(milliseconds));
        times.collect()
    }

    fn copies(&self, bytes: usize, slots: usize) -> Outcome<Box<dyn Copies>> {
        self.context.enter()?;
        Ok(Box::new(Streamed::new(&self.context, bytes, slots)?))
    }

    fn wait(&self) -> Outcome<()> {
        self.context.wait()
    }
}

fn size(bytes: u64) -> Outcome<usize> {
    usize::try_from(bytes).map_err(|_| Fault::Failed(format!("{bytes} bytes are more than this machine addresses")))
}

fn milliseconds(time: f32) -> Duration {
    Duration::try_from_secs_f64(f64::from(time) / 1e3).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::probe::{Probe, probe};

    #[test]
    fn without_a_driver_there_is_a_sentence() {
        let Probe::Absent { why } = probe() else {
            return println!("not run: there is a driver");
        };
        assert_eq!(list().err(), Some(why.clone()));
        assert_eq!(open(None).err(), Some(why.clone()));
        assert_eq!(open(Some(7)).err(), Some(why));
    }

    #[test]
    fn milliseconds_become_durations() {
        assert_eq!(milliseconds(1.5), Duration::from_micros(1500));
        assert_eq!(milliseconds(-1.0), Duration::ZERO);
        assert_eq!(milliseconds(f32::NAN), Duration::ZERO);
    }
}
