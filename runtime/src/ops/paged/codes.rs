//! The block that holds a page's keys and values of one head as codes (KIVI, Liu et al. 2024).
//!
//! Keys are quantised per channel over the tokens of the page, values per token over groups of as many channels
//! as a page has tokens. A block has four sections, each a whole number of 4 words: codes of the keys (rows of
//! tokens, natural order, lowest bits first), their parameters by channel, codes of the values, their parameters by
//! token and group. A parameter is a scale and a zero: two f16 in a word, scale below, or two words of f32 where
//! the format is *precise*. `value = code · scale + zero`.

use half::f16;

/// Shape of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Tokens of a page, and channels that share a value's parameters: 32, 64 or 128.
    pub page: usize,
    /// Channels of a head.
    pub d: usize,
    /// Bits of a code: 2, 4 or 8.
    pub bits: usize,
    /// Parameters in f32 instead of f16.
    pub precise: bool,
}

/// Scale and zero of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parameters {
    /// Step between codes.
    pub scale: f32,
    /// Value of code 0.
    pub zero: f32,
}

impl Block {
    /// Words of a token's codes.
    pub fn row_words(&self) -> usize {
        (self.d * self.bits).div_ceil(32)
    }

    /// Groups of channels of a value.
    pub fn groups(&self) -> usize {
        self.d.div_ceil(self.page)
    }

    fn entry(&self) -> usize {
        1 + usize::from(self.precise)
    }

    /// First words of: codes of the keys, their parameters, codes of the values, their parameters, the end.
    pub fn sections(&self) -> [usize; 5] {
        let codes = self.page * self.row_words();
        let keys = self.d.next_multiple_of(4) * self.entry();
        let values = self.page * self.groups() * self.entry();
        [0, codes, codes + keys, 2 * codes + keys, 2 * codes + keys + values]
    }

    /// Words of a block.
    pub fn words(&self) -> usize {
        self.sections()[4]
    }

    /// The largest code.
    pub fn most(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// Code of a channel in a token's row of codes.
    pub fn code(&self, row: &[u32], channel: usize) -> u32 {
        let bit = channel * self.bits;
        (row[bit / 32] >> (bit % 32)) & ((1 << self.bits) - 1)
    }

    /// Row of codes of a token, of the keys or of the values.
    pub fn row<'b>(&self, block: &'b [u32], values: bool, token: usize) -> &'b [u32] {
        let (first, r) = (self.sections()[2 * usize::from(values)], self.row_words());
        &block[first + token * r..first + (token + 1) * r]
    }

    /// Parameters of a channel of the keys.
    pub fn key_parameters(&self, block: &[u32], channel: usize) -> Parameters {
        self.parameters(&block[self.sections()[1]..], channel)
    }

    /// Parameters of a group of channels of a token's value.
    pub fn value_parameters(&self, block: &[u32], token: usize, group: usize) -> Parameters {
        self.parameters(&block[self.sections()[3]..], token * self.groups() + group)
    }

    /// Entry `i` of a section of parameters.
    fn parameters(&self, section: &[u32], i: usize) -> Parameters {
        if self.precise {
            Parameters { scale: f32::from_bits(section[2 * i]), zero: f32::from_bits(section[2 * i + 1]) }
        } else {
            let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
            Parameters { scale: half(section[i]), zero: half(section[i] >> 16) }
        }
    }

    fn put_parameters(&self, section: &mut [u32], i: usize, p: Parameters) {
        if self.precise {
            (section[2 * i], section[2 * i + 1]) = (p.scale.to_bits(), p.zero.to_bits());
        } else {
            let half = |v: f32| u32::from(f16::from_f32(v).to_bits());
            section[i] = half(p.scale) | half(p.zero) << 16;
        }
    }

    /// Key of a token, into `out[d]`.
    pub fn key(&self, block: &[u32], token: usize, out: &mut [f32]) {
        let row = self.row(block, false, token);
        for (c, out) in out.iter_mut().enumerate() {
            let p = self.key_parameters(block, c);
            *out = self.code(row, c) as f32 * p.scale + p.zero;
        }
    }

    /// Value of a token, into `out[d]`.
    pub fn value(&self, block: &[u32], token: usize, out: &mut [f32]) {
        let row = self.row(block, true, token);
        for (c, out) in out.iter_mut().enumerate() {
            let p = self.value_parameters(block, token, c / self.page);
            *out = self.code(row, c) as f32 * p.scale + p.zero;
        }
    }

    /// Parameters of a group from its smallest and largest element, as they are stored.
    pub fn fit(&self, low: f32, high: f32) -> Parameters {
        let scale = (high - low) / self.most();
        if self.precise {
            return Parameters { scale, zero: low };
        }
        let stored = |v: f32| f16::from_f32(v.clamp(-65504.0, 65504.0)).to_f32();
        Parameters { scale: stored(scale), zero: stored(low) }
    }

    /// Fills a block: `keys(token)` and `values(token)` give rows of `d` elements.
    pub fn fill<'a>(&self, block: &mut [u32], keys: impl Fn(usize) -> &'a [f32], values: impl Fn(usize) -> &'a [f32]) {
        block[..self.words()].fill(0);
        let [_, key_parameters, value_codes, value_parameters, _] = self.sections();
        let r = self.row_words();
        for c in 0..self.d {
            let (low, high) = (0..self.page)
                .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), t| (low.min(keys(t)[c]), high.max(keys(t)[c])));
            let p = self.fit(low, high);
            self.put_parameters(&mut block[key_parameters..], c, p);
            for t in 0..self.page {
                self.put_code(&mut block[t * r..], c, quantised(keys(t)[c], p, self.most()));
            }
        }
        for t in 0..self.page {
            for (group, part) in values(t).chunks(self.page).enumerate() {
                let low = part.iter().copied().fold(f32::INFINITY, f32::min);
                let high = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let p = self.fit(low, high);
                self.put_parameters(&mut block[value_parameters..], t * self.groups() + group, p);
                for (i, &x) in part.iter().enumerate() {
                    let row = &mut block[value_codes + t * r..];
                    self.put_code(row, group * self.page + i, quantised(x, p, self.most()));
                }
            }
        }
    }

    fn put_code(&self, row: &mut [u32], channel: usize, code: u32) {
        let bit = channel * self.bits;
        row[bit / 32] |= code << (bit % 32);
    }
}

