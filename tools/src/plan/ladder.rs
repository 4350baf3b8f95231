//! What is given up, and in which order, when a plan does not fit its budget.
//!
//! A ladder is a list of rungs. Each makes settings cheaper by one step (a smaller chunk, the next smaller
//! type of cache) and says so in a sentence; it is taken again until it has no more to give, and before the
//! next rung is touched. A step that saves nothing is not taken. Where the last rung is reached and the plan
//! still does not fit, there is no plan but a refusal with the least that was reached.

use anyhow::Result;
use tritter_runtime::error::bytes;

/// One way to take less: cheaper settings and what they are, or `None` where there is no more to give.
pub(crate) type Rung<'a, S> = Box<dyn Fn(&S) -> Option<(S, String)> + 'a>;

/// Settings that fit, or the cheapest that do not.
#[derive(Debug)]
pub(crate) struct Descent<S> {
    pub(crate) settings: S,
    /// Bytes that they need.
    pub(crate) needed: u64,
    pub(crate) fits: bool,
    /// What was given up, in order, one sentence each.
    pub(crate) taken: Vec<String>,
}

/// Goes down only as far as the budget asks for; without a budget not at all.
pub(crate) fn descend<S: Clone>(
    start: S,
    rungs: &[Rung<'_, S>],
    budget: Option<u64>,
    needs: &mut dyn FnMut(&S) -> Result<u64>,
) -> Result<Descent<S>> {
    let needed = needs(&start)?;
    let mut now = Descent { settings: start, needed, fits: true, taken: Vec::new() };
    let Some(budget) = budget else { return Ok(now) };
    for rung in rungs {
        while now.needed > budget {
            let Some((cheaper, what)) = rung(&now.settings) else { break };
            let needed = needs(&cheaper)?;
            if needed >= now.needed {
                break;
            }
            now.taken.push(format!("{what}: {} instead of {}", bytes(needed), bytes(now.needed)));
            now.settings = cheaper;
            now.needed = needed;
        }
    }
    now.fits = now.needed <= budget;
    Ok(now)
}

/// The next smaller of a list in falling order, if `now` is in it or above one of it.
pub(crate) fn next_below<T: PartialOrd + Copy>(falling: &[T], now: T) -> Option<T> {
    falling.iter().copied().find(|&one| one < now)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Settings {
        chunk: u64,
        batch: u64,
        bits: u64,
        idle: u64,
    }

    const START: Settings = Settings { chunk: 256, batch: 4, bits: 16, idle: 2 };

    fn rungs<'a>(smaller_cache: bool) -> Vec<Rung<'a, Settings>> {
        vec![
            // Costs nothing here, and so is never taken.
            Box::new(|s: &Settings| (s.idle > 0).then(|| (Settings { idle: s.idle - 1, ..*s }, "idle".into()))),
            Box::new(|s: &Settings| {
                let chunk = next_below(&[128, 64, 16], s.chunk)?;
                Some((Settings { chunk, ..*s }, format!("chunks of {chunk}")))
            }),
            Box::new(|s: &Settings| (s.batch > 1).then(|| (Settings { batch: s.batch / 2, ..*s }, "batch".into()))),
            Box::new(move |s: &Settings| {
                let bits = next_below(&[8, 4, 2], s.bits).filter(|_| smaller_cache)?;
                Some((Settings { bits, ..*s }, format!("{bits} bits")))
            }),
        ]
    }

    fn needs(s: &Settings) -> Result<u64> {
        Ok(1000 + s.chunk + 100 * s.batch + 10 * s.bits)
    }

    fn at(budget: Option<u64>, smaller_cache: bool) -> Descent<Settings> {
        descend(START, &rungs(smaller_cache), budget, &mut needs).unwrap()
    }

    #[test]
    fn nothing_is_given_up_without_need() {
        for budget in [None, Some(1816), Some(u64::MAX)] {
            let got = at(budget, true);
            assert!(got.fits && got.taken.is_empty() && got.settings == START, "{got:?}");
        }
    }

    #[test]
    fn rungs_are_taken_in_order_and_no_further_than_needed() {
        let got = at(Some(1800), true);
        assert_eq!((got.settings.chunk, got.settings.batch, got.settings.bits), (128, 4, 16));
        assert_eq!(got.taken.len(), 1);
        let got = at(Some(1400), true);
        assert_eq!((got.settings.chunk, got.settings.batch, got.settings.bits), (16, 2, 16));
        let got = at(Some(1250), true);
        assert_eq!((got.settings.chunk, got.settings.batch, got.settings.bits), (16, 1, 8));
        assert!(got.fits && got.needed <= 1250, "{got:?}");
        let order = ["chunks of 128", "chunks of 64", "chunks of 16", "batch", "batch", "8 bits"];
        assert!(got.taken.iter().zip(order).all(|(said, what)| said.starts_with(what)), "{:?}", got.taken);
        assert_eq!(got.taken.len(), order.len());
        assert_eq!(got.settings.idle, 2, "a step that saves nothing was taken");
    }

    #[test]
    fn what_changes_results_is_taken_only_where_it_is_allowed() {
        let got = at(Some(1200), false);
        assert!(!got.fits && got.settings.bits == 16, "{got:?}");
        assert_eq!(got.needed, 1276);
    }

    #[test]
    fn the_cheapest_is_said_where_nothing_fits() {
        let got = at(Some(10), true);
        assert!(!got.fits);
        assert_eq!((got.settings.chunk, got.settings.batch, got.settings.bits, got.needed), (16, 1, 2, 1136));
    }
}
