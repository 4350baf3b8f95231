//! What a device can do at most, measured in the run that is held against it.

use anyhow::Result;
use tritter_runtime::{Device, bench, cpu};

/// Peaks of a device.
pub(crate) struct Peaks {
    /// Bytes that it reads a second, in 10^9.
    pub(crate) bandwidth_gb_s: f64,
    /// Operations a second of its product of int8 vectors, in 10^12, where that is measured.
    pub(crate) dot_tops: Option<f64>,
    /// The instruction.
    pub(crate) dot_name: Option<&'static str>,
}

/// Measures for about a second. It is none of the run that a budget is for, so the budget does not hold for it.
pub(crate) fn measure(device: &Device) -> Result<Peaks> {
    if device.caps().backend == "cpu" {
        let peaks = cpu::peaks::peaks(1.0);
        let known = peaks.dot_tops > 0.0;
        return Ok(Peaks {
            bandwidth_gb_s: peaks.read_gb_s,
            dot_tops: known.then_some(peaks.dot_tops),
            dot_name: known.then_some(peaks.dot_name),
        });
    }
    let ledger = device.backend().ledger();
    let limit = ledger.limit();
    ledger.set_limit(None);
    // A card's copy reads and writes at the rate of its memory.
    let copy = bench::copy_peak(device, 0.3);
    ledger.set_limit(limit);
    let copy = copy?;
    Ok(Peaks { bandwidth_gb_s: copy / 1e9, dot_tops: None, dot_name: None })
}