/// The code of `x`, rounded half to even; 0 where the scale is 0.
pub fn quantised(x: f32, p: Parameters, most: f32) -> u32 {
    if p.scale == 0.0 {
        return 0;
    }
    ((x - p.zero) / p.scale).round_ties_even().clamp(0.0, most) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Random, fresh_seed};

    #[test]
    fn a_value_comes_back_within_half_a_step() {
        let seed = fresh_seed();
        let mut random = Random::new(seed);
        for (page, d, bits, precise) in [(32, 10, 2, true), (64, 64, 4, false), (32, 70, 8, false), (128, 130, 4, true)]
        {
            let block = Block { page, d, bits, precise };
            assert!(block.sections().iter().all(|s| s.is_multiple_of(4)), "{block:?}");
            let rows: Vec<f32> = (0..2 * page * d).map(|_| random.normal() as f32).collect();
            let (keys, values) = (|t: usize| &rows[t * d..][..d], |t: usize| &rows[(page + t) * d..][..d]);
            let mut words = vec![u32::MAX; block.words()];
            block.fill(&mut words, keys, values);
            let mut out = vec![0.0; d];
            for t in 0..page {
                block.key(&words, t, &mut out);
                for (c, out) in out.iter().enumerate() {
                    let step = block.key_parameters(&words, c).scale;
                    // A zero and a scale in f16 move the grid's ends.
                    let slack = if precise { 1e-6 } else { 8e-3 };
                    assert!((out - keys(t)[c]).abs() <= 0.5 * step + slack, "seed {seed}: {block:?} key {t} {c}");
                }
                block.value(&words, t, &mut out);
                for (c, out) in out.iter().enumerate() {
                    let step = block.value_parameters(&words, t, c / page).scale;
                    let slack = if precise { 1e-6 } else { 8e-3 };
                    assert!((out - values(t)[c]).abs() <= 0.5 * step + slack, "seed {seed}: {block:?} value {t} {c}");
                }
            }
        }
    }

    #[test]
    fn a_group_of_equal_elements_is_its_zero() {
        let block = Block { page: 32, d: 2, bits: 2, precise: true };
        let mut words = vec![0; block.words()];
        let row = [1.5f32, -3.0];
        block.fill(&mut words, |_| &row, |_| &[7.0, 7.0]);
        let mut out = [0.0; 2];
        block.key(&words, 31, &mut out);
        assert_eq!(out, row);
        block.value(&words, 0, &mut out);
        assert_eq!(out, [7.0, 7.0]);
    }
}
