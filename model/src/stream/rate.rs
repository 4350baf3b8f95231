//! What streaming costs, predicted and measured.

use super::store::{Places, Scratch};
use super::weights::slots;
use crate::error::Result;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tritter_runtime::stream::{Group, HostMemory, Load, Way};
use tritter_runtime::{DType, Device, Tensor};

/// Tokens a second of decoding: a step computes for `compute` seconds and brings `streamed` bytes in at `rate`
/// bytes a second. Where copies and kernels overlap the longer of the two counts, on a device with one queue
/// for both (a single slot) their sum.
pub fn tokens_per_second(streamed: u64, rate: f64, compute: f64, way: Way) -> f64 {
    let copy = if streamed == 0 { 0.0 } else { streamed as f64 / rate };
    let seconds = match way {
        Way::Slots { slots: 1, .. } => copy + compute,
        _ => copy.max(compute),
    };
    1.0 / seconds
}

/// Bytes a second that a device is seen to bring in, from a file in a folder that was just written. A file that
/// is larger than what is left of the system's memory comes from the disk instead, and slower.
pub fn measure(device: &Device, folder: &Path) -> Result<f64> {
    /// Bytes of a group, and groups.
    const GROUP: usize = 16 << 20;
    const GROUPS: usize = 4;
    let tensor = |i| vec![Tensor::weight(format!("measured {i}"), [GROUP / 4], DType::U32)];
    let groups: Vec<Vec<Tensor>> = (0..GROUPS).map(tensor).collect();
    let places = Places::new(&groups);
    let scratch = Scratch::new(folder, places.bytes)?;
    scratch.hold(&groups, &places)?;
    for (i, tensor) in groups.iter().flatten().enumerate() {
        scratch.device().write(tensor, &vec![i as u32; GROUP / 4])?;
    }
    let memory: Arc<dyn HostMemory> = Arc::new(scratch.map()?);
    let slots = slots(device, GROUP as u64, GROUPS)?;
    let group = |(i, (range, _)): (usize, &(std::ops::Range<u64>, _))| Group {
        bytes: range.start as usize..range.end as usize,
        slot: (!slots.is_empty()).then(|| slots[i % slots.len()].clone()),
    };
    let load = Load { memory, groups: places.groups.iter().enumerate().map(group).collect() };
    let feed = device.backend().feed(load)?;
    let (mut before, mut begin) = (feed.figures(), Instant::now());
    for round in 0..3 {
        // The first round is for what is allocated and mapped once.
        if round == 1 {
            (before, begin) = (feed.figures(), Instant::now());
        }
        for i in 0..GROUPS {
            feed.ahead(i)?;
            feed.arrive(i)?;
            feed.leave(i)?;
            device.backend().wait()?;
        }
    }
    let figures = feed.figures().since(&before);
    Ok(match device.backend().way() {
        // Filling what is copied from and the copy in the one queue, one after the other.
        Way::Slots { slots: 1, .. } => figures.bytes as f64 / begin.elapsed().as_secs_f64(),
        _ => figures.rate(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_longer_of_copy_and_compute_counts_where_they_overlap() {
        let two = Way::Slots { slots: 2, staging: 0 };
        let one = Way::Slots { slots: 1, staging: 2 };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        for way in [two, Way::InPlace] {
            close(tokens_per_second(1000, 100.0, 4.0, way), 0.1);
            close(tokens_per_second(1000, 100.0, 20.0, way), 0.05);
        }
        close(tokens_per_second(1000, 100.0, 10.0, one), 0.05);
        close(tokens_per_second(0, 0.0, 0.5, one), 2.0);
    }

    #[test]
    fn the_cpu_brings_pages_in() {
        let folder = tempfile::tempdir().unwrap();
        assert!(measure(&tritter_runtime::cpu::open(), folder.path()).unwrap() > 0.0);
    }
}
