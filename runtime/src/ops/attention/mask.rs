//! Which keys of its span a token sees.

use std::ops::Range;

/// No window: every key of the span is seen.
pub const NO_WINDOW: u32 = u32::MAX;

/// What a token sees of its span: the first `sinks` keys and the last `window`.
///
/// With spans that the host chooses (causal, both directions, a prefix, a document) this gives sliding windows
/// (Beltagy et al. 2020) and attention sinks (Xiao et al. 2023) over any of them, without an `m × t` array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Keys from the end of the span, at least 1; [`NO_WINDOW`] for all.
    pub window: u32,
    /// Keys from its beginning that are seen whatever the window is.
    pub sinks: u32,
}

impl Default for Mask {
    fn default() -> Self {
        Mask::WHOLE
    }
}

impl Mask {
    /// The whole span.
    pub const WHOLE: Mask = Mask { window: NO_WINDOW, sinks: 0 };

    /// The last `window` keys.
    pub const fn window(window: u32) -> Mask {
        Mask { window, sinks: 0 }
    }

    /// The keys of `span` (first and last, inclusive) that are seen, of `t`.
    pub fn keys(&self, [first, last]: [u32; 2], t: u32) -> Keys {
        let end = last.saturating_add(1).min(t);
        let first = first.min(end);
        let start = end.saturating_sub(self.window).max(first);
        Keys { sinks: first..first.saturating_add(self.sinks).min(start), window: start..end, sink_end: first.saturating_add(self.sinks) }
    }
}

/// Keys that a token sees: two ranges, rising and apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Those before the window.
    pub sinks: Range<u32>,
    /// Those of the window; the first of them may be sinks as well, see [`Keys::is_sink`].
    pub window: Range<u32>,
    sink_end: u32,
}

/// Keys of a part are a multiple of this.
pub const PART: u32 = 128;

impl Keys {
    /// How many.
    pub fn len(&self) -> u32 {
        (self.sinks.end - self.sinks.start) + (self.window.end - self.window.start)
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Is a key among the first `sinks` of the span?
    pub fn is_sink(&self, key: u32) -> bool {
        key < self.sink_end
    }

    /// All of them, rising.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.sinks.clone().chain(self.window.clone())
    }

    /// Part `j` of `parts`: numbered in rising order, `size = ⌈⌈n / parts⌉ / 128⌉ · 128` keys each.
    pub fn part(&self, j: u32, parts: u32) -> Keys {
        let (n, before) = (self.len(), self.sinks.end - self.sinks.start);
        let size = n.div_ceil(parts.max(1)).next_multiple_of(PART);
        let (from, to) = (j.saturating_mul(size).min(n), j.saturating_add(1).saturating_mul(size).min(n));
        let sink = |at: u32| self.sinks.start + at.min(before);
        let key = |at: u32| self.window.start + at.max(before) - before;
        Keys { sinks: sink(from)..sink(to), window: key(from)..key(to), sink_end: self.sink_end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_token_sees_the_first_and_the_last_keys_of_its_span() {
        let seed = crate::random::fresh_seed();
        let mut random = Random::new(seed);
        for _ in 0..500 {
            let mut draw = |n: u64| random.below(n) as u32;
            let (mask, span, t) = (Mask { window: 1 + draw(40), sinks: draw(9) }, [draw(50), draw(60)], 1 + draw(50));
            let end = (span[1] + 1).min(t);
            let seen = (span[0]..end).filter(|&k| k < span[0] + mask.sinks || k + mask.window >= end);
            let seen: Vec<u32> = seen.collect();
            let keys = mask.keys(span, t);
            assert_eq!(keys.iter().collect::<Vec<_>>(), seen, "seed {seed}: {mask:?} of {span:?}, {t} keys");
            let parts = 1 + draw(4);
            let joined: Vec<u32> = (0..parts).flat_map(|j| keys.part(j, parts).iter().collect::<Vec<_>>()).collect();
            assert_eq!(joined, seen, "seed {seed}: {parts} parts");
        }
        assert_eq!(Mask::WHOLE.keys([3, u32::MAX], 9).window, 3..9);
    }

    #[test]
    fn parts_are_whole_multiples_of_128_keys() {
        let keys = Mask { window: 1000, sinks: 4 }.keys([0, 1999], 4000);
        let sizes: Vec<u32> = (0..4).map(|j| keys.part(j, 4).len()).collect();
        assert_eq!(sizes, [256, 256, 256, 236]);
        assert_eq!(keys.part(0, 4).sinks, 0..4);
    }
}
