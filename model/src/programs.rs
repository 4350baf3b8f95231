//! The programs of a session, recorded and planned before any device.
//!
//! Two kinds, over one cache. A *chunk* takes tokens of one prompt and gives the logits after the last
//! of them; the shorter tail of a prompt is padded into the smallest chunk that holds it. A *step* takes
//! a token for each of its rows and gives logits and a drawn token for every row. The rows may be
//! sequences of a batch, or consecutive tokens of one sequence (a draft to be verified). Steps come in
//! powers of two, rows that are left over are padding. Padding goes to a row beyond the cache, which
//! nothing keeps.

use crate::cache::{Cache, CacheFormat, CacheShape};
use crate::error::{Error, Result};
use crate::forward::{self, Cached, Places, Stream, Trace};
use crate::places::SLACK;
use crate::stream::{Split, Streamed};
use crate::weights::Model;
use tritter_runtime::device::{Arena, Program};
use tritter_runtime::ops::attention::mask::NO_WINDOW;
use tritter_runtime::ops::sample::{self, Drawing};
use tritter_runtime::ops::{copy, gather};
use tritter_runtime::{DType, Device, Graph, Plan, Tensor, Value};

/// Tokens that a chunk takes; a prompt of one token is a step.
pub const CHUNKS: [usize; 4] = [16, 64, 128, 256];

/// Most rows of a step.
pub const MOST_ROWS: usize = 64;

/// What a session has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Positions of every sequence.
    pub capacity: usize,
    /// Sequences that have a place in the cache.
    pub sequences: usize,
    /// Most rows of a step, at least one: sequences that decode together, or a draft and the token before it.
    pub rows: usize,
    /// How the cache is stored.
    pub cache: CacheFormat,
    /// Keys that a token sees, itself included; `None` for all. What went by is dropped from the cache. Plans take
    /// the model's own window where that is smaller.
    pub window: Option<usize>,
    /// First tokens of the text that are seen whatever the window is (attention sinks, Xiao et al. 2023); a
    /// query meets them as if what was dropped had never been.
    pub sinks: usize,
    /// Most tokens of a chunk of a prompt, of [`CHUNKS`].
    pub chunk: usize,
    /// Pages of the pool; `None` for as many as all sequences can fill.
    pub pages: Option<usize>,
}

impl Layout {
    /// One sequence that decodes token by token.
    pub fn single(capacity: usize, cache: CacheFormat) -> Layout {
        let chunk = CHUNKS[CHUNKS.len() - 1];
        Layout { capacity, sequences: 1, rows: 1, cache, window: None, sinks: 0, chunk, pages: None }
    }

    /// Lengths of chunks, rising: none is twice as long as it need be.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = usize> {
        let (capacity, most) = (self.capacity, self.chunk);
        let needed = move |i: &usize| i.checked_sub(1).map_or(1, |i| CHUNKS[i]) < capacity && CHUNKS[*i] <= most;
        (0..CHUNKS.len()).filter(needed).map(|i| CHUNKS[i])
    }

    /// Checks it against a model; gives the shape of its cache.
    pub(crate) fn check(&self, model: &Model) -> Result<CacheShape> {
        let Layout { capacity, sequences, rows, cache, window, sinks, chunk, .. } = *self;
        cache.check()?;
        if capacity == 0 || capacity > model.positions {
            return Err(Error::Context { needed: capacity, available: model.positions });
        }
        if sequences == 0 || rows == 0 || rows > MOST_ROWS {
            return Err(Error::Session(format!(
                "{sequences} sequences in steps of {rows} rows; there must be one at least and {MOST_ROWS} rows at most"
            )));
        }
        if !CHUNKS.contains(&chunk) {
            return Err(Error::Session(format!("chunks of {chunk} tokens; there are {CHUNKS:?}")));
        }
        match window {
            Some(0) => return Err(Error::Session("a window of 0 tokens sees nothing; it must be 1 at least".into())),
            Some(window) if sinks > window => {
                return Err(Error::Session(format!("{sinks} sinks are more than the window of {window} tokens")));
            }
            None if sinks > 0 => {
                return Err(Error::Session(format!("{sinks} sinks without a window: all tokens are seen anyway")));
            }
            _ => {}
        }
        let entries = capacity.div_ceil(cache.page);
        let longest = self.chunks().last().unwrap_or(0).max(rows);
        // What a window still sees or keeps for taking back, what a chunk writes, and one more where neither begins
        // with a page.
        let seen = |window: usize| window.saturating_add(SLACK + longest).div_ceil(cache.page);
        let held = |window: usize| seen(window).saturating_add(sinks.div_ceil(cache.page) + 1).min(entries);
        let held = window.map_or(entries, held);
        // Rows of the cache are numbered in u32, and one number stands for none.
        let most = sequences
            .checked_mul(held)
            .filter(|pages| pages.checked_mul(cache.page).is_some_and(|rows| rows < u32::MAX as usize));
        let most = most.ok_or(Error::Context { needed: capacity, available: u32::MAX as usize / sequences })?;
        let pages = self.pages.map_or(most, |pages| pages.min(most));
        if pages == 0 {
            return Err(Error::Session("a pool of 0 pages holds no token".into()));
        }
        let ring = cache.ring(longest);
        let window = window.and_then(|window| u32::try_from(window).ok()).unwrap_or(NO_WINDOW);
        Ok(CacheShape { format: cache, sequences, entries, pages, ring, window, sinks: sinks as u32 })
    }
}

