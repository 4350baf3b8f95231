//! Which part of a circular buffer may be written next.

use std::collections::VecDeque;

/// Parts begin at multiples of this many bytes.
const ALIGNED: usize = 64;

/// Most parts in use at once; beyond, the oldest is waited for.
const MOST: usize = 256;

/// Places in a buffer of `size` bytes. A part is in use from [`Ring::keep`] until its fence was waited
/// for, which [`Ring::reserve`] does, the oldest first.
pub(super) struct Ring<F> {
    size: usize,
    head: usize,
    used: VecDeque<Part<F>>,
}

struct Part<F> {
    begin: usize,
    end: usize,
    fence: F,
}

impl<F> Ring<F> {
    pub(super) fn new(size: usize) -> Ring<F> {
        Ring { size, head: 0, used: VecDeque::new() }
    }

    /// Where `bytes` bytes (at most the size) can be written, once `wait` has waited for the fences
    /// that it is given.
    pub(super) fn reserve<E>(&mut self, bytes: usize, mut wait: impl FnMut(F) -> Result<(), E>) -> Result<usize, E> {
        debug_assert!(bytes <= self.size);
        let begin = if self.head + bytes <= self.size { self.head } else { 0 };
        let overlaps = |part: &Part<F>| part.begin < begin + bytes && begin < part.end;
        while self.used.len() >= MOST || self.used.iter().any(overlaps) {
            let Some(part) = self.used.pop_front() else { break };
            wait(part.fence)?;
        }
        Ok(begin)
    }

    /// Takes what was reserved last: it is in use until `fence`.
    pub(super) fn keep(&mut self, begin: usize, bytes: usize, fence: F) {
        let end = (begin + bytes).next_multiple_of(ALIGNED);
        self.head = if end < self.size { end } else { 0 };
        self.used.push_back(Part { begin, end, fence });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reserves and keeps; gives the place and the fences that were waited for.
    fn take(ring: &mut Ring<u32>, bytes: usize, fence: u32) -> (usize, Vec<u32>) {
        let mut waited = Vec::new();
        let at = ring.reserve(bytes, |fence| -> Result<(), ()> {
            waited.push(fence);
            Ok(())
        });
        let at = at.unwrap_or(usize::MAX);
        ring.keep(at, bytes, fence);
        (at, waited)
    }

    #[test]
    fn parts_follow_each_other_and_wrap_when_the_oldest_is_done() {
        let mut ring = Ring::new(256);
        assert_eq!(take(&mut ring, 4, 0), (0, vec![]));
        assert_eq!(take(&mut ring, 100, 1), (64, vec![]));
        assert_eq!(take(&mut ring, 64, 2), (192, vec![]));
        assert_eq!(take(&mut ring, 64, 3), (0, vec![0]));
        assert_eq!(take(&mut ring, 256, 4), (0, vec![1, 2, 3]));
        assert_eq!(take(&mut ring, 1, 5), (0, vec![4]));
    }

    #[test]
    fn what_does_not_fit_before_the_end_begins_again() {
        let mut ring = Ring::new(256);
        assert_eq!(take(&mut ring, 128, 0), (0, vec![]));
        assert_eq!(take(&mut ring, 64, 1), (128, vec![]));
        // 64 bytes are left at the end; both parts lie before or in the place that is taken.
        assert_eq!(take(&mut ring, 129, 2), (0, vec![0, 1]));
    }

    #[test]
    fn many_small_parts_are_limited() {
        let mut ring = Ring::new(1 << 20);
        for fence in 0..256 {
            assert_eq!(take(&mut ring, 4, fence).1, []);
        }
        assert_eq!(take(&mut ring, 4, 256).1, [0]);
    }

    #[test]
    fn no_two_parts_in_use_overlap() {
        let mut ring = Ring::new(1024);
        let mut used: Vec<(u32, usize, usize)> = Vec::new();
        let mut random = 1u32;
        for fence in 0..5000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = (random >> 20) as usize % 600 + 1;
            let (at, waited) = take(&mut ring, bytes, fence);
            assert!(at + bytes <= 1024 && at.is_multiple_of(64));
            used.retain(|(fence, ..)| !waited.contains(fence));
            assert!(used.iter().all(|&(_, begin, end)| at + bytes <= begin || end <= at), "{used:?} {at} {bytes}");
            used.push((fence, at, at + bytes));
        }
    }

    #[test]
    fn a_wait_that_fails_is_passed_on() {
        let mut ring = Ring::new(64);
        ring.keep(0, 64, 7);
        assert_eq!(ring.reserve(1, Err), Err(7));
    }
}
