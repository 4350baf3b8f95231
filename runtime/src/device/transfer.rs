//! Bytes of tensors to a device and back.

use super::{Buffer, Device, Pending};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Bytes that are read at a time, so that staging for a large tensor takes no memory that no plan has counted.
const PIECE: u64 = 16 << 20;

impl Device {
    /// Writes stored bytes (see [`crate::dtype`] for layouts) at a byte offset.
    pub fn write_at(&self, tensor: &Tensor, offset: u64, bytes: &[u8]) -> Result<()> {
        let size = tensor.spec().bytes();
        let found = bytes.len() as u64;
        if offset.checked_add(found).is_none_or(|end| end > size)
            || !found.is_multiple_of(4)
            || !offset.is_multiple_of(4)
        {
            return Err(Error::Range { tensor: tensor.name().into(), offset, found, size });
        }
        let buffer = self.buffer(tensor)?;
        self.0.write(buffer, buffer.first() + offset, bytes)
    }

    /// Writes a whole tensor of 4-byte elements or stored words.
    pub fn write<T: bytemuck::NoUninit>(&self, tensor: &Tensor, data: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.len() as u64 != tensor.spec().bytes() {
            return Err(Error::Range {
                tensor: tensor.name().into(),
                offset: 0,
                found: bytes.len() as u64,
                size: tensor.spec().bytes(),
            });
        }
        self.write_at(tensor, 0, bytes)
    }

    /// Starts reading a whole tensor.
    pub fn fetch(&self, tensor: &Tensor) -> Result<Box<dyn Pending>> {
        let buffer = self.buffer(tensor)?;
        self.0.fetch(buffer, buffer.first(), tensor.spec().bytes())
    }

    /// Reads stored bytes (a multiple of 4) from a byte offset (a multiple of 4) on and waits for them. Much is read
    /// in pieces, one after the other: nothing should write to the tensor meanwhile.
    pub fn read_at(&self, tensor: &Tensor, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let size = tensor.spec().bytes();
        if offset.checked_add(bytes).is_none_or(|end| end > size)
            || !bytes.is_multiple_of(4)
            || !offset.is_multiple_of(4)
        {
            return Err(Error::Range { tensor: tensor.name().into(), offset, found: bytes, size });
        }
        let buffer = self.buffer(tensor)?;
        let from = buffer.first() + offset;
        if bytes <= PIECE {
            return self.0.fetch(buffer, from, bytes)?.wait();
        }
        let mut read = Vec::with_capacity(bytes as usize);
        self.pieces(buffer, from, bytes, &mut |piece| {
            read.extend_from_slice(piece);
            Ok::<_, Error>(())
        })?;
        Ok(read)
    }

    /// Reads a whole tensor in pieces of at most 16 MiB, in order, for whoever keeps none of it in memory.
    pub fn read_in_pieces<E: From<Error>>(
        &self,
        tensor: &Tensor,
        take: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let buffer = self.buffer(tensor)?;
        self.pieces(buffer, buffer.first(), tensor.spec().bytes(), take)
    }

    fn pieces<E: From<Error>>(
        &self,
        buffer: &Buffer,
        from: u64,
        bytes: u64,
        take: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        for done in (0..bytes).step_by(PIECE as usize) {
            take(&self.0.fetch(buffer, from + done, PIECE.min(bytes - done))?.wait()?)?;
        }
        Ok(())
    }

    /// Reads a whole tensor of 4-byte elements or stored words and waits for it.
    pub fn read<T: bytemuck::Pod>(&self, tensor: &Tensor) -> Result<Vec<T>> {
        let bytes = self.read_at(tensor, 0, tensor.spec().bytes())?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }
}
