//! What the host writes before a run.

use crate::cache::{Cache, CacheShape};
use tritter_runtime::{DType, Tensor};

/// What the host writes before a run of M tokens.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Token ids `[M]`.
    pub ids: Tensor,
    /// Positions `[M]`: the angle of RoPE.
    pub positions: Tensor,
    /// First and last visible key `[M, 2]`, without a cache.
    pub span: Tensor,
}

impl Stream {
    /// Inputs for `m` tokens.
    pub fn new(name: &str, m: usize) -> Stream {
        use DType::U32;
        Stream {
            ids: Tensor::input(format!("{name}.ids"), [m], U32),
            positions: Tensor::input(format!("{name}.positions"), [m], U32),
            span: Tensor::input(format!("{name}.span"), [m, 2], U32),
        }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.spec().elements()
    }

    /// Never true: a stream has at least one token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the host writes before a run of M tokens over a cache.
#[derive(Clone, Debug)]
pub struct Places {
    /// The row `[M]` of the cache's whole rows where a token's key and value go; one beyond them is not kept.
    pub slots: Tensor,
    /// What a token sees `[M, 4]`: its sequence, first and last key, and from which key on rows are whole.
    pub seen: Tensor,
    /// With sinks, by how many positions `[M]` a query turns back to meet them.
    pub turns: Tensor,
    /// Beside integers, ring rows and pages `[N, 2]` of what becomes codes in this run.
    pub groups: Tensor,
    /// Parts that a token's keys are split into.
    pub parts: usize,
    /// Tokens are consecutive ones of one sequence.
    pub prompt: bool,
}

impl Places {
    /// Inputs for `m` tokens.
    pub fn new(name: &str, m: usize, shape: &CacheShape, prompt: bool) -> Places {
        use DType::U32;
        let page = shape.format.page;
        let groups = if prompt { m.div_ceil(page) + 1 } else { m };
        // Enough parts to occupy a large card; short contexts leave the later ones empty.
        let seen = (shape.entries * page).min((shape.window as usize).saturating_add(shape.sinks as usize));
        let parts = if prompt { 1 } else { (seen / 512).min(MOST_PARTS / m.min(MOST_PARTS)).max(1) };
        Places {
            slots: Tensor::input(format!("{name}.slots"), [m], U32),
            seen: Tensor::input(format!("{name}.seen"), [m, 4], U32),
            turns: Tensor::input(format!("{name}.turns"), [m], U32),
            groups: Tensor::input(format!("{name}.groups"), [groups, 2], U32),
            parts,
            prompt,
        }
    }
}

/// Most parts that the keys of a token are split into.
const MOST_PARTS: usize = 32;

/// A cache, and where a stream's tokens stand in it.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// The cache.
    pub cache: &'a Cache,
    /// Where tokens go and what they see.
    pub places: &'a Places,
}
