//! What a model takes whose layers do not all stay on the device, and how fast it can be.

use super::parts::gib;
use super::session::Planned;
use crate::peaks;
use anyhow::Result;
use serde::Serialize;
use tritter_model::stream;
use tritter_runtime::Device;
use tritter_runtime::stream::Way;

/// How a plan divides its layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Streamed {
    pub(crate) layers: usize,
    pub(crate) resident_layers: usize,
    /// Bytes on the device.
    pub(crate) total: u64,
    pub(crate) gib: f64,
    /// Those of slots and staging, that copies go through; none where kernels read host memory in place.
    pub(crate) slots: u64,
    /// Bytes that come in for each step, and stay in the memory of the system or on its disk.
    pub(crate) streamed_bytes: u64,
    /// What a named device is seen to reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) speed: Option<Speed>,
}

/// How fast a device brings layers in, and what follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Speed {
    /// 10^9 bytes a second that come in, measured.
    pub(crate) transfer_gb_s: f64,
    /// 10^9 bytes a second that the device reads, measured.
    pub(crate) bandwidth_gb_s: f64,
    /// Tokens a second at the end of the context, if a step took as long as reading its bytes.
    pub(crate) tokens_per_second: f64,
}

/// How the layers reach a device: that of a card where none is named.
pub(crate) fn way(device: Option<&Device>) -> Way {
    device.map_or(Way::Slots { slots: 2, staging: 0 }, |device| device.backend().way())
}

impl Streamed {
    /// Divides the layers of a plan for a budget; `None` where not even one layer fits.
    pub(crate) fn of(planned: &Planned, budget: u64, device: Option<&Device>) -> Result<Option<Streamed>> {
        let left = budget.saturating_sub(planned.overhead);
        let plan = stream::divide(&planned.model, planned.plan.layout(), way(device), left)?;
        let (split, total) = (plan.split(), plan.total() + planned.overhead);
        Ok((total <= budget).then(|| Streamed {
            layers: split.layers,
            resident_layers: split.resident,
            total,
            gib: gib(total),
            slots: plan.slots(),
            streamed_bytes: plan.streamed_bytes(),
            speed: None,
        }))
    }

    /// The same with what a device is seen to reach. Takes about two seconds and 64 MB on its disk.
    pub(crate) fn measured(self, planned: &Planned, device: &Device) -> Result<Streamed> {
        let rate = stream::measure(device, &stream::folder())?;
        let peaks = peaks::measure(device)?;
        let seen = planned.plan.layout().capacity as f64;
        let compute = planned.plan.step_bytes(seen) / (peaks.bandwidth_gb_s * 1e9);
        let speed = Speed {
            transfer_gb_s: rate / 1e9,
            bandwidth_gb_s: peaks.bandwidth_gb_s,
            tokens_per_second: stream::tokens_per_second(self.streamed_bytes, rate, compute, way(Some(device))),
        };
        Ok(Streamed { speed: Some(speed), ..self })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::plan::session::Settings;
    use tritter_model::cache::CacheFormat;
    use tritter_model::config::Family;
    use tritter_model::presets::preset;
    use tritter_model::programs::Layout;
    use tritter_model::weights::Formats;

    #[test]
    fn as_many_layers_stay_as_fit() {
        let config = preset("test").unwrap().config(Family::Bitnet, Some(512), None);
        let layout = Layout::single(64, CacheFormat::F32);
        let planned = Settings { formats: Formats::PLAIN, layout }.plan(&config, 1000).unwrap();
        let divided = |budget| Streamed::of(&planned, budget, None).unwrap();
        let whole = divided(planned.needed()).unwrap();
        assert_eq!((whole.resident_layers, whole.streamed_bytes), (config.num_layers, 0));
        let mut before = whole.resident_layers;
        let least = (0..planned.needed()).rev().step_by(1 << 12).take_while(|&budget| match divided(budget) {
            Some(streamed) => {
                assert!(streamed.total <= budget && streamed.resident_layers <= before);
                assert!(streamed.streamed_bytes > 0 || streamed.resident_layers == config.num_layers);
                before = streamed.resident_layers;
                true
            }
            None => false,
        });
        assert!(least.count() > 10, "layers of this model are larger than that");
        assert!(divided(0).is_none());
    }
}
