//! Which pages of the pool hold what: the host's side of a paged cache.
//!
//! A page belongs to one sequence or, after a [fork](Pages::share), to several; it goes back to the pool when the
//! last of them gives it up. Which device memory a page is, is for [`crate::session`] to know.

/// No page.
pub(crate) const NONE: u32 = u32::MAX;

/// The pool and the block table.
#[derive(Debug)]
pub(crate) struct Pages {
    free: Vec<u32>,
    users: Vec<u32>,
    table: Vec<Vec<u32>>,
    /// Sequences whose row of the table changed since it was last written, and where first.
    changed: Vec<Option<(usize, usize)>>,
}

impl Pages {
    pub(crate) fn new(pages: usize, sequences: usize, entries: usize) -> Pages {
        Pages {
            free: (0..pages as u32).rev().collect(),
            users: vec![0; pages],
            table: vec![vec![NONE; entries]; sequences],
            changed: vec![None; sequences],
        }
    }

    /// Pages that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// The page that entry `i` of a sequence names, if any.
    pub(crate) fn page(&self, sequence: usize, i: usize) -> Option<u32> {
        self.table[sequence].get(i).copied().filter(|&page| page != NONE)
    }

    /// Pages that a sequence holds among entries `from .. to`.
    pub(crate) fn missing(&self, sequence: usize, from: usize, to: usize) -> usize {
        (from..to).filter(|&i| self.page(sequence, i).is_none()).count()
    }

    /// Gives a sequence pages for all of entries `from .. to`, or none if there are too few.
    pub(crate) fn take(&mut self, sequence: usize, from: usize, to: usize) -> bool {
        if to > self.table[sequence].len() || self.missing(sequence, from, to) > self.free.len() {
            return false;
        }
        for i in from..to {
            if self.page(sequence, i).is_none()
                && let Some(page) = self.free.pop()
            {
                self.users[page as usize] = 1;
                self.set(sequence, i, page);
            }
        }
        true
    }

    /// Gives up entries `from .. to` of a sequence.
    pub(crate) fn give(&mut self, sequence: usize, from: usize, to: usize) {
        for i in from..to.min(self.table[sequence].len()) {
            if let Some(page) = self.page(sequence, i) {
                let users = &mut self.users[page as usize];
                *users -= 1;
                if *users == 0 {
                    self.free.push(page);
                }
                self.set(sequence, i, NONE);
            }
        }
    }

    /// Lets a sequence hold the same pages as another in entries `0 .. to`.
    pub(crate) fn share(&mut self, from: usize, sequence: usize, to: usize) {
        self.give(sequence, 0, to);
        for i in 0..to {
            if let Some(page) = self.page(from, i) {
                self.users[page as usize] += 1;
                self.set(sequence, i, page);
            }
        }
    }

    /// Does anybody else hold the page of this entry?
    pub(crate) fn shared(&self, sequence: usize, i: usize) -> bool {
        self.page(sequence, i).is_some_and(|page| self.users[page as usize] > 1)
    }

    fn set(&mut self, sequence: usize, i: usize, page: u32) {
        self.table[sequence][i] = page;
        let changed = &mut self.changed[sequence];
        *changed = Some(changed.map_or((i, i + 1), |(a, b)| (a.min(i), b.max(i + 1))));
    }

    /// What must be written to the device's table: sequence, first entry, entries.
    pub(crate) fn changes(&mut self) -> Vec<(usize, usize, &[u32])> {
        let table = &self.table;
        let changed = self.changed.iter_mut().enumerate();
        changed.filter_map(|(s, c)| c.take().map(|(a, b)| (s, a, &table[s][a..b]))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_back_when_the_last_sequence_gives_them_up() {
        let mut pages = Pages::new(5, 2, 4);
        assert!(pages.take(0, 0, 3));
        assert_eq!(pages.free(), 2);
        pages.share(0, 1, 2);
        assert!(pages.shared(1, 0) && !pages.shared(0, 2));
        assert_eq!(pages.page(1, 1), pages.page(0, 1));
        assert!(pages.take(1, 2, 4));
        assert!(!pages.take(0, 3, 4), "the pool is empty");
        pages.give(0, 0, 4);
        assert_eq!(pages.free(), 1, "two pages are still the other's");
        pages.give(1, 0, 4);
        assert_eq!(pages.free(), 5);
        assert!(!pages.take(0, 3, 5), "the table has four entries");
    }

    #[test]
    fn only_what_changed_is_written() {
        let mut pages = Pages::new(8, 2, 4);
        assert!(pages.take(1, 1, 3));
        let written: Vec<_> = pages.changes().iter().map(|(s, a, e)| (*s, *a, e.len())).collect();
        assert_eq!(written, [(1, 1, 2)]);
        assert!(pages.changes().is_empty());
        assert!(pages.take(1, 1, 3) && pages.changes().is_empty(), "nothing new");
    }
}
