//! Where the keys of a token lie: runs of neighbours in the cache.

use crate::ops::attention::Keys;
use crate::ops::paged::Shape;
use std::ops::Range;

/// Keys of a run of floats at most, a measured choice: rows of all heads are 4 KiB apart or more, and these and the next
/// ones have to stay in the second cache and in the table of pages. In f16 at 128K keys runs of 16 took a sixth longer
/// and runs of 64 three fifths.
pub(super) const RUN: usize = 32;

/// Keys that a unit of work takes, unless that made more than [`PIECES`].
const PIECE: usize = 1024;

/// Units that the keys of a row and part are cut into at most.
const PIECES: usize = 16;

/// Neighbouring keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Codes: `at` is a page of the pool and `from` the first token in it; else `at` is a row of floats.
    pub(super) codes: bool,
    pub(super) at: usize,
    pub(super) from: usize,
    pub(super) count: usize,
    /// Scored with the query for sinks.
    pub(super) sinks: bool,
}

/// Where the keys of one sequence are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Pages of the pool.
    pub(super) table: &'a [u32],
    /// Pages there are.
    pub(super) pages: usize,
    /// Keys below this are codes; 0 without codes.
    pub(super) boundary: usize,
    /// First row of the ring and its rows; `None` without codes: then floats are in pages.
    pub(super) ring: Option<(usize, usize)>,
}

/// How many keys each piece of `n` takes: fixed by `n` alone, so that results do not depend on threads.
pub(super) fn piece(n: usize) -> usize {
    n.div_ceil(PIECES).next_multiple_of(128).max(PIECE)
}

/// The keys numbered `numbers`, as ranges that are sinks or not.
fn ranges(keys: &Keys, numbers: Range<usize>, sink_end: usize) -> [(Range<usize>, bool); 3] {
    let before = keys.sinks.len();
    let sinks =
        keys.sinks.start as usize + numbers.start.min(before)..keys.sinks.start as usize + numbers.end.min(before);
    let window = keys.window.start as usize + numbers.start.max(before) - before
        ..keys.window.start as usize + numbers.end.max(before) - before;
    let middle = sink_end.clamp(window.start, window.end);
    [(sinks, true), (window.start..middle, true), (middle..window.end, false)]
}

/// Runs of the keys numbered `numbers`. Keys in pages that the pool does not have are left out.
pub(super) fn runs(shape: &Shape, place: &Place<'_>, keys: &Keys, numbers: Range<usize>, sink_end: usize) -> Vec<Run> {
    let mut runs = Vec::with_capacity(numbers.len() / RUN + 4);
    for (range, sinks) in ranges(keys, numbers, sink_end) {
        let mut key = range.start;
        while key < range.end {
            let (index, from) = (key / shape.page, key % shape.page);
            let left = (range.end - key).min(shape.page - from);
            let found = match place.ring {
                Some((first, rows)) if key >= place.boundary => {
                    let row = key % rows;
                    let count = (range.end - key).min(rows - row).min(RUN);
                    Run { codes: false, at: first + row, from: 0, count, sinks }
                }
                _ => {
                    let page = place.table.get(index).map_or(usize::MAX, |&page| page as usize);
                    if page >= place.pages {
                        key += left;
                        continue;
                    }
                    if place.ring.is_some() {
                        Run { codes: true, at: page, from, count: left.min(place.boundary - key), sinks }
                    } else {
                        Run { codes: false, at: page * shape.page + from, from: 0, count: left.min(RUN), sinks }
                    }
                }
            };
            key += found.count;
            runs.push(found);
        }
    }
    runs
}
