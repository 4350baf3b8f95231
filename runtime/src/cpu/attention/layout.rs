//! Where the channels of codes are in vectors.

use crate::ops::paged::codes::Block;

/// Where the channels of a block's rows are in vectors.
pub(super) struct Layout {
    pub(super) block: Block,
    /// Lanes of a vector.
    pub(super) lanes: usize,
    /// Vectors of a row of codes.
    pub(super) vectors: usize,
    /// Rows of codes, that is tokens, in a vector.
    pub(super) tokens: usize,
    /// By vector, shift and lane: the channel, `d` or more where there is none.
    pub(super) channels: Vec<u32>,
    /// By vector, shift and lane: place of the channel's parameters, in words.
    pub(super) places: Vec<u32>,
    /// By vector and lane: entry of the weights, counted from that of the first token's first group.
    pub(super) entries: Vec<u32>,
}

impl Layout {
    pub(super) fn new(block: Block, lanes: usize) -> Self {
        let words = block.row_words();
        // Scores come out by quarters of four lanes, so a token has at least these.
        let tokens = if words == 4 || 2 * words == lanes { lanes / words } else { 1 };
        let vectors = (words * tokens).div_ceil(lanes);
        let mut layout =
            Layout { block, lanes, vectors, tokens, channels: Vec::new(), places: Vec::new(), entries: Vec::new() };
        let entry = 1 + usize::from(block.precise);
        for n in 0..vectors * layout.codes() * lanes {
            let (p, shift, lane) = (n / lanes / layout.codes(), n / lanes % layout.codes(), n % lanes);
            // A lane past the row has no query, and its sums are dropped: any parameters will do.
            let channel = layout.channel(p, shift, lane);
            layout.channels.push(channel as u32);
            let channel = if channel < block.d { channel } else { 0 };
            layout.places.push((channel * entry) as u32);
            if shift == 0 {
                let token = if tokens > 1 { lane / words } else { 0 };
                layout.entries.push((token * block.groups() + channel / block.page) as u32);
            }
        }
        layout
    }

    /// Codes in a word.
    pub(super) fn codes(&self) -> usize {
        32 / self.block.bits
    }

    /// Floats of a head's query or sums.
    pub(super) fn len(&self) -> usize {
        self.vectors * self.codes() * self.lanes
    }

    /// Words from one vector's (or row's) first to the next one's.
    pub(super) fn step(&self) -> usize {
        self.block.row_words() * self.tokens
    }

    /// Channel of a lane of a vector after some shifts; none at all if it is `d` or more.
    fn channel(&self, vector: usize, shift: usize, lane: usize) -> usize {
        let word = if self.tokens > 1 { lane % self.block.row_words() } else { vector * self.lanes + lane };
        word * self.codes() + shift
    }

    /// Calls `f(place, head, channel)` for every place of `heads` heads that holds a channel.
    pub(super) fn each(&self, heads: usize, mut f: impl FnMut(usize, usize, usize)) {
        for (n, channels) in self.channels.chunks_exact(self.lanes).enumerate() {
            for head in 0..heads {
                let first = (n * heads + head) * self.lanes;
                for (lane, &channel) in channels.iter().enumerate().filter(|(_, c)| (**c as usize) < self.block.d) {
                    f(first + lane, head, channel as usize);
                }
            }
        }
    }
}
