//! Time on the device by timestamps at the beginning and the end of compute passes.

use super::context::Context;
use super::fetch::{self, Read};
use super::memory::Counted;
use crate::bench::median;
use crate::error::Result;
use crate::ledger::Kind;
use std::sync::Arc;
use std::time::Duration;
use wgpu::{BufferUsages, ComputePassTimestampWrites, QuerySet};

/// Queries in one set, two for each pass.
const SET: u32 = wgpu::QUERY_SET_MAX_QUERIES;

/// Passes under measurement, each counted to a label.
pub(super) struct Clock {
    sets: Vec<QuerySet>,
    labels: Vec<usize>,
}

impl Clock {
    /// A clock for up to `passes` passes; the device must have timestamps.
    pub(super) fn new(context: &Context, passes: usize) -> Clock {
        let set = |_| {
            context.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("clock"),
                ty: wgpu::QueryType::Timestamp,
                count: SET,
            })
        };
        let sets = (0..(2 * passes).div_ceil(SET as usize)).map(set).collect();
        Clock { sets, labels: Vec::with_capacity(passes) }
    }

    /// Timestamps of the next pass; `None` past the number of passes it was made for.
    pub(super) fn pass(&mut self, label: usize) -> Option<ComputePassTimestampWrites<'_>> {
        let query = 2 * self.labels.len() as u32;
        let query_set = self.sets.get((query / SET) as usize)?;
        self.labels.push(label);
        Some(ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(query % SET),
            end_of_pass_write_index: Some(query % SET + 1),
        })
    }

    /// Ends the measurement after all that was submitted.
    pub(super) fn stop(self, context: &Arc<Context>) -> Result<Reading> {
        let bytes = 16 * self.labels.len() as u64;
        let descriptor = wgpu::BufferDescriptor {
            label: Some("clock"),
            size: bytes.max(16),
            usage: BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        };
        let resolved = Counted::new(context, Kind::Beside, &descriptor)?;
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let mut left = 2 * self.labels.len() as u32;
        for (i, set) in self.sets.iter().enumerate() {
            let count = left.min(SET);
            if count > 0 {
                encoder.resolve_query_set(set, 0..count, &resolved, 8 * u64::from(SET) * i as u64);
            }
            left -= count;
        }
        let read = fetch::start_after(context, encoder, &resolved, 0, bytes.max(16))?;
        let period = f64::from(context.queue.get_timestamp_period());
        Ok(Reading { read, labels: self.labels, period })
    }
}

/// Times under way to the host.
pub(super) struct Reading {
    read: Read,
    labels: Vec<usize>,
    /// Nanoseconds of one tick.
    period: f64,
}

impl Reading {
    /// Time of each label below `labels`, waiting for it.
    pub(super) fn wait(self, labels: usize) -> Result<Vec<Duration>> {
        use crate::device::Pending;
        let bytes = Box::new(self.read).wait()?;
        Ok(durations(&bytes, &self.labels, self.period, labels))
    }

    /// As [`Reading::wait`] if it is there already; gives the reading back if it is not.
    pub(super) fn try_wait(self, labels: usize) -> std::result::Result<Result<Vec<Duration>>, Reading> {
        let Reading { read, labels: of, period } = self;
        match read.try_finish() {
            Ok(bytes) => Ok(bytes.map(|bytes| durations(&bytes, &of, period, labels))),
            Err(read) => Err(Reading { read, labels: of, period }),
        }
    }
}

fn durations(bytes: &[u8], of: &[usize], period: f64, labels: usize) -> Vec<Duration> {
    let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
    let mut times = vec![Duration::ZERO; labels];
    for (pair, &label) in ticks.chunks_exact(2).zip(of) {
        if let Some(time) = times.get_mut(label) {
            *time += Duration::from_nanos((pair[1].saturating_sub(pair[0]) as f64 * period) as u64);
        }
    }
    times
}

/// The median of each label over runs.
pub(super) fn medians(runs: &[Vec<Duration>]) -> Vec<Duration> {
    let labels = runs.first().map_or(0, Vec::len);
    let of = |label: usize| runs.iter().filter_map(|run| run.get(label).copied()).collect();
    (0..labels).map(|label| median(of(label), Duration::cmp)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time_by_label_and_backward_clocks_count_nothing() {
        let ticks: [u64; 8] = [100, 150, 200, 230, 9, 5, 1000, 1001];
        let times = durations(bytemuck::cast_slice(&ticks), &[0, 1, 1, 0], 10.0, 2);
        assert_eq!(times, [Duration::from_nanos(510), Duration::from_nanos(300)]);
    }

    #[test]
    fn a_median_is_taken_over_runs() {
        let run = |a: u64, b: u64| vec![Duration::from_nanos(a), Duration::from_nanos(b)];
        let medians = medians(&[run(1, 30), run(9, 10), run(2, 20)]);
        assert_eq!(medians, run(2, 20));
    }
}
