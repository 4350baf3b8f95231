//! Where the tokens of sequences lie in a paged cache: positions to slots, pages, boundaries and codes.
//!
//! Beside integers a token at position `i` sees keys below its *boundary* as codes and the others whole, in the
//! ring. The boundary, `⌊(i + 1 − residual) / page⌋ · page`, follows from the position alone, so logits do not
//! depend on how a text was cut into chunks. A page becomes codes in the run that moves the boundary past it.
//!
//! Going back further than the ring reaches loses whole rows that a token would have seen. The sequence then goes
//! back to the beginning of a page, and its boundary never falls below that.

use crate::cache::CacheShape;
use crate::pages::Pages;
use crate::programs::Row;
use tritter_runtime::ops::attention::mask::NO_WINDOW;

/// Tokens behind a window that stay in the cache, so that drafts and surplus steps can be taken back.
pub(crate) const SLACK: usize = 64;

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stand {
    /// Tokens in the cache.
    pub(crate) position: usize,
    /// Tokens ever written since the ring was last whole: it holds the newest of them.
    pub(crate) written: usize,
    /// Tokens that are codes.
    pub(crate) coded: usize,
    /// The least boundary.
    pub(crate) floor: usize,
    /// First token after the sinks that was not dropped behind a window.
    pub(crate) kept: usize,
}

/// All sequences of a cache.
#[derive(Debug)]
pub(crate) struct Sequences {
    pub(crate) shape: CacheShape,
    pub(crate) pages: Pages,
    pub(crate) each: Vec<Stand>,
}

/// What must be copied before a page that others hold as well can be written: from, to.
pub(crate) type Copied = (u32, u32);

impl Sequences {
    pub(crate) fn new(shape: CacheShape) -> Sequences {
        let pages = Pages::new(shape.pages, shape.sequences, shape.entries);
        Sequences { shape, pages, each: vec![Stand::default(); shape.sequences] }
    }

    fn page(&self) -> usize {
        self.shape.format.page
    }

    fn integers(&self) -> bool {
        self.shape.format.bits().is_some()
    }

    /// First key that a token at a position sees whole; 0 beside floats.
    pub(crate) fn boundary(&self, sequence: usize, position: usize) -> usize {
        if !self.integers() {
            return 0;
        }
        let old = (position + 1).saturating_sub(self.shape.format.residual);
        (old / self.page() * self.page()).max(self.each[sequence].floor)
    }

    /// Entries of the table that must name pages before the next `tokens` tokens can be fed.
    fn entries(&self, sequence: usize, tokens: usize) -> (usize, usize) {
        let stand = self.each[sequence];
        let end = stand.position + tokens;
        if self.integers() {
            let boundary = if end == 0 { 0 } else { self.boundary(sequence, end - 1) };
            (stand.coded / self.page(), boundary / self.page())
        } else {
            (stand.position / self.page(), end.div_ceil(self.page()))
        }
    }

    /// Beginning of the first page behind the sinks that tokens may still see, where there is a window.
    fn seen_from(&self, stand: &Stand) -> Option<usize> {
        let CacheShape { window, sinks, .. } = self.shape;
        let page = self.page();
        let seen = (stand.position + 1).saturating_sub(window.saturating_add(SLACK as u32) as usize) / page * page;
        // Beside integers a page is held from when it becomes codes on; before that there is nothing to drop.
        let seen = if self.integers() { seen.min(stand.coded) } else { seen };
        (window != NO_WINDOW && seen > (sinks as usize).next_multiple_of(page).max(stand.kept)).then_some(seen)
    }

    /// Drops what no later token sees.
    fn drop_behind(&mut self, sequence: usize) {
        if let Some(seen) = self.seen_from(&self.each[sequence]) {
            let (page, stand) = (self.page(), &mut self.each[sequence]);
            let from = (self.shape.sinks as usize).div_ceil(page).max(stand.kept / page);
            stand.kept = seen;
            self.pages.give(sequence, from, seen / page);
        }
    }

    /// Takes pages for the next `tokens` tokens of a sequence, and says what must be copied before they are written;
    /// `None`, and nothing is taken, if there are too few.
    pub(crate) fn reserve(&mut self, sequence: usize, tokens: usize) -> Option<Option<Copied>> {
        self.drop_behind(sequence);
        let (from, to) = self.entries(sequence, tokens);
        let shared = from < to && self.pages.shared(sequence, from);
        if self.pages.missing(sequence, from, to) + usize::from(shared) > self.pages.free() {
            return None;
        }
        let mut copied = None;
        if shared && let Some(old) = self.pages.page(sequence, from) {
            self.pages.give(sequence, from, from + 1);
            self.pages.take(sequence, from, from + 1);
            copied = self.pages.page(sequence, from).map(|new| (old, new));
        }
        self.pages.take(sequence, from, to).then_some(copied)
    }

