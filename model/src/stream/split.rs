//! Which layers stay on the device and which are streamed.

use crate::error::{Error, Result};
use crate::programs::Layout;
use crate::session::SessionPlan;
use crate::weights::{Layer, Model};
use std::ops::Range;
use tritter_runtime::Device;
use tritter_runtime::stream::Way;

/// Bytes of a group that make its copy worth beginning; layers are grouped until they reach it.
const WORTH: u64 = 16 << 20;

/// The first layers stay on the device; the others are streamed in groups of equal length, the last one shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Layers that stay.
    pub resident: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Layers of a group.
    pub group: usize,
    /// How the device reads the others.
    pub way: Way,
}

impl Split {
    /// All layers stay.
    pub fn whole(layers: usize) -> Split {
        Split { resident: layers, layers, group: 1, way: Way::Missing }
    }

    /// Whether any layer is streamed.
    pub fn streams(&self) -> bool {
        self.resident < self.layers
    }

    /// The layers of each group, in order.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let group = self.group.max(1);
        let begin = (self.resident..self.layers).step_by(group);
        begin.map(|first| first..(first + group).min(self.layers)).collect()
    }

    /// Whether a part of the program begins at a layer: a group, or with `layers` what follows the last one.
    pub(crate) fn cuts_at(&self, layer: usize) -> bool {
        let behind = layer.checked_sub(self.resident);
        self.streams() && behind.is_some_and(|i| i.is_multiple_of(self.group.max(1)) || layer == self.layers)
    }

    /// Bytes of weights that are streamed in every run.
    pub fn streamed(&self, model: &Model) -> u64 {
        model.layers.get(self.resident..).unwrap_or_default().iter().map(bytes).sum()
    }

    /// Bytes that slots and staging take.
    pub fn slots(&self, model: &Model) -> u64 {
        let Way::Slots { slots, staging } = self.way else { return 0 };
        let of = |layers: Range<usize>| model.layers.get(layers).unwrap_or_default().iter().map(bytes).sum::<u64>();
        let largest = self.groups().into_iter().map(of).max().unwrap_or(0);
        largest * (slots.min(self.groups().len()) + staging) as u64
    }
}

/// Bytes of a layer where it is streamed from.
fn bytes(layer: &Layer) -> u64 {
    super::store::size(&layer.tensors())
}

/// Plans a session in which as many layers stay as fit the device's budget (all, where it is unknown) beside the
/// cache, activations, what streaming itself takes and what a run takes beside its plan. Takes no device memory.
///
/// # Errors
/// Refuses a device that streams no weights, and a budget that is too small for a single layer, with the figures.
pub fn fit(model: &Model, layout: Layout, device: &Device) -> Result<SessionPlan> {
    let Some(available) = device.plannable() else { return SessionPlan::with(model, layout) };
    let way = device.backend().way();
    let plan = divide(model, layout, way, available)?;
    if plan.total() <= available {
        return Ok(plan);
    }
    if way == Way::Missing {
        return Err(Error::Session(format!("{} cannot stream weights", device.label())));
    }
    let each = model.layers.first().map_or(0, bytes);
    Err(Error::Runtime(tritter_runtime::Error::DoesNotFit {
        what: format!(
            "embedding, head, cache and activations, with one layer of {} at a time,",
            tritter_runtime::error::bytes(each)
        ),
        device: device.label(),
        needed: plan.total() + tritter_runtime::budget::overhead(device.caps()),
        available: device.budget().unwrap_or(available),
        advice: "use a larger --memory-limit, a smaller context, a smaller cache type or --head i8".into(),
    }))
}

/// Divides the layers for a budget in bytes. Where nothing fits, gives the plan that takes the least.
pub fn divide(model: &Model, layout: Layout, way: Way, budget: u64) -> Result<SessionPlan> {
    let whole = SessionPlan::with(model, layout)?;
    if whole.total() <= budget || way == Way::Missing {
        return Ok(whole);
    }
    let layers = model.layers.len();
    let each = model.layers.first().map_or(1, bytes).max(1);
    let large = usize::try_from(WORTH.div_ceil(each)).unwrap_or(1).clamp(1, layers.max(1));
    for group in [large, 1] {
        for resident in (0..layers).rev() {
            let split = Split { resident, layers, group, way };
            if whole.total() - split.streamed(model) + split.slots(model) > budget {
                continue;
            }
            // Parts of a program have an arena of their own shape, which may be a little larger.
            let plan = SessionPlan::streamed(model, layout, split)?;
            if plan.total() <= budget {
                return Ok(plan);
            }
        }
    }
    SessionPlan::streamed(model, layout, Split { resident: 0, layers, group: 1, way })
}
