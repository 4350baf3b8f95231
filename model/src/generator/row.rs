//! A sequence in the making: its tokens so far, how the next is chosen, and the text that they give.

use super::{Finish, Generated};
use crate::error::Result;
use crate::host_sampling::Sampler;
use crate::stop::StopStrings;
use crate::text_stream::StreamDecoder;

/// A sequence in the making.
pub(super) struct Row<'t> {
    pub(super) job: usize,
    pub(super) sequence: usize,
    pub(super) prompt: usize,
    pub(super) most: usize,
    /// Prompt and what came after it.
    pub(super) history: Vec<u32>,
    /// New tokens that were drawn or will be by steps under way.
    pub(super) asked: usize,
    pub(super) sampler: Option<Sampler>,
    pub(super) decoder: StreamDecoder<'t>,
    pub(super) stops: StopStrings,
    pub(super) text: String,
    pub(super) finish: Option<Finish>,
    /// There is no page for its next token.
    pub(super) starved: bool,
}

impl Row<'_> {
    pub(super) fn wants(&self) -> bool {
        self.finish.is_none() && !self.starved && self.asked < self.most
    }

    pub(super) fn produced(&self) -> usize {
        self.history.len() - self.prompt
    }

    pub(super) fn last(&self) -> u32 {
        self.history.last().copied().unwrap_or(0)
    }

    /// Takes the next token.
    pub(super) fn accept(&mut self, token: u32, ends: &[u32], sink: &mut dyn FnMut(usize, &str)) -> Result<()> {
        if ends.contains(&token) {
            self.finish = Some(Finish::End);
            return Ok(());
        }
        self.history.push(token);
        if let Some(piece) = self.decoder.push(token)? {
            self.show(&piece, sink);
        }
        if self.finish.is_none() && self.produced() >= self.most {
            self.finish = Some(Finish::Length);
        }
        Ok(())
    }

    fn show(&mut self, piece: &str, sink: &mut dyn FnMut(usize, &str)) {
        let passed = self.stops.push(piece);
        self.put(&passed.text, sink);
        if passed.stop.is_some() {
            self.finish = Some(Finish::Stop);
        }
    }

    fn put(&mut self, text: &str, sink: &mut dyn FnMut(usize, &str)) {
        if !text.is_empty() {
            self.text.push_str(text);
            sink(self.job, text);
        }
    }

    pub(super) fn done(mut self, sink: &mut dyn FnMut(usize, &str)) -> Result<Generated> {
        if self.finish != Some(Finish::Stop)
            && let Some(rest) = self.decoder.finish()?
        {
            self.show(&rest, sink);
        }
        if self.finish != Some(Finish::Stop) {
            let held = std::mem::take(&mut self.stops).finish();
            self.put(&held, sink);
        }
        let finish = self.finish.unwrap_or(Finish::Length);
        Ok(Generated { ids: self.history.split_off(self.prompt), text: self.text, finish })
    }
}
