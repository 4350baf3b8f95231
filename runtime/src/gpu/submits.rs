//! Cutting a program into submits.
//!
//! Windows resets a GPU whose one submit runs for 2 seconds, and other systems watch
//! too, so a submit holds about 50 ms of predicted work. Cutting changes no result:
//! the queue runs submits in order.

use super::lower::Step;
use crate::op::Cost;
use std::ops::Range;
use std::time::Duration;
use wgpu::DeviceType;

/// Seconds that a dispatch is predicted to take. Rates are low on purpose: too many submits cost
/// microseconds, one too long costs the device.
pub(super) fn predict(kind: DeviceType, cost: Cost) -> f64 {
    let (bytes, operations) = match kind {
        DeviceType::DiscreteGpu => (50e9, 1e12),
        DeviceType::IntegratedGpu | DeviceType::VirtualGpu | DeviceType::Other => (10e9, 100e9),
        DeviceType::Cpu => (2e9, 2e9),
    };
    let moved = (cost.read + cost.written) as f64 / bytes;
    moved.max(cost.ops as f64 / operations) + 2e-6
}

/// Ranges of steps, each with at most `budget` seconds of predicted work or a single dispatch.
pub(super) fn cut(steps: &[Step], budget: f64) -> Vec<Range<usize>> {
    let seconds = steps.iter().map(|step| match step {
        Step::Dispatch(dispatch) => dispatch.seconds,
        Step::Copy { .. } => 0.0,
    });
    cut_seconds(seconds, budget)
}

fn cut_seconds(seconds: impl Iterator<Item = f64>, budget: f64) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut first, mut sum, mut end) = (0, 0.0, 0);
    for (i, seconds) in seconds.enumerate() {
        if i > first && sum + seconds > budget {
            ranges.push(first..i);
            (first, sum) = (i, 0.0);
        }
        sum += seconds;
        end = i + 1;
    }
    if end > first {
        ranges.push(first..end);
    }
    ranges
}

/// Did a submit that can still be cut take more than `allowed` seconds?
pub(super) fn overlong(submits: &[Range<usize>], times: &[Duration], allowed: f64) -> bool {
    submits.iter().zip(times).any(|(range, time)| range.len() > 1 && time.as_secs_f64() > allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submits_cover_all_steps_in_order_within_the_budget() {
        let seconds = [0.4, 0.4, 0.4, 3.0, 0.1, 0.0, 0.9];
        let ranges = cut_seconds(seconds.into_iter(), 1.0);
        assert_eq!(ranges, [0..2, 2..3, 3..4, 4..7]);
        let whole = cut_seconds(seconds.into_iter(), 100.0);
        assert_eq!((whole.len(), whole.first()), (1, Some(&(0..7))));
        assert!(cut_seconds(std::iter::empty(), 1.0).is_empty());
    }

    #[test]
    fn only_a_submit_that_can_be_cut_is_overlong() {
        let times = [Duration::from_millis(300), Duration::from_millis(90)];
        assert!(!overlong(&[0..1, 1..9], &times, 0.1));
        assert!(overlong(&[0..2, 2..9], &times, 0.1));
    }

    #[test]
    fn work_is_predicted_by_the_slower_of_memory_and_arithmetic() {
        let bytes = Cost { read: 1 << 30, written: 0, ops: 1 };
        let arithmetic = Cost { read: 1, written: 0, ops: 1 << 40 };
        assert!(predict(DeviceType::Cpu, bytes) > 0.5);
        assert!(predict(DeviceType::DiscreteGpu, arithmetic) > 1.0);
        assert!(predict(DeviceType::DiscreteGpu, Cost::default()) < 1e-5);
    }
}
