//! What a cache holds of one sequence: forks of a sequence, where files of a prompt ([`crate::cache_file`]) find their
//! bytes, and contexts of random content for measurements.

use crate::cache::{Cache, CacheShape};
use crate::error::{Error, Result};
use crate::places::Stand;
use crate::session::Session;
use half::f16;
use std::ops::Range;
use tritter_runtime::ops::paged::codes::Block;
use tritter_runtime::random::Random;
use tritter_runtime::{DType, Device, Tensor};

/// Where one sequence stands, and which pages of its text the cache holds: all but the bytes themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheImage {
    /// Tokens.
    pub position: usize,
    /// Tokens that are codes, beside integers.
    pub coded: usize,
    /// The first token that may be seen whole, beside integers.
    pub floor: usize,
    /// First token after the sinks that was not dropped behind a window.
    pub kept: usize,
    /// First token whose whole row is in the ring, beside integers.
    pub whole: usize,
    /// Pages of the text that are there, rising.
    pub pages: Vec<usize>,
}

/// Bytes that are copied at a time between a device and a file, if a page is not more.
const PIECE: u64 = 4 << 20;

/// Consecutive pages or rows of an image that lie side by side on the device, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which of the image's pages, or of its newest rows, counted from the first that is there.
    pub(crate) rows: Range<usize>,
    /// Where they begin in a layer's tensor, in bytes.
    pub(crate) at: u64,
}

impl Cache {
    /// The tensors of the pool, by layer.
    pub(crate) fn pool(&self) -> &[Tensor] {
        if self.codes.is_empty() { &self.rows } else { &self.codes }
    }

    /// Bytes of a page in one layer.
    pub fn page_bytes(&self) -> u64 {
        self.pool().first().map_or(0, |tensor| tensor.spec().bytes() / self.shape.pages as u64)
    }

    /// Bytes of a sequence's ring in one layer.
    pub fn ring_bytes(&self) -> u64 {
        let ring = if self.codes.is_empty() { None } else { self.rows.first() };
        ring.map_or(0, |tensor| tensor.spec().bytes() / self.shape.sequences as u64)
    }

    /// Bytes of a token's row in a ring.
    pub(crate) fn ring_row_bytes(&self) -> u64 {
        self.ring_bytes() / self.shape.ring.max(1) as u64
    }

    /// Copies a page of the pool, in all layers.
    pub(crate) fn copy_page(&self, device: &Device, from: u32, to: u32) -> Result<()> {
        copy(device, self.pool(), self.page_bytes(), [u64::from(from), u64::from(to)])
    }

    /// Copies the newest tokens of a sequence, in all layers.
    pub(crate) fn copy_ring(&self, device: &Device, from: usize, to: usize) -> Result<()> {
        if self.codes.is_empty() {
            return Ok(());
        }
        copy(device, &self.rows, self.ring_bytes(), [from as u64, to as u64])
    }
}

fn copy(device: &Device, tensors: &[Tensor], bytes: u64, [from, to]: [u64; 2]) -> Result<()> {
    for tensor in tensors {
        let content = device.read_at(tensor, from * bytes, bytes)?;
        device.write_at(tensor, to * bytes, &content)?;
    }
    Ok(())
}

impl Session {
    /// Lets `sequence` hold the first `tokens` tokens of another: their pages are shared until one of them writes
    /// into them. Gives how many it got, which may be fewer (see [`Session::rewind`]).
    pub fn fork(&mut self, from: usize, sequence: usize, tokens: usize) -> Result<usize> {
        let there = self.position_of(from)?;
        self.position_of(sequence)?;
        if from == sequence || tokens > there {
            return Err(Error::Session(format!(
                "{tokens} tokens of sequence {from}, which has {there}, for {sequence}"
            )));
        }
        self.sequences.rewind(sequence, 0);
        self.sequences.share(from, sequence);
        self.cache.copy_ring(&self.device, from, sequence)?;
        self.rewind(sequence, tokens)
    }

    /// Where a sequence stands and what the cache holds of it.
    pub fn image(&self, sequence: usize) -> Result<CacheImage> {
        self.position_of(sequence)?;
        let (shape, stand) = (&self.cache.shape, self.sequences.each[sequence]);
        Ok(CacheImage {
            position: stand.position,
            coded: stand.coded,
            floor: stand.floor,
            kept: stand.kept,
            whole: stand.written.saturating_sub(shape.ring).min(stand.position),
            pages: (0..shape.entries).filter(|&i| self.sequences.pages.page(sequence, i).is_some()).collect(),
        })
    }

