//! Inference: chunked prefill and single-step decode over one cache.
//!
//! A few programs serve every prompt: one for each chunk length in [`CHUNKS`], the
//! shorter tail of a prompt padded into the smallest chunk that holds it. Padding goes
//! to a row beyond the cache, which nothing keeps, and is never picked. The token
//! that a run draws stays on the device and is the next step's input, so a step needs
//! nothing from the host but its position.

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::forward::{self, Stream, Trace};
use crate::weights::Model;
use tritter_runtime::device::{Pending, Program};
use tritter_runtime::ops::{copy, gather, sample};
use tritter_runtime::{DType, Device, Graph, Plan, Tensor};

/// Tokens that one program takes.
pub const CHUNKS: [usize; 4] = [1, 16, 64, 256];

/// How a token is drawn on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Seed of the device's generator.
    pub seed: u32,
}

impl Draw {
    /// The most likely token.
    pub const GREEDY: Draw = Draw { temperature: 0.0, top_k: 0, seed: 0 };
}

/// What all programs of a session share.
#[derive(Clone, Debug)]
struct Shared {
    logits: Tensor,
    token: Tensor,
    control: Tensor,
    random: Tensor,
}

/// A recorded chunk, before any device.
#[derive(Debug)]
struct Recorded {
    stream: Stream,
    pick: Tensor,
    graph: Graph,
    plan: Plan,
}

/// The programs of a session as plans: what they take is known before anything is allocated.
#[derive(Debug)]
pub struct SessionPlan {
    model: Model,
    cache: Cache,
    shared: Shared,
    chunks: Vec<Recorded>,
}

impl SessionPlan {
    /// Plans a session for `capacity` positions. Takes no device memory.
    pub fn new(model: &Model, capacity: usize, cache: DType) -> Result<SessionPlan> {
        let config = &model.config;
        if capacity == 0 || capacity > model.positions {
            return Err(Error::Context { needed: capacity, available: model.positions });
        }
        let shared = Shared {
            logits: Tensor::state("logits", [1, config.vocab_size], DType::F32),
            token: Tensor::state("token", [1], DType::U32),
            control: Tensor::input("control", [4], DType::F32),
            random: Tensor::input("random", [2], DType::U32),
        };
        let cache = Cache::new(config, capacity, cache);
        let lengths = CHUNKS.iter().enumerate().filter(|&(i, _)| i == 0 || CHUNKS[i - 1] < capacity);
        let chunks = lengths.map(|(_, &m)| record(model, &cache, &shared, m));
        let chunks = chunks.collect::<Result<Vec<_>>>()?;
        Ok(SessionPlan { model: model.clone(), cache, shared, chunks })
    }

    /// Bytes of weights and tables.
    pub fn weights(&self) -> u64 {
        self.model.bytes()
    }

    /// Bytes of the cache.
    pub fn cache(&self) -> u64 {
        self.cache.bytes()
    }

    /// Bytes of activations.
    pub fn arena(&self) -> u64 {
        let plans: Vec<&Plan> = self.chunks.iter().map(|c| &c.plan).collect();
        tritter_runtime::plan::shared_slabs(&plans).iter().sum()
    }

    /// Bytes of inputs and small states.
    pub fn small(&self) -> u64 {
        let shared = [&self.shared.logits, &self.shared.token, &self.shared.control, &self.shared.random];
        let shared: u64 = shared.iter().map(|t| t.spec().bytes()).sum();
        let stream = |c: &Recorded| {
            let own = [&c.stream.positions, &c.stream.slots, &c.stream.span, &c.pick].map(|t| t.spec().bytes()).iter().sum::<u64>();
            own + if c.stream.len() == 1 { 0 } else { c.stream.ids.spec().bytes() }
        };
        shared + self.chunks.iter().map(stream).sum::<u64>()
    }

    /// Everything in bytes.
    pub fn total(&self) -> u64 {
        self.weights() + self.cache() + self.arena() + self.small()
    }

    /// Allocates and compiles; the model's weights must be loaded.
    pub fn open(self, device: &Device) -> Result<Session> {
        let what = format!("a context of {} tokens", self.cache.capacity);
        let needed = self.total();
        device.check_budget(&what, needed, "use a smaller --context or an f16 cache")?;
        let plans: Vec<&Plan> = self.chunks.iter().map(|c| &c.plan).collect();
        let arena = device.arena(&plans)?;
        let mut chunks = Vec::new();
        for recorded in self.chunks {
            for tensor in recorded.graph.tensors() {
                device.allocate(tensor)?;
            }
            let program = device.compile(&recorded.graph, &recorded.plan, &arena)?;
            chunks.push(Chunk { stream: recorded.stream, pick: recorded.pick, program });
        }
        let mut session = Session {
            device: device.clone(),
            vocab: self.model.config.vocab_size,
            capacity: self.cache.capacity,
            shared: self.shared,
            chunks,
            position: 0,
            seed: 0,
        };
        session.set_draw(Draw::GREEDY)?;
        Ok(session)
    }
}

