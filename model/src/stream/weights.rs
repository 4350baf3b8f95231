//! Loading the weights of a session of which some are streamed.

use super::Split;
use super::store::{Places, Scratch, place};
use crate::error::{Error, Result};
use crate::load::Progress;
use crate::source::Source;
use crate::weights::Model;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use tritter_runtime::device::{Buffer, Program};
use tritter_runtime::stream::{Feed, Figures, Group, HostMemory, Load, Way};
use tritter_runtime::{Device, Role, Tensor};

/// Weights that are brought in as programs need them.
pub struct Streamed {
    feed: Box<dyn Feed>,
    groups: usize,
}

impl std::fmt::Debug for Streamed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Streamed({} groups, {:?})", self.groups, self.figures())
    }
}

/// Places that groups of a model take in turn: as many as the device wants, fewer where there are fewer groups.
pub(super) fn slots(device: &Device, bytes: u64, groups: usize) -> Result<Vec<Buffer>> {
    let Way::Slots { slots, .. } = device.backend().way() else { return Ok(Vec::new()) };
    let slot = |i| device.backend().alloc(bytes, Role::Weight, &format!("slot {i} of streamed layers"));
    Ok((0..slots.min(groups)).map(slot).collect::<tritter_runtime::Result<_>>()?)
}

/// Loads the layers that stay onto a device, and writes the others to a file in `folder`, from which they are
/// brought in. The model must be one that has no memory yet.
pub(crate) fn load(
    model: &Model,
    split: &Split,
    device: &Device,
    source: &dyn Source,
    folder: &Path,
    progress: &Progress<'_>,
) -> Result<Option<Streamed>> {
    if !split.streams() {
        model.load_with(device, source, progress)?;
        return Ok(None);
    }
    let of = |model: &Model| -> Vec<Vec<Tensor>> {
        let tensors = |layers: std::ops::Range<usize>| model.layers[layers].iter().flat_map(|l| l.tensors()).collect();
        split.groups().into_iter().map(tensors).collect()
    };
    let ids = |groups: &[Vec<Tensor>]| -> HashSet<usize> { groups.iter().flatten().map(Tensor::id).collect() };
    let groups = of(model);
    let places = Places::new(&groups);
    let total = model.bytes();
    let own = ids(&groups);
    model.load_some(device, source, &|done, _| progress(done, total), &|tensor| !own.contains(&tensor.id()))?;

    // The same layers once more, for a tensor has its memory on one device.
    let twin = Model::with_formats(&model.config, model.form, model.formats, model.positions);
    let twins = of(&twin);
    let streamed: u64 = groups.iter().flatten().map(|tensor| tensor.spec().bytes()).sum();
    let scratch = Scratch::new(folder, places.bytes)?;
    scratch.hold(&twins, &places)?;
    let written = ids(&twins);
    let told = |done: u64, _: u64| progress(total - streamed + done, total);
    twin.load_some(&scratch.device(), source, &told, &|tensor| written.contains(&tensor.id()))?;

    let memory: Arc<dyn HostMemory> = Arc::new(scratch.map()?);
    let largest = places.groups.iter().map(|(range, _)| range.end - range.start).max().unwrap_or(0);
    let slots = slots(device, largest, groups.len())?;
    let adopted = if slots.is_empty() { Some(device.backend().adopt(&memory)?) } else { None };
    let mut load = Load { memory, groups: Vec::with_capacity(groups.len()) };
    for (i, (tensors, (range, firsts))) in groups.iter().zip(&places.groups).enumerate() {
        let slot = slots.get(i % slots.len().max(1));
        let (buffer, begin) = match (slot, &adopted) {
            (Some(slot), _) => (slot, range.start),
            (None, Some(file)) => (file, 0),
            (None, None) => return Err(Error::Session("streamed weights have no place".into())),
        };
        for (tensor, first) in tensors.iter().zip(firsts) {
            place(tensor, buffer, first - begin)?;
        }
        let bytes = |at: u64| usize::try_from(at).map_err(|e| Error::Session(format!("streamed weights: {e}")));
        load.groups.push(Group { bytes: bytes(range.start)?..bytes(range.end)?, slot: slot.cloned() });
    }
    Ok(Some(Streamed { feed: device.backend().feed(load)?, groups: groups.len() }))
}

impl Streamed {
    /// Runs a program in parts: what comes before the first group, a part for each group, what comes after the last.
    pub(crate) fn run(&self, parts: &[Box<dyn Program>]) -> Result<()> {
        let [first, groups @ .., last] = parts else {
            return Err(Error::Session("a streamed program has too few parts".into()));
        };
        if groups.len() != self.groups {
            return Err(Error::Session(format!("{} groups of layers and weights of {}", groups.len(), self.groups)));
        }
        self.feed.ahead(0)?;
        first.submit()?;
        for (i, part) in groups.iter().enumerate() {
            self.feed.arrive(i)?;
            // The next one comes while this one computes; after the last one, the first of the next run.
            self.feed.ahead((i + 1) % self.groups)?;
            part.submit()?;
            self.feed.leave(i)?;
        }
        last.submit()?;
        Ok(())
    }

    /// What was brought in so far.
    pub fn figures(&self) -> Figures {
        self.feed.figures()
    }
}