    /// Lets a sequence stand as an image says, over pages of its own whose content is then to be written, whatever
    /// it held before.
    pub(crate) fn place(&mut self, sequence: usize, image: &CacheImage) -> Result<()> {
        self.position_of(sequence)?;
        self.fits(image)?;
        self.sequences.rewind(sequence, 0);
        let stand = Stand {
            position: image.position,
            // A ring holds the newest tokens ever written; before `whole` there are none.
            written: if image.whole == 0 {
                image.position
            } else {
                image.position.max(image.whole + self.cache.shape.ring)
            },
            coded: image.coded,
            floor: image.floor,
            kept: image.kept,
        };
        for &page in &image.pages {
            if !self.sequences.pages.take(sequence, page, page + 1) {
                self.sequences.rewind(sequence, 0);
                return Err(Error::Pages { sequence, pages: self.cache.shape.pages });
            }
        }
        self.sequences.each[sequence] = stand;
        Ok(())
    }

    /// An image's pages as they lie in the pool.
    pub(crate) fn page_pieces(&self, sequence: usize, image: &CacheImage) -> Vec<Piece> {
        let bytes = self.cache.page_bytes();
        let places = image.pages.iter().map(|&i| self.sequences.pages.page(sequence, i).unwrap_or_default());
        pieces(places.map(u64::from), bytes, 0)
    }

    /// The rows of an image's newest tokens as they lie in the sequence's ring.
    pub(crate) fn ring_pieces(&self, sequence: usize, image: &CacheImage) -> Vec<Piece> {
        let ring = self.cache.shape.ring;
        if ring == 0 {
            return Vec::new();
        }
        let places = (image.whole..image.position).map(|token| (token % ring) as u64);
        pieces(places, self.cache.ring_row_bytes(), sequence as u64 * self.cache.ring_bytes())
    }

    /// Is an image one of a cache like this?
    fn fits(&self, image: &CacheImage) -> Result<()> {
        let (cache, CacheImage { position, coded, floor, kept, whole, pages }) = (&self.cache, image);
        let CacheShape { format, entries, ring, .. } = cache.shape;
        let integers = format.bits().is_some();
        let rising = pages.is_sorted_by(|a, b| a < b) && pages.iter().all(|page| *page < entries);
        // Every page that a token may see: from the beginning, or the sinks and what the window kept.
        let end = if integers { coded / format.page } else { position.div_ceil(format.page) };
        let sinks = (cache.shape.sinks as usize).div_ceil(format.page);
        let seen = (0..end).filter(|i| *i < sinks || *i >= kept / format.page);
        let complete = seen.clone().all(|i| pages.binary_search(&i).is_ok());
        let right = *position <= self.capacity()
            && rising
            && complete
            && coded <= position
            && (!integers || *coded >= position.saturating_sub(format.residual) / format.page * format.page)
            && floor <= coded
            && kept <= position
            && whole <= position
            && [coded, floor, kept].iter().all(|n| n.is_multiple_of(format.page))
            && (!integers || whole <= coded && position - whole <= ring);
        right.then_some(()).ok_or_else(|| Error::Session("the image is of another cache".into()))
    }

    /// Fills a sequence with so many tokens of random content: what a context of that length costs can then be
    /// measured without feeding one. What is generated after them means nothing.
    pub fn fill(&mut self, sequence: usize, tokens: usize, seed: u64) -> Result<()> {
        self.position_of(sequence)?;
        self.room(sequence, tokens)?;
        self.sequences.rewind(sequence, 0);
        self.sequences.each[sequence] = self.sequences.stand_at(tokens);
        let held = self.sequences.held(sequence);
        for &entry in &held {
            if !self.sequences.pages.take(sequence, entry, entry + 1) {
                self.sequences.rewind(sequence, 0);
                return Err(Error::Pages { sequence, pages: self.cache.shape.pages });
            }
        }
        let (cache, mut random) = (&self.cache, Random::new(seed));
        let (page_bytes, ring_bytes) = (cache.page_bytes(), cache.ring_bytes());
        // A few pages again and again: what they hold does not matter, that they are read does.
        let pages: Vec<Vec<u8>> = (0..8).map(|_| self.random_page(&mut random)).collect();
        for tensor in cache.pool() {
            for (i, &entry) in held.iter().enumerate() {
                let page = self.sequences.pages.page(sequence, entry).unwrap_or_default();
                self.device.write_at(tensor, u64::from(page) * page_bytes, &pages[i % pages.len()])?;
            }
        }
        if ring_bytes > 0 {
            let ring = floats(DType::F32, ring_bytes as usize / 4, &mut random);
            for tensor in &cache.rows {
                self.device.write_at(tensor, sequence as u64 * ring_bytes, &ring)?;
            }
        }
        Ok(())
    }

