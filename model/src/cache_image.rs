//! What a cache holds of one sequence, taken out of a session or put into one: forks of a sequence, files of a
//! prompt, and contexts of random content for measurements.

use crate::cache::{Cache, CacheShape};
use crate::error::{Error, Result};
use crate::places::Stand;
use crate::session::Session;
use half::f16;
use tritter_runtime::ops::paged::codes::Block;
use tritter_runtime::random::Random;
use tritter_runtime::{DType, Device, Tensor};

/// The pages and newest tokens of one sequence, by layer, as a device stores them.
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
    /// By layer the stored bytes of those pages.
    pub content: Vec<Vec<u8>>,
    /// By layer the sequence's ring, beside integers.
    pub newest: Vec<Vec<u8>>,
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

    /// What the cache holds of a sequence.
    pub fn image(&self, sequence: usize) -> Result<CacheImage> {
        self.position_of(sequence)?;
        let (cache, stand) = (&self.cache, self.sequences.each[sequence]);
        let entries = 0..cache.shape.entries;
        let held: Vec<(usize, u32)> =
            entries.filter_map(|i| self.sequences.pages.page(sequence, i).map(|page| (i, page))).collect();
        let bytes = cache.page_bytes();
        let layer = |tensor: &Tensor| -> Result<Vec<u8>> {
            let pages = held.iter().map(|(_, page)| self.device.read_at(tensor, u64::from(*page) * bytes, bytes));
            Ok(pages.collect::<std::result::Result<Vec<_>, _>>()?.concat())
        };
        let ring = cache.ring_bytes();
        let newest = |tensor: &Tensor| Ok(self.device.read_at(tensor, sequence as u64 * ring, ring)?);
        Ok(CacheImage {
            position: stand.position,
            coded: stand.coded,
            floor: stand.floor,
            kept: stand.kept,
            whole: stand.written.saturating_sub(cache.shape.ring).min(stand.position),
            pages: held.iter().map(|(i, _)| *i).collect(),
            content: cache.pool().iter().map(layer).collect::<Result<_>>()?,
            newest: if ring == 0 { Vec::new() } else { cache.rows.iter().map(newest).collect::<Result<_>>()? },
        })
    }

    /// Puts an image into a sequence, whatever that held before.
    pub fn restore(&mut self, sequence: usize, image: &CacheImage) -> Result<()> {
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
        let (page_bytes, ring_bytes) = (self.cache.page_bytes(), self.cache.ring_bytes());
        for (tensor, content) in self.cache.pool().iter().zip(&image.content) {
            for (&entry, bytes) in image.pages.iter().zip(content.chunks_exact(page_bytes as usize)) {
                let page = self.sequences.pages.page(sequence, entry).unwrap_or_default();
                self.device.write_at(tensor, u64::from(page) * page_bytes, bytes)?;
            }
        }
        for (tensor, newest) in self.cache.rows.iter().zip(&image.newest) {
            self.device.write_at(tensor, sequence as u64 * ring_bytes, newest)?;
        }
        Ok(())
    }

    /// Is an image one of a cache like this?
    fn fits(&self, image: &CacheImage) -> Result<()> {
        let (cache, CacheImage { position, coded, floor, kept, whole, pages, content, newest }) = (&self.cache, image);
        let CacheShape { format, entries, ring, .. } = cache.shape;
        let (layers, integers) = (cache.rows.len(), format.bits().is_some());
        let sizes = |parts: &[Vec<u8>], bytes: u64| parts.iter().all(|part| part.len() as u64 == bytes);
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
            && [coded, floor, kept].iter().all(|n| n.is_multiple_of(format.page))
            && content.len() == layers
            && sizes(content, cache.page_bytes().saturating_mul(pages.len() as u64))
            && newest.len() == if integers { layers } else { 0 }
            && sizes(newest, cache.ring_bytes())
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
