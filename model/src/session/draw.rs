//! How tokens are drawn on the device, and how they are read back.

use crate::error::Result;
use crate::host_sampling::Sampling;
use crate::programs::CONTROL;
use tritter_runtime::device::Pending;

/// How a token is drawn on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most likely tokens that reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Seed of the device's generator.
    pub seed: u32,
}

impl Draw {
    /// The most likely token.
    pub const GREEDY: Draw = Draw { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };

    /// The draw of these settings, if the device has it: a penalty on all tokens before is the host's, for
    /// a device remembers only the last ones.
    pub fn of(sampling: &Sampling, seed: u64) -> Option<Draw> {
        let Sampling { temperature, top_k, top_p, min_p, repeat_penalty } = *sampling;
        let (top_k, seed) = (u32::try_from(top_k).unwrap_or(0), (seed ^ (seed >> 32)) as u32);
        (repeat_penalty == 1.0).then_some(Draw { temperature, top_k, top_p, min_p, seed })
    }

    pub(super) fn control(&self) -> [f32; CONTROL] {
        let mut control = [0.0; CONTROL];
        control[..5].copy_from_slice(&[self.temperature, self.top_k as f32, self.top_p, self.min_p, 1.0]);
        control
    }
}

/// Tokens that are being read back.
pub struct PendingTokens(pub(super) Box<dyn Pending>);

impl PendingTokens {
    /// Waits for them.
    pub fn wait(self) -> Result<Vec<u32>> {
        Ok(bytemuck::pod_collect_to_vec::<u8, u32>(&self.0.wait()?))
    }
}

/// A token that is being read back.
pub struct PendingToken(pub(super) PendingTokens);

impl PendingToken {
    /// Waits for it.
    pub fn wait(self) -> Result<u32> {
        Ok(self.0.wait()?.first().copied().unwrap_or(0))
    }
}
