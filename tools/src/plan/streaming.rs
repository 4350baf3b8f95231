//! What a model takes whose layers do not all stay on the device: the cache and everything but the layers is
//! resident, as many layers as fit beside it are too, and the others come through two slots. (The CPU reads them
//! from a mapped file and has no slots; its pages come and go with the system.)

use super::parts::gib;
use super::session::Planned;
use serde::Serialize;

/// Layers that are on the device at once beside the resident ones: one that is computed, one that comes in.
const SLOTS: u64 = 2;

/// How a plan divides its layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Streamed {
    pub(crate) layers: usize,
    pub(crate) resident_layers: usize,
    /// Bytes of the largest layer.
    pub(crate) layer_bytes: u64,
    /// Bytes that must be on the device with no layer resident.
    pub(crate) least: u64,
    /// Bytes on the device with the resident layers.
    pub(crate) total: u64,
    pub(crate) gib: f64,
    /// Bytes that come in for each step, and stay in the memory of the system.
    pub(crate) streamed_bytes: u64,
}

impl Streamed {
    /// Divides the layers of a plan for a budget; `None` where not even one layer fits.
    pub(crate) fn of(planned: &Planned, budget: u64) -> Option<Streamed> {
        Streamed::divide(planned.needed(), &layers(planned), budget)
    }

    fn divide(needed: u64, layers: &[u64], budget: u64) -> Option<Streamed> {
        let (all, largest) = (layers.iter().sum::<u64>(), layers.iter().copied().max()?);
        let base = needed.saturating_sub(all);
        let least = base + SLOTS * largest;
        if needed <= budget {
            return Some(Streamed::new(layers, layers.len(), [least, needed, 0]));
        }
        let mut left = budget.checked_sub(least)?;
        let mut resident = 0;
        while let Some(rest) = layers.get(resident).and_then(|layer| left.checked_sub(*layer)) {
            (left, resident) = (rest, resident + 1);
        }
        let streamed: u64 = layers[resident..].iter().sum();
        Some(Streamed::new(layers, resident, [least, budget - left, streamed]))
    }

    fn new(layers: &[u64], resident_layers: usize, [least, total, streamed_bytes]: [u64; 3]) -> Streamed {
        let layer_bytes = layers.iter().copied().max().unwrap_or(0);
        Streamed { layers: layers.len(), resident_layers, layer_bytes, least, total, gib: gib(total), streamed_bytes }
    }
}

/// Bytes of the weights of each layer.
fn layers(planned: &Planned) -> Vec<u64> {
    let tensors = planned.model.tensors();
    let layer = |i: usize| {
        let name = format!("model.layers.{i}.");
        tensors.iter().filter(|tensor| tensor.name().starts_with(&name)).map(|tensor| tensor.spec().bytes()).sum()
    };
    (0..planned.model.layers.len()).map(layer).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn as_many_layers_stay_as_fit_beside_two_slots() {
        // 500 beside ten layers of 100.
        let layers = [100; 10];
        let divided = |budget| Streamed::divide(1500, &layers, budget);
        let whole = divided(1500).unwrap();
        assert_eq!((whole.resident_layers, whole.streamed_bytes, whole.total), (10, 0, 1500));
        let some = divided(1080).unwrap();
        assert_eq!((some.resident_layers, some.streamed_bytes, some.total), (3, 700, 1000));
        let none = divided(700).unwrap();
        assert_eq!((none.resident_layers, none.streamed_bytes, none.least), (0, 1000, 700));
        assert!(divided(699).is_none(), "there is no room for the slots");
    }
}
