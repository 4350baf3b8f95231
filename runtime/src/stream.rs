//! Weights that do not stay on the device: they lie in the host's memory and are brought in by groups, ahead
//! of the programs that read them.
//!
//! A device reads them in one of two [ways](Way). The CPU's kernels read a mapped file where it lies: its pages
//! are fetched ahead and released behind. A GPU copies a group into a *slot* of its own memory; groups take the
//! slots in turn. Either way a [`Feed`] keeps order, and kernels see the same bytes in the same layout as if the
//! weights had stayed: results do not change by a bit.

use crate::device::Buffer;
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Host memory that weights are streamed from, e.g. a mapped file. Its bytes never change.
pub trait HostMemory: Send + Sync {
    /// All of it, at a multiple of 64 bytes.
    fn bytes(&self) -> &[u8];
    /// Brings a range into memory, where the system has it elsewhere; waits for it. Changes no byte.
    fn fetch(&self, range: Range<usize>);
    /// Lets the system take back the memory of a range until it is read again. Changes no byte.
    fn release(&self, range: Range<usize>);
}

/// How weights that do not stay reach the kernels of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Kernels read host memory where it lies.
    InPlace,
    /// They are copied to slots of the device.
    Slots {
        /// Slots that let copies and kernels overlap as far as the device can.
        slots: usize,
        /// Buffers of the size of a group that the copies go through, besides.
        staging: usize,
    },
    /// Not at all.
    Missing,
}

/// What is brought in at a time.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its bytes in host memory; begin and end are multiples of 4.
    pub bytes: Range<usize>,
    /// Where it is copied to, from the beginning on; `None` where kernels read it in place.
    pub slot: Option<Buffer>,
}

/// Brings groups in. Groups that share a slot are brought in one after the other: the next one only after the
/// last [`Feed::leave`] of the one before, and after the device has done what was submitted until then.
pub trait Feed: Send + Sync {
    /// Begins to bring a group in. Never waits for the device; does nothing if that has begun already.
    fn ahead(&self, group: usize) -> Result<()>;
    /// What is submitted from now on finds the group in its place.
    fn arrive(&self, group: usize) -> Result<()>;
    /// Nothing that is submitted from now on needs the group, until it arrives again.
    fn leave(&self, group: usize) -> Result<()>;
    /// What was brought in so far.
    fn figures(&self) -> Figures;
}

/// What a [`Feed`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Bytes brought in.
    pub bytes: u64,
    /// Time that copies took, one after the other.
    pub copying: Duration,
    /// The part of it for which kernels had to wait.
    pub waiting: Duration,
}

impl Figures {
    /// Bytes a second while copies ran; 0 before the first.
    pub fn rate(&self) -> f64 {
        let seconds = self.copying.as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 / seconds } else { 0.0 }
    }

    /// Share of the copies' time in which kernels ran as well, 0 to 1.
    pub fn overlap(&self) -> f64 {
        let seconds = self.copying.as_secs_f64();
        if seconds > 0.0 { (1.0 - self.waiting.as_secs_f64() / seconds).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// What was done since `earlier`.
    pub fn since(&self, earlier: &Figures) -> Figures {
        Figures {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            copying: self.copying.saturating_sub(earlier.copying),
            waiting: self.waiting.saturating_sub(earlier.waiting),
        }
    }
}

/// Host memory and what is to be streamed from it.
#[derive(Clone)]
pub struct Load {
    /// The memory.
    pub memory: Arc<dyn HostMemory>,
    /// The groups, in the order in which they are used.
    pub groups: Vec<Group>,
}

impl Load {
    /// The first thing that is wrong with it: groups outside the memory, not in words, or larger than their slots.
    pub fn fault(&self) -> Option<String> {
        let length = self.memory.bytes().len();
        let wrong = |group: &Group| {
            let Range { start, end } = group.bytes;
            let outside = start > end || end > length || !start.is_multiple_of(4) || !end.is_multiple_of(4);
            outside || group.slot.as_ref().is_some_and(|slot| slot.bytes() < (end - start) as u64)
        };
        let at = self.groups.iter().position(wrong)?;
        let Range { start, end } = self.groups[at].bytes;
        Some(format!("group {at} is bytes {start} to {end} of {length}, which are no words or do not fit its slot"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Zeros(Vec<u8>);

    impl HostMemory for Zeros {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
        fn fetch(&self, _: Range<usize>) {}
        fn release(&self, _: Range<usize>) {}
    }

    #[test]
    fn groups_outside_the_memory_are_found() {
        let memory: Arc<dyn HostMemory> = Arc::new(Zeros(vec![0; 64]));
        let load = |range: Range<usize>, slot: Option<u64>| Load {
            memory: memory.clone(),
            groups: vec![Group { bytes: range, slot: slot.map(|bytes| Buffer::new(Arc::new(()), bytes)) }],
        };
        for good in [load(0..64, None), load(8..40, Some(32)), load(64..64, None)] {
            assert_eq!(good.fault(), None);
        }
        let backwards = Range { start: 8, end: 4 };
        for bad in [load(0..68, None), load(2..8, None), load(0..6, None), load(0..64, Some(60)), load(backwards, None)]
        {
            assert!(bad.fault().is_some_and(|text| text.contains("group 0")), "{:?}", bad.groups);
        }
    }

    #[test]
    fn rate_and_overlap_are_of_the_time_between() {
        let figures = |bytes, copying, waiting| Figures {
            bytes,
            copying: Duration::from_millis(copying),
            waiting: Duration::from_millis(waiting),
        };
        let between = figures(3000, 30, 15).since(&figures(1000, 10, 10));
        assert_eq!(between, figures(2000, 20, 5));
        assert!((between.rate() - 100_000.0).abs() < 1e-6 && (between.overlap() - 0.75).abs() < 1e-9);
        assert_eq!((Figures::default().rate(), Figures::default().overlap()), (0.0, 0.0));
    }
}