    /// A page of one layer.
    fn random_page(&self, random: &mut Random) -> Vec<u8> {
        let (bytes, config) = (self.cache.page_bytes() as usize, &self.config);
        let Some(block) = self.cache.shape.format.block(config.head_dim) else {
            let dtype = self.cache.shape.format.rows();
            let size = if dtype == DType::F16 { 2 } else { 4 };
            return floats(dtype, bytes / size, random);
        };
        (0..config.num_kv_heads).flat_map(|_| random_block(block, random)).collect()
    }
}

/// Places of `bytes` each, cut where they do not follow each other and where a piece would be too large.
fn pieces(places: impl Iterator<Item = u64>, bytes: u64, from: u64) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (row, place) in places.enumerate() {
        let at = from + place * bytes;
        match pieces.last_mut() {
            Some(Piece { rows, at: first })
                if *first + rows.len() as u64 * bytes == at && (rows.len() as u64 + 1) * bytes <= PIECE =>
            {
                rows.end = row + 1;
            }
            _ => pieces.push(Piece { rows: row..row + 1, at }),
        }
    }
    pieces
}

/// Normal values as stored bytes.
fn floats(dtype: DType, count: usize, random: &mut Random) -> Vec<u8> {
    let values = (0..count).map(|_| random.normal() as f32);
    if dtype == DType::F16 {
        values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect()
    } else {
        values.flat_map(f32::to_le_bytes).collect()
    }
}

/// A block of quantised normal values.
fn random_block(block: Block, random: &mut Random) -> Vec<u8> {
    let rows: Vec<f32> = (0..2 * block.page * block.d).map(|_| random.normal() as f32).collect();
    let (keys, values) = rows.split_at(block.page * block.d);
    let mut words = vec![0u32; block.words()];
    let row = |t: usize| t * block.d..(t + 1) * block.d;
    block.fill(&mut words, |t| &keys[row(t)], |t| &values[row(t)]);
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cache::{CacheFormat, CacheKind};
    use crate::config::Family;
    use crate::presets::preset;
    use crate::programs::Layout;
    use crate::session::SessionPlan;
    use crate::weights::{Form, Model};
    use tritter_runtime::cpu;

    #[test]
    fn pieces_follow_the_device_and_stay_small() {
        let cut = |places: &[u64], bytes| pieces(places.iter().copied(), bytes, 100);
        let piece = |rows, at| Piece { rows, at };
        assert_eq!(cut(&[3, 4, 5, 1, 2], 8), [piece(0..3, 124), piece(3..5, 108)]);
        assert_eq!(cut(&[0, 1, 2], PIECE / 2), [piece(0..2, 100), piece(2..3, 100 + PIECE)]);
        assert_eq!(cut(&[0, 1], 2 * PIECE), [piece(0..1, 100), piece(1..2, 100 + 2 * PIECE)]);
        assert!(cut(&[], 8).is_empty());
    }

    #[test]
    fn an_image_that_no_sequence_can_stand_at_is_refused() {
        let mut config = preset("test").unwrap().config(Family::Llama, Some(64), Some(512));
        (config.hidden_size, config.intermediate_size, config.num_layers) = (24, 32, 1);
        (config.num_heads, config.num_kv_heads, config.head_dim) = (2, 1, 12);
        let model = Model::new(&config, Form::Run, 512);
        for kind in [CacheKind::F32, CacheKind::Int4] {
            let format = CacheFormat { page: 32, residual: 32, ..CacheFormat::from(kind) };
            let layout = Layout { window: Some(100), sinks: 4, ..Layout::single(300, format) };
            let mut session = SessionPlan::with(&model, layout).unwrap().open(&cpu::open()).unwrap();
            session.fill(0, 290, 1).unwrap();
            let image = session.image(0).unwrap();
            session.place(0, &image).unwrap();
            assert_eq!(session.image(0).unwrap(), image);
            let mut refused = |change: &dyn Fn(&mut CacheImage)| {
                let mut other = image.clone();
                change(&mut other);
                assert!(session.place(0, &other).is_err(), "{kind:?}: {other:?}");
                assert_eq!(session.image(0).unwrap(), image, "what was there stays");
            };
            refused(&|i| i.position = 301);
            refused(&|i| i.position = usize::MAX);
            refused(&|i| i.coded = i.position + 32);
            refused(&|i| i.floor += 1);
            refused(&|i| i.kept = usize::MAX / 32 * 32);
            refused(&|i| i.pages.truncate(1));
            refused(&|i| i.pages.reverse());
            refused(&|i| i.pages.push(1 << 40));
            if kind == CacheKind::Int4 {
                refused(&|i| i.coded = 0);
                refused(&|i| i.whole = i.position);
                refused(&|i| i.whole = usize::MAX);
            }
        }
    }
}