/// What a step writes, and how it draws.
#[derive(Clone, Debug)]
pub(crate) struct Drawn {
    /// `[B, V]`.
    pub(crate) logits: Tensor,
    /// `[B]`, the next step's input.
    pub(crate) tokens: Tensor,
    /// Settings by row.
    pub(crate) control: Tensor,
    /// Seed and number of the draw, `[B, 2]`.
    pub(crate) random: Tensor,
    /// The ids that each row drew last, `[B, RECENT]`.
    pub(crate) recent: Tensor,
}

/// Settings of a row in `control`.
pub(crate) const CONTROL: usize = sample::CONTROL;

/// Ids that a row remembers on the device.
pub(crate) const RECENT: usize = 64;

impl Drawn {
    fn new(rows: usize, vocab: usize) -> Drawn {
        Drawn {
            logits: Tensor::state(format!("step{rows}.logits"), [rows, vocab], DType::F32),
            tokens: Tensor::state(format!("step{rows}.tokens"), [rows], DType::U32),
            control: Tensor::input(format!("step{rows}.control"), [rows, CONTROL], DType::F32),
            random: Tensor::input(format!("step{rows}.random"), [rows, 2], DType::U32),
            recent: Tensor::state(format!("step{rows}.recent"), [rows, RECENT], DType::U32),
        }
    }

    /// Records the copy of logits `x` and a draw for each of their rows.
    fn record(&self, g: &mut Graph, x: Value) -> Result<()> {
        let [logits, tokens, control, random, recent] =
            [&self.logits, &self.tokens, &self.control, &self.random, &self.recent].map(|t| g.bind(t));
        copy::copy_into(g, x, logits)?;
        sample::sample_into(g, x, Drawing { control, random, recent }, tokens)?;
        Ok(())
    }
}

/// A program before it has a device.
#[derive(Debug)]
pub(crate) struct Recorded {
    stream: Stream,
    places: Places,
    pick: Option<Tensor>,
    drawn: Drawn,
    pub(crate) parts: Vec<Part>,
}

/// A part of a program: all of it, unless layers are streamed.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) graph: Graph,
    pub(crate) plan: Plan,
}

impl Part {
    fn new(graph: Graph) -> Part {
        Part { plan: Plan::new(&graph), graph }
    }
}

/// Records a program up to its final norm and gives its last part, which is to be finished, with `[m, D]`. Where
/// layers are streamed, each group is a part, and what goes from one part to the next does so in a tensor.
fn hidden(
    model: &Model,
    stream: &Stream,
    cached: Cached<'_>,
    name: &str,
    split: &Split,
) -> Result<(Vec<Part>, Graph, Value)> {
    let mut trace = Trace::default();
    let between = Tensor::state(format!("{name}.hidden"), [stream.len(), model.config.hidden_size], DType::F32);
    let (mut parts, mut graph) = (Vec::new(), Graph::new(name));
    let mut x = forward::embed(&mut graph, model, stream, DType::F32, &mut trace)?;
    for index in 0..=model.layers.len() {
        if split.cuts_at(index) {
            let to = graph.bind(&between);
            copy::copy_into(&mut graph, x, to)?;
            parts.push(Part::new(std::mem::replace(&mut graph, Graph::new(format!("{name} from layer {index}")))));
            x = graph.bind(&between);
        }
        if index < model.layers.len() {
            x = forward::layer(&mut graph, model, index, stream, Some(cached), x, &mut trace)?;
        }
    }
    let x = forward::finish(&mut graph, model, x, &mut trace)?;
    Ok((parts, graph, x))
}

/// All programs of a layout: chunks, then steps, each by rising length.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) chunks: Vec<Recorded>,
    pub(crate) steps: Vec<Recorded>,
}

