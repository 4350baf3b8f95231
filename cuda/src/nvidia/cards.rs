//! The cards that the driver shows, asked without creating a context.
#![allow(unsafe_code)]

use super::api::{Api, call};
use crate::cubin::{Arch, Supply};
use crate::driver::{Fault, Outcome};
use crate::probe::{Loaded, Version};
use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute};
use std::ffi::{CStr, c_char};

/// A card, suitable or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Number among the cards that the driver shows.
    pub ordinal: usize,
    /// Name for `--device`: `cuda:0`.
    pub id: String,
    /// What its maker calls it.
    pub name: String,
    /// Compute capability, e.g. `(12, 0)`.
    pub compute: (u32, u32),
    /// Bytes of memory.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub processors: u32,
    /// CUDA version of the driver, e.g. `12.9`.
    pub driver: String,
    /// How its kernels are had, or why it cannot be used.
    pub kernels: String,
}

/// A device of the driver, and questions to it.
#[derive(Clone, Copy)]
pub(super) struct Device {
    pub(super) api: &'static Api,
    pub(super) loaded: &'static Loaded,
    pub(super) handle: CUdevice,
    pub(super) ordinal: usize,
    pub(super) arch: Arch,
}

impl Device {
    /// The device of a number, which is below the count.
    pub(super) fn new(api: &'static Api, loaded: &'static Loaded, ordinal: usize) -> Outcome<Device> {
        let mut handle = 0;
        // SAFETY: the handle is written through the pointer; the driver refuses what is no device.
        unsafe { call!(api, cuDeviceGet(&raw mut handle, i32::try_from(ordinal).unwrap_or(i32::MAX))) }?;
        let mut device = Device { api, loaded, handle, ordinal, arch: Arch::new(0, 0) };
        let major = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        device.arch = Arch::new(major, minor);
        Ok(device)
    }

    /// An attribute that is not negative.
    pub(super) fn attribute(&self, attribute: Attribute) -> Outcome<u32> {
        let mut value = 0;
        // SAFETY: the device is the driver's; the value is written through the pointer.
        unsafe { call!(self.api, cuDeviceGetAttribute(&raw mut value, attribute, self.handle)) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    pub(super) fn name(&self) -> Outcome<String> {
        let mut bytes = [0u8; 256];
        // SAFETY: the text is written, with its NUL, into as many bytes as said at most.
        unsafe { call!(self.api, cuDeviceGetName(bytes.as_mut_ptr().cast::<c_char>(), 256, self.handle)) }?;
        Ok(CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned())
    }

    pub(super) fn supply(&self) -> Supply {
        Supply::new(self.arch, (self.loaded.version.0, self.loaded.version.1))
    }

    /// The card, for people.
    pub(super) fn card(&self) -> Outcome<Card> {
        let mut memory = 0;
        // SAFETY: the device is the driver's; the size is written through the pointer.
        unsafe { call!(self.api, cuDeviceTotalMem_v2(&raw mut memory, self.handle)) }?;
        Ok(Card {
            ordinal: self.ordinal,
            id: format!("cuda:{}", self.ordinal),
            name: self.name()?,
            compute: (self.arch.major, self.arch.minor),
            memory: memory as u64,
            processors: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            driver: self.loaded.version.to_string(),
            kernels: too_old(self.arch).unwrap_or_else(|| self.supply().describe()),
        })
    }
}

impl Card {
    /// A card that does not answer.
    pub(super) fn silent(ordinal: usize, loaded: &Loaded, fault: &Fault) -> Card {
        Card {
            ordinal,
            id: format!("cuda:{ordinal}"),
            name: "a card that does not answer".into(),
            compute: (0, 0),
            memory: 0,
            processors: 0,
            driver: loaded.version.to_string(),
            kernels: fault.to_string(),
        }
    }
}

/// Why the kernels do not run on this architecture, if so.
pub(super) fn too_old(arch: Arch) -> Option<String> {
    let (Arch { major, minor }, oldest) = (arch, Arch::OLDEST);
    (arch < oldest).then(|| {
        format!("compute capability {major}.{minor} is too old: the kernels need {}.{}", oldest.major, oldest.minor)
    })
}

/// The number of a device to open: the one asked for, or the first that is suitable.
pub(super) fn choose(asked: Option<usize>, cards: &[Result<Arch, String>]) -> Result<usize, String> {
    let suitable = |card: &Result<Arch, String>| match card {
        Ok(arch) => too_old(*arch).map_or(Ok(()), Err),
        Err(why) => Err(why.clone()),
    };
    if let Some(ordinal) = asked {
        let last = cards.len().saturating_sub(1);
        let card = cards.get(ordinal).ok_or_else(|| format!("there is no cuda:{ordinal}; the last is cuda:{last}"))?;
        return suitable(card).map(|()| ordinal).map_err(|why| format!("cuda:{ordinal}: {why}"));
    }
    let mut reasons = Vec::new();
    for (ordinal, card) in cards.iter().enumerate() {
        match suitable(card) {
            Ok(()) => return Ok(ordinal),
            Err(why) => reasons.push(format!("cuda:{ordinal}: {why}")),
        }
    }
    Err(reasons.join("; "))
}

/// `CUDA 12.9, ready kernels for sm_90`.
pub(super) fn about(version: Version, supply: &Supply) -> String {
    format!("CUDA {version}, {}", supply.describe())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_suitable_card_is_chosen() {
        let (old, new) = (Arch::new(7, 5), Arch::new(12, 0));
        let broken = || Err("it fell off the bus".to_string());
        assert_eq!(choose(None, &[Ok(old), broken(), Ok(new), Ok(new)]), Ok(2));
        assert_eq!(choose(Some(3), &[Ok(old), broken(), Ok(new), Ok(new)]), Ok(3));
        let why = choose(None, &[Ok(old), broken()]).err().unwrap_or_default();
        assert!(why.contains("cuda:0: compute capability 7.5 is too old: the kernels need 8.0"), "{why}");
        assert!(why.contains("cuda:1: it fell off the bus"), "{why}");
    }

    #[test]
    fn a_card_that_is_asked_for_in_vain_is_a_sentence() {
        let cards = [Ok(Arch::new(7, 0)), Ok(Arch::new(8, 0))];
        assert_eq!(choose(Some(2), &cards), Err("there is no cuda:2; the last is cuda:1".into()));
        assert!(choose(Some(0), &cards).err().is_some_and(|why| why.contains("too old")));
    }

    #[test]
    fn compute_capabilities_from_eight_on_will_do() {
        assert_eq!(too_old(Arch::new(8, 0)), None);
        assert_eq!(too_old(Arch::new(12, 0)), None);
        assert!(too_old(Arch::new(7, 5)).is_some());
    }
}
