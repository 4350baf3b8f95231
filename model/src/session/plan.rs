//! A session before it has a device: its programs are recorded and planned, so what it takes is known.

use super::{Draw, Session, Stage};
use crate::cache::{Cache, CacheBytes, CacheFormat};
use crate::error::{Error, Result};
use crate::load::Progress;
use crate::places::Sequences;
use crate::programs::{Layout, Programs};
use crate::source::Source;
use crate::stream::{self, Split, Streamed};
use crate::weights::Model;
use std::collections::HashSet;
use std::path::Path;
use tritter_runtime::tensor::Role;
use tritter_runtime::{Device, Plan, Tensor};

/// The programs of a session as plans: what they take is known before anything is allocated.
#[derive(Debug)]
pub struct SessionPlan {
    model: Model,
    layout: Layout,
    cache: Cache,
    programs: Programs,
    split: Split,
}

impl SessionPlan {
    /// Plans a session for one sequence of `capacity` positions. Takes no device memory.
    pub fn new(model: &Model, capacity: usize, cache: CacheFormat) -> Result<SessionPlan> {
        SessionPlan::with(model, Layout::single(capacity, cache))
    }

    /// Plans a session. Takes no device memory.
    pub fn with(model: &Model, layout: Layout) -> Result<SessionPlan> {
        SessionPlan::streamed(model, layout, Split::whole(model.layers.len()))
    }

    /// Plans a session of which some layers are streamed ([`crate::stream::fit`] chooses which). Takes no device
    /// memory.
    pub fn streamed(model: &Model, layout: Layout, split: Split) -> Result<SessionPlan> {
        // Beyond a window that the model itself has, no layer sees anything.
        let layout = Layout { window: layout.window.into_iter().chain(model.config.window).min(), ..layout };
        let cache = Cache::new(&model.config, layout.check(model)?);
        let programs = Programs::record(model, &cache, &layout, &split)?;
        Ok(SessionPlan { model: model.clone(), layout, cache, programs, split })
    }

    /// Loads the model's weights: to the device, and those of streamed layers to a file in `folder`.
    pub fn load(
        &self,
        device: &Device,
        source: &dyn Source,
        folder: &Path,
        progress: &Progress<'_>,
    ) -> Result<Option<Streamed>> {
        stream::load(&self.model, &self.split, device, source, folder, progress)
    }

    /// Which layers stay on the device.
    pub fn split(&self) -> Split {
        self.split
    }

    /// Bytes of weights that are streamed in every run.
    pub fn streamed_bytes(&self) -> u64 {
        self.split.streamed(&self.model)
    }

    /// Bytes of slots and staging of streamed layers.
    pub fn slots(&self) -> u64 {
        self.split.slots(&self.model)
    }

    /// Bytes of weights and tables that stay on the device.
    pub fn weights(&self) -> u64 {
        let streamed = self.model.layers.get(self.split.resident..).unwrap_or_default();
        let streamed = streamed.iter().flat_map(|layer| layer.tensors()).map(|t| t.spec().bytes());
        self.model.bytes() - streamed.sum::<u64>()
    }

    /// What it has room for.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Pages of the cache's pool.
    pub fn pages(&self) -> usize {
        self.cache.shape.pages
    }

    /// Bytes of the cache.
    pub fn cache(&self) -> u64 {
        self.cache.bytes()
    }

    /// The same by what they hold.
    pub fn cache_parts(&self) -> CacheBytes {
        self.cache.parts(self.model.config.head_dim)
    }

    /// Bytes of logits, which are among the [small](SessionPlan::small).
    pub fn logits(&self) -> u64 {
        self.programs.steps.iter().map(|step| step.logits().spec().bytes()).sum()
    }

    /// Bytes of activations.
    pub fn arena(&self) -> u64 {
        tritter_runtime::plan::shared_slabs(&self.plans()).iter().sum()
    }

    /// Bytes of inputs and small states.
    pub fn small(&self) -> u64 {
        let mut counted: HashSet<usize> = self.cache.tensors().map(Tensor::id).collect();
        let tensors = self.programs.all().flat_map(|p| &p.parts).flat_map(|part| part.graph.tensors());
        let small = tensors.filter(|t| matches!(t.role(), Role::Input | Role::State) && counted.insert(t.id()));
        small.map(|t| t.spec().bytes()).sum()
    }

    /// Everything in bytes.
    pub fn total(&self) -> u64 {
        self.weights() + self.slots() + self.cache() + self.arena() + self.small()
    }

    /// Bytes that a step of one row reads with `visible` tokens in the cache: all weights, of an embedding
    /// that is no head one row, and the keys and values.
    pub fn step_bytes(&self, visible: f64) -> f64 {
        let table = self.model.embedding.values.spec();
        let unread = if self.model.head.is_some() { table.bytes() - table.row_bytes() } else { 0 };
        let rope = [&self.model.rope.coarse, &self.model.rope.fine].map(|t| t.spec().bytes() - t.spec().row_bytes());
        let weights = self.model.bytes() - unread - rope.iter().sum::<u64>();
        weights as f64 + visible * self.cache.row_bytes() as f64
    }

    fn plans(&self) -> Vec<&Plan> {
        self.programs.all().flat_map(|p| &p.parts).map(|part| &part.plan).collect()
    }

    /// Allocates and compiles; the model's weights must be loaded, all of them to the device.
    pub fn open(self, device: &Device) -> Result<Session> {
        self.open_with(device, None)
    }

    /// Allocates and compiles, with what [`SessionPlan::load`] gave.
    pub fn open_with(self, device: &Device, weights: Option<Streamed>) -> Result<Session> {
        if self.split.streams() != weights.is_some() {
            return Err(Error::Session("a session is opened with the weights that its own plan has loaded".into()));
        }
        let Layout { capacity, sequences, .. } = self.layout;
        let what = match sequences {
            1 => format!("a context of {capacity} tokens"),
            _ => format!("{sequences} sequences with a context of {capacity} tokens"),
        };
        device.check_budget(&what, self.total(), "use a smaller --context or a smaller cache type")?;
        let arena = device.arena(&self.plans())?;
        let compile = |programs: Vec<_>| -> Result<Vec<Stage>> {
            let stage =
                |p: crate::programs::Recorded| Ok(Stage { ready: p.compile(device, &arena)?, control: Vec::new() });
            programs.into_iter().map(stage).collect()
        };
        Ok(Session {
            device: device.clone(),
            config: self.model.config.clone(),
            layout: self.layout,
            chunks: compile(self.programs.chunks)?,
            steps: compile(self.programs.steps)?,
            draws: vec![Draw::GREEDY; sequences],
            sequences: Sequences::new(self.cache.shape),
            cache: self.cache,
            weights,
            newest: 0,
        })
    }
}