impl Programs {
    /// Records and plans.
    pub(crate) fn record(model: &Model, cache: &Cache, layout: &Layout, split: &Split) -> Result<Programs> {
        let widths = (0..).map(|i| 1 << i).take_while(|width| *width < 2 * layout.rows);
        let steps: Vec<Recorded> = widths.map(|rows| step(model, cache, rows, split)).collect::<Result<_>>()?;
        let first = steps.first().map(|step| step.drawn.clone());
        let drawn = first.ok_or_else(|| Error::Session("a step has no rows".into()))?;
        let chunks = layout.chunks().map(|m| chunk(model, cache, &drawn, m, split)).collect::<Result<_>>()?;
        Ok(Programs { chunks, steps })
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Recorded> {
        self.chunks.iter().chain(&self.steps)
    }
}

/// One row a sequence, or one row a token of a draft.
fn step(model: &Model, cache: &Cache, rows: usize, split: &Split) -> Result<Recorded> {
    let mut stream = Stream::new(&format!("step{rows}"), rows);
    let drawn = Drawn::new(rows, model.config.vocab_size);
    stream.ids = drawn.tokens.clone();
    let places = Places::new(&format!("step{rows}"), rows, &cache.shape, false);
    let cached = Cached { cache, places: &places };
    let (mut parts, mut graph, x) = hidden(model, &stream, cached, &format!("step of {rows}"), split)?;
    let g = &mut graph;
    let x = forward::logits(g, model, x)?;
    drawn.record(g, x)?;
    parts.push(Part::new(graph));
    Ok(Recorded { stream, places, pick: None, drawn, parts })
}

/// `m` tokens of one sequence.
fn chunk(model: &Model, cache: &Cache, drawn: &Drawn, m: usize, split: &Split) -> Result<Recorded> {
    let stream = Stream::new(&format!("chunk{m}"), m);
    let pick = Tensor::input(format!("chunk{m}.pick"), [1], DType::U32);
    let places = Places::new(&format!("chunk{m}"), m, &cache.shape, true);
    let cached = Cached { cache, places: &places };
    let (mut parts, mut graph, x) = hidden(model, &stream, cached, &format!("{m} tokens"), split)?;
    let g = &mut graph;
    let row = g.bind(&pick);
    let x = gather::gather(g, x, row, DType::F32)?;
    let x = forward::logits(g, model, x)?;
    drawn.record(g, x)?;
    parts.push(Part::new(graph));
    Ok(Recorded { stream, places, pick: Some(pick), drawn: drawn.clone(), parts })
}

/// One row of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Angle of RoPE.
    pub(crate) position: u32,
    /// Whole row of the cache that it writes.
    pub(crate) slot: u32,
    /// Sequence, first and last key that it sees, first key that it sees whole.
    pub(crate) seen: [u32; 4],
    /// Positions by which its query turns back for sinks.
    pub(crate) turn: u32,
}

/// A compiled program.
pub(crate) struct Ready {
    stream: Stream,
    places: Places,
    pick: Option<Tensor>,
    pub(crate) drawn: Drawn,
    /// One, unless layers are streamed.
    parts: Vec<Box<dyn Program>>,
}

impl Recorded {
    /// Where its logits go.
    pub(crate) fn logits(&self) -> &Tensor {
        &self.drawn.logits
    }

    pub(crate) fn compile(self, device: &Device, arena: &Arena) -> Result<Ready> {
        for tensor in self.parts.iter().flat_map(|part| part.graph.tensors()) {
            device.allocate(tensor)?;
        }
        device.write(&self.drawn.recent, &vec![sample::EMPTY; self.drawn.recent.spec().elements()])?;
        let parts = self.parts.iter().map(|part| device.compile(&part.graph, &part.plan, arena));
        let parts = parts.collect::<tritter_runtime::Result<_>>()?;
        Ok(Ready { stream: self.stream, places: self.places, pick: self.pick, drawn: self.drawn, parts })
    }
}

impl Ready {
    /// Rows that it takes.
    pub(crate) fn len(&self) -> usize {
        self.stream.len()
    }

    /// Writes the ids, zero for padding.
    pub(crate) fn write_ids(&self, device: &Device, ids: &[u32]) -> Result<()> {
        let mut ids = ids.to_vec();
        ids.resize(self.len(), 0);
        Ok(device.write(&self.stream.ids, &ids)?)
    }

    /// Dispatches in one run.
    pub(crate) fn dispatches(&self) -> usize {
        self.parts.iter().map(|part| part.dispatches()).sum()
    }

    /// Writes where the rows stand and what becomes codes, and puts a run into the queue. Padding sees what the
    /// last row sees, for spans must not fall, and is kept nowhere.
    pub(crate) fn run(
        &self,
        device: &Device,
        rows: &[Row],
        groups: &[[u32; 2]],
        weights: Option<&Streamed>,
    ) -> Result<()> {
        let Some(last) = rows.last() else { return Ok(()) };
        let mut rows = rows.to_vec();
        let valid = rows.len() as u32;
        rows.resize(self.len(), Row { slot: u32::MAX, ..*last });
        let column = |f: fn(&Row) -> u32| rows.iter().map(f).collect::<Vec<u32>>();
        device.write(&self.stream.positions, &column(|r| r.position))?;
        let places = &self.places;
        device.write(&places.slots, &column(|r| r.slot))?;
        device.write(&places.seen, &rows.iter().flat_map(|r| r.seen).collect::<Vec<u32>>())?;
        if places.turns.buffer().is_some() {
            device.write(&places.turns, &column(|r| r.turn))?;
        }
        if places.groups.buffer().is_some() {
            let mut groups = groups.to_vec();
            groups.resize(places.groups.spec().rows(), [0, u32::MAX]);
            device.write(&places.groups, &groups.concat())?;
        }
        if let Some(pick) = &self.pick {
            device.write(pick, &[valid - 1])?;
        }
        match weights {
            Some(weights) => weights.run(&self.parts),
            None => Ok(self.parts.iter().try_for_each(|part| part.submit().map(drop))?),
        }
    }
}