fn record(model: &Model, cache: &Cache, shared: &Shared, m: usize) -> Result<Recorded> {
    let mut stream = Stream::new(&format!("chunk{m}"), m);
    if m == 1 {
        stream.ids = shared.token.clone();
    }
    let pick = Tensor::input(format!("chunk{m}.pick"), [1], DType::U32);
    let mut graph = Graph::new(format!("{m} tokens"));
    let g = &mut graph;
    let x = forward::hidden(g, model, &stream, Some(cache), DType::F32, &mut Trace::default())?;
    let row = g.bind(&pick);
    let x = gather::gather(g, x, row, DType::F32)?;
    let y = forward::logits(g, model, x)?;
    let [logits, token, control, random] =
        [&shared.logits, &shared.token, &shared.control, &shared.random].map(|t| g.bind(t));
    copy::copy_into(g, y, logits)?;
    sample::sample_into(g, y, control, random, token)?;
    let plan = Plan::new(&graph);
    Ok(Recorded { stream, pick, graph, plan })
}

struct Chunk {
    stream: Stream,
    pick: Tensor,
    program: Box<dyn Program>,
}

/// A running session: weights, cache, programs and a position.
pub struct Session {
    device: Device,
    vocab: usize,
    capacity: usize,
    shared: Shared,
    chunks: Vec<Chunk>,
    position: usize,
    seed: u32,
}

impl Session {
    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Positions that the cache holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens. The cache's content need not be cleared: nothing beyond the position is read.
    pub fn reset(&mut self) {
        self.position = 0;
    }

    /// Sets how tokens are drawn from now on.
    pub fn set_draw(&mut self, draw: Draw) -> Result<()> {
        self.seed = draw.seed;
        let control = [draw.temperature, draw.top_k as f32, 0.0, 0.0];
        Ok(self.device.write(&self.shared.control, &control)?)
    }

    /// Feeds tokens; afterwards logits and the drawn token are those after the last of them.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(Error::Vocabulary { id: *id, vocab: self.vocab });
        }
        self.room(ids.len())?;
        let mut rest = ids;
        while !rest.is_empty() {
            let whole = self.chunks.iter().rposition(|c| c.stream.len() <= rest.len());
            let padded = self.chunks.iter().position(|c| c.stream.len() >= rest.len());
            // A padded chunk costs less than several runs of smaller ones.
            let largest = self.chunks.len() - 1;
            let index = if whole == Some(largest) { largest } else { padded.unwrap_or(largest) };
            let (part, tail) = rest.split_at(rest.len().min(self.chunks[index].stream.len()));
            self.device.write(&self.chunks[index].stream.ids, &padded_ids(part, self.chunks[index].stream.len()))?;
            self.run(index, part.len())?;
            rest = tail;
        }
        Ok(())
    }

    /// Feeds the token that the last run drew (or that [`Session::put`] wrote).
    pub fn step(&mut self) -> Result<()> {
        self.room(1)?;
        self.run(0, 1)
    }

    /// Replaces the drawn token, for choices that the host makes.
    pub fn put(&mut self, token: u32) -> Result<()> {
        Ok(self.device.write(&self.shared.token, &[token])?)
    }

    /// Starts reading the drawn token.
    pub fn token(&self) -> Result<PendingToken> {
        Ok(PendingToken(self.device.fetch(&self.shared.token)?))
    }

    /// Logits after the last token fed, `[V]`.
    pub fn logits(&self) -> Result<Vec<f32>> {
        Ok(self.device.read(&self.shared.logits)?)
    }

    /// Dispatches in one decode step.
    pub fn step_dispatches(&self) -> usize {
        self.chunks[0].program.dispatches()
    }

    /// The decode program, for measurements.
    pub fn step_program(&self) -> &dyn Program {
        &*self.chunks[0].program
    }

    fn room(&self, tokens: usize) -> Result<()> {
        let needed = self.position.saturating_add(tokens);
        if needed > self.capacity {
            return Err(Error::Context { needed, available: self.capacity });
        }
        Ok(())
    }

    fn run(&mut self, index: usize, valid: usize) -> Result<()> {
        let chunk = &self.chunks[index];
        let (m, first) = (chunk.stream.len(), self.position);
        let positions: Vec<u32> = (0..m).map(|i| (first + i.min(valid - 1)) as u32).collect();
        let slot = |i: usize| if i < valid { first + i } else { self.capacity } as u32;
        let slots: Vec<u32> = (0..m).map(slot).collect();
        let span: Vec<u32> = (0..m).flat_map(|i| [0, (first + i.min(valid - 1)) as u32]).collect();
        self.device.write(&chunk.stream.positions, &positions)?;
        self.device.write(&chunk.stream.slots, &slots)?;
        self.device.write(&chunk.stream.span, &span)?;
        self.device.write(&chunk.pick, &[valid as u32 - 1])?;
        self.device.write(&self.shared.random, &[self.seed, (first + valid) as u32])?;
        chunk.program.submit()?;
        self.position += valid;
        Ok(())
    }
}

fn padded_ids(part: &[u32], m: usize) -> Vec<u32> {
    let mut ids = part.to_vec();
    ids.resize(m, 0);
    ids
}

/// A token that is being read back.
pub struct PendingToken(Box<dyn Pending>);

impl PendingToken {
    /// Waits for it.
    pub fn wait(self) -> Result<u32> {
        let bytes = self.0.wait()?;
        Ok(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes).first().copied().unwrap_or(0))
    }
}
