//! What a CPU kernel gets: its operands as slices of stored words.

use crate::dtype::Spec;
use bytemuck::Pod;

/// Operands of one call, in the order of the signature. Read operands can be
/// taken any number of times, written ones once.
pub struct Args<'a> {
    specs: &'a [Spec],
    reads: Vec<&'a [u32]>,
    writes: Vec<&'a mut [u32]>,
}

impl<'a> Args<'a> {
    /// `reads[i]` is empty where operand `i` is written, `writes[i]` where it is only read.
    pub fn new(specs: &'a [Spec], reads: Vec<&'a [u32]>, writes: Vec<&'a mut [u32]>) -> Self {
        Args { specs, reads, writes }
    }

    /// Shape and dtype of operand `i`.
    pub fn spec(&self, i: usize) -> &'a Spec {
        &self.specs[i]
    }

    /// Operand `i`, read only, as stored elements of `T` (rows padded as in [`crate::dtype`]).
    pub fn read<T: Pod>(&self, i: usize) -> &'a [T] {
        bytemuck::cast_slice(self.reads[i])
    }

    /// Operand `i`, written (or read and written). Empty when taken a second time.
    pub fn write<T: Pod>(&mut self, i: usize) -> &'a mut [T] {
        bytemuck::cast_slice_mut(std::mem::take(&mut self.writes[i]))
    }
}
