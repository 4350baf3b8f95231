//! What is in use of a device's memory, in one place, and the budget that no allocation goes beyond.
//!
//! A backend asks its [`Ledger`] before it asks its driver, for tensors and slabs as well as for slots, staging and
//! scratch memory, and holds what it was given ([`Held`]) for as long as the memory lives. So a budget does not rest
//! on plans being right: a plan that was too small ends in an error, before anything is taken, and all that was
//! there before goes on working.

use crate::device::Caps;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The limit of a ledger that has none.
const NONE: u64 = u64::MAX;

/// Bytes of one device.
#[derive(Debug)]
pub struct Ledger {
    /// `id (name)` of the device, for messages.
    device: String,
    used: AtomicU64,
    beside: AtomicU64,
    peak: AtomicU64,
    limit: AtomicU64,
}

/// What bytes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What plans count.
    Planned,
    /// What a run takes [beside its plan](crate::budget::overhead): staging of reads, parameters, clocks.
    Beside,
}

/// Bytes that are in use until this is dropped.
#[derive(Debug)]
pub struct Held {
    ledger: Arc<Ledger>,
    kind: Kind,
    bytes: u64,
}

impl Ledger {
    /// Of a device, without a limit.
    pub fn new(caps: &Caps) -> Arc<Ledger> {
        let device = format!("{} ({})", caps.id, caps.name);
        Arc::new(Ledger { device, used: 0.into(), beside: 0.into(), peak: 0.into(), limit: NONE.into() })
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Those of them that plans count.
    pub fn planned(&self) -> u64 {
        // What another thread gives back just now may be gone from one of the two only.
        self.used().saturating_sub(self.beside.load(Relaxed))
    }

    /// The most that was in use at a time.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// Bytes that may be in use, if that was limited.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Relaxed)).filter(|&limit| limit != NONE)
    }

    /// Limits what may be in use from now on, or lifts the limit. What is in use already stays.
    pub fn set_limit(&self, bytes: Option<u64>) {
        self.limit.store(bytes.unwrap_or(NONE), Relaxed);
    }

    /// Counts bytes for something that is named in messages.
    ///
    /// # Errors
    /// Refuses what would go beyond the limit, with the figures; nothing is counted then.
    pub fn take(self: &Arc<Self>, kind: Kind, bytes: u64, what: &str) -> Result<Held> {
        let limit = self.limit.load(Relaxed);
        let more = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= limit);
        match self.used.fetch_update(Relaxed, Relaxed, more) {
            Ok(before) => {
                self.peak.fetch_max(before + bytes, Relaxed);
                if kind == Kind::Beside {
                    self.beside.fetch_add(bytes, Relaxed);
                }
                Ok(Held { ledger: self.clone(), kind, bytes })
            }
            Err(used) => Err(Error::OverBudget {
                what: format!("`{what}`"),
                device: self.device.clone(),
                needed: bytes,
                used,
                budget: limit,
            }),
        }
    }
}

impl Held {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether they are counted in a ledger.
    pub fn is_of(&self, ledger: &Arc<Ledger>) -> bool {
        Arc::ptr_eq(&self.ledger, ledger)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.used.fetch_sub(self.bytes, Relaxed);
        if self.kind == Kind::Beside {
            self.ledger.beside.fetch_sub(self.bytes, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Kind::{Beside, Planned};
    use super::*;

    fn ledger() -> Arc<Ledger> {
        Ledger::new(&Caps { id: "cpu".into(), name: "a processor".into(), ..Caps::default() })
    }

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped() {
        let ledger = ledger();
        let one = ledger.take(Planned, 100, "one").unwrap();
        let two = ledger.take(Beside, 50, "two").unwrap();
        assert_eq!((ledger.used(), ledger.planned(), ledger.peak(), ledger.limit()), (150, 100, 150, None));
        assert!(one.is_of(&ledger) && two.bytes() == 50);
        drop(one);
        assert_eq!((ledger.used(), ledger.peak()), (50, 150));
        drop(two);
        assert_eq!((ledger.used(), ledger.planned()), (0, 0));
    }

    #[test]
    fn nothing_goes_beyond_the_limit_and_the_refusal_has_the_figures() {
        let ledger = ledger();
        ledger.set_limit(Some(1000));
        let held = ledger.take(Planned, 600, "weights").unwrap();
        let refused = ledger.take(Planned, 401, "logits").unwrap_err().to_string();
        for part in ["`logits`", "401 B", "600 B", "1.0 kB", "cpu (a processor)", "--memory-limit"] {
            assert!(refused.contains(part), "`{part}` is not in: {refused}");
        }
        assert!(ledger.take(Planned, u64::MAX, "all").is_err());
        assert_eq!((ledger.used(), ledger.peak()), (600, 600));
        let rest = ledger.take(Planned, 400, "logits").unwrap();
        drop((held, rest));
        assert_eq!(ledger.used(), 0);
        // A limit below what is in use takes nothing away, and gives nothing more.
        let held = ledger.take(Planned, 600, "weights").unwrap();
        ledger.set_limit(Some(10));
        assert!(ledger.take(Planned, 1, "one byte").is_err() && ledger.take(Planned, 0, "nothing").is_err());
        drop(held);
        assert!(ledger.take(Planned, 10, "ten bytes").is_ok());
    }

    #[test]
    fn threads_together_stay_within_the_limit() {
        let ledger = ledger();
        ledger.set_limit(Some(1000));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let held: Vec<Held> = (0..5).map_while(|_| ledger.take(Planned, 90, "part").ok()).collect();
                        assert!(ledger.used() <= 1000);
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(ledger.used(), 0);
        assert!(ledger.peak() <= 1000 && ledger.peak() >= 450);
    }
}
