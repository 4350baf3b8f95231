//! Cards that a plan is held against, by the memory that their makers state.

use serde::Serialize;
use tritter_runtime::budget::{Desktop, safe};

/// A card, or a chip whose GPU uses the system's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Card {
    pub(crate) name: &'static str,
    /// Memory in GiB (makers' "GB" of cards are 2^30).
    pub(crate) gib: u64,
    /// Where it usually works: at a desktop, in a server, or as a part of a Mac.
    #[serde(skip)]
    pub(crate) place: Place,
}

/// Who else uses the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A desktop of the kind that is asked for.
    Desk,
    /// Nobody.
    Server,
    /// macOS.
    Mac,
}

/// Cards of the matrix, from small to large within a maker.
pub(crate) const CARDS: &[Card] = &[
    card("RTX 3080", 10, Place::Desk),
    card("RTX 4070 Ti", 12, Place::Desk),
    card("RTX 4080", 16, Place::Desk),
    card("RTX 5080", 16, Place::Desk),
    card("RTX 3090", 24, Place::Desk),
    card("RTX 4090", 24, Place::Desk),
    card("RTX 5090", 32, Place::Desk),
    card("A10", 24, Place::Server),
    card("A100 40", 40, Place::Server),
    card("L40", 48, Place::Server),
    card("A100 80", 80, Place::Server),
    card("H100", 80, Place::Server),
    card("MI300X", 192, Place::Server),
    card("Apple M 16", 16, Place::Mac),
    card("Apple M Pro 36", 36, Place::Mac),
    card("Apple M Max 64", 64, Place::Mac),
    card("Apple M Ultra 192", 192, Place::Mac),
];

const fn card(name: &'static str, gib: u64, place: Place) -> Card {
    Card { name, gib, place }
}

impl Card {
    /// All its memory in bytes.
    pub(crate) fn total(&self) -> u64 {
        self.gib << 30
    }

    /// Bytes that may be planned with, at a desktop of this kind.
    pub(crate) fn budget(&self, desktop: Desktop) -> u64 {
        let desktop = match self.place {
            Place::Desk => desktop,
            Place::Server => Desktop::Headless,
            Place::Mac => Desktop::MacOs,
        };
        safe(self.total(), desktop.reserve())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_of_the_list_has_a_budget_below_its_memory() {
        let mut names: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
        for card in CARDS {
            let budget = card.budget(Desktop::Windows);
            assert!(budget > card.total() / 2 && budget < card.total() * 9 / 10, "{}: {budget}", card.name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CARDS.len(), "a card is listed twice");
    }

    #[test]
    fn a_server_keeps_less_than_a_desktop() {
        let [Some(desk), Some(server)] = ["RTX 4090", "A10"].map(|name| CARDS.iter().find(|card| card.name == name))
        else {
            unreachable!("both are in the list")
        };
        assert!(desk.budget(Desktop::X11) < server.budget(Desktop::X11));
    }
}