    /// Ring rows and pages of what becomes codes when the next `tokens` tokens of a sequence are fed.
    pub(crate) fn groups(&self, sequence: usize, tokens: usize) -> Vec<[u32; 2]> {
        if !self.integers() {
            return Vec::new();
        }
        let (from, to) = self.entries(sequence, tokens);
        let row = |entry: usize| self.slot(sequence, entry * self.page());
        (from..to).filter_map(|entry| self.pages.page(sequence, entry).map(|page| [row(entry), page])).collect()
    }

    /// The sequence has been fed so many tokens.
    pub(crate) fn advance(&mut self, sequence: usize, tokens: usize) {
        let (_, to) = self.entries(sequence, tokens);
        let integers = self.integers();
        let page = self.page();
        let stand = &mut self.each[sequence];
        stand.position += tokens;
        stand.written = stand.written.max(stand.position);
        if integers {
            stand.coded = stand.coded.max(to * page);
        }
    }

    /// Lets a sequence stand where another stands, over the same pages.
    pub(crate) fn share(&mut self, from: usize, sequence: usize) {
        let stand = self.each[from];
        let end = if self.integers() { stand.coded } else { stand.position };
        self.pages.share(from, sequence, end.div_ceil(self.page()));
        self.each[sequence] = stand;
    }

    /// Where a sequence stands that was fed so many tokens.
    pub(crate) fn stand_at(&self, tokens: usize) -> Stand {
        let old = tokens.saturating_sub(self.shape.format.residual) / self.page() * self.page();
        let coded = if self.integers() { old } else { 0 };
        let stand = Stand { position: tokens, written: tokens, coded, ..Stand::default() };
        Stand { kept: self.seen_from(&stand).unwrap_or(0), ..stand }
    }

    /// Entries of the table that a sequence needs where it stands.
    pub(crate) fn held(&self, sequence: usize) -> Vec<usize> {
        let (stand, page) = (self.each[sequence], self.page());
        let end = if self.integers() { stand.coded } else { stand.position };
        let sinks = (self.shape.sinks as usize).div_ceil(page);
        (0..end.div_ceil(page)).filter(|i| *i < sinks || *i >= stand.kept / page).collect()
    }

    /// Whole row of the cache where a token lies.
    fn slot(&self, sequence: usize, position: usize) -> u32 {
        let (page, ring) = (self.page(), self.shape.ring);
        if self.integers() {
            return (sequence * ring + position % ring) as u32;
        }
        let first = self.pages.page(sequence, position / page).map(|p| p as usize * page + position % page);
        first.map_or(u32::MAX, |slot| slot as u32)
    }

    /// The row of a sequence's token `ahead` of its position.
    pub(crate) fn row(&self, sequence: usize, ahead: usize) -> Row {
        let position = self.each[sequence].position + ahead;
        let CacheShape { window, sinks, .. } = self.shape;
        // In the cache a query stands behind the sinks and the window.
        let in_cache = if sinks == 0 { position } else { position.min(window as usize + sinks as usize - 1) };
        Row {
            position: position as u32,
            slot: self.slot(sequence, position),
            seen: [sequence, 0, position, self.boundary(sequence, position)].map(|v| v as u32),
            turn: (position - in_cache) as u32,
        }
    }

    /// A row that sees and keeps nothing.
    pub(crate) fn dead() -> Row {
        Row { position: 0, slot: u32::MAX, seen: [0, 1, 0, 0], turn: 0 }
    }

    /// Goes back to `position` or, where that cannot be done, as little further as possible; gives where it stands.
    pub(crate) fn rewind(&mut self, sequence: usize, position: usize) -> usize {
        let page = self.page();
        let window = self.shape.window as usize;
        let stand = self.each[sequence];
        let mut to = position.min(stand.position);
        if self.integers() && !self.remembers(sequence, to) {
            to = to.min(stand.coded) / page * page;
            self.each[sequence].floor = to;
            self.each[sequence].written = to;
        }
        // Keys that were dropped behind a window cannot be seen again.
        if stand.kept > 0 && (to + 1).saturating_sub(window) < stand.kept {
            to = 0;
        }
        if self.integers() {
            let coded = stand.coded.min(to / page * page);
            self.pages.give(sequence, coded / page, stand.coded.div_ceil(page));
            self.each[sequence].coded = coded;
        } else {
            self.pages.give(sequence, to.div_ceil(page), stand.position.div_ceil(page));
        }
        self.each[sequence].position = to;
        if to == 0 {
            self.pages.give(sequence, 0, self.shape.entries);
            self.each[sequence] = Stand::default();
        }
        to
    }

    /// Does the ring hold every whole row that a token at a position sees? It holds none below the floor.
    fn remembers(&self, sequence: usize, position: usize) -> bool {
        let Stand { written, floor, .. } = self.each[sequence];
        position >= floor && self.boundary(sequence, position) >= written.saturating_sub(self.shape.ring)
    }
}
