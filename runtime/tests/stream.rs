//! Weights that the CPU reads from memory which is not its own.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;
use tritter_runtime::check::check_streamed;
use tritter_runtime::ops::fill;
use tritter_runtime::stream::HostMemory;
use tritter_runtime::{DType, Graph, Tensor, cpu};

#[test]
fn streamed_weights_give_the_bits_of_resident_ones() {
    assert!(check_streamed(&cpu::open(), 3).unwrap() > Some(0));
}

/// Bytes of a given length from a multiple of 64 on, or not.
struct Bytes(Vec<u8>, Range<usize>);

impl Bytes {
    fn shared(length: usize, off: usize) -> Arc<dyn HostMemory> {
        let bytes = vec![0; length + 128];
        let first = bytes.as_ptr().align_offset(64) + off;
        Arc::new(Bytes(bytes, first..first + length))
    }
}

impl HostMemory for Bytes {
    fn bytes(&self) -> &[u8] {
        &self.0[self.1.clone()]
    }
    fn fetch(&self, _: Range<usize>) {}
    fn release(&self, _: Range<usize>) {}
}

#[test]
fn memory_of_another_is_read_and_never_written() {
    let device = cpu::open();
    let buffer = device.backend().adopt(&Bytes::shared(256, 0)).unwrap();
    assert_eq!(device.backend().memory().buffers, 0);
    let tensor = Tensor::weight("w", [16], DType::F32);
    assert!(buffer.part(200, 64).is_none() && buffer.part(u64::MAX, 2).is_none());
    assert!(!tensor.place(buffer.part(0, 60).unwrap()), "it is too small");
    assert!(tensor.place(buffer.part(128, 64).unwrap()));
    assert_eq!(device.read::<f32>(&tensor).unwrap(), [0.0; 16]);
    assert!(device.write(&tensor, &[1f32; 16]).unwrap_err().to_string().contains("only read"));
    let mut g = Graph::new("fill");
    let w = g.bind(&tensor);
    fill::fill(&mut g, w, 1.0).unwrap();
    assert!(device.prepare(&g).err().unwrap().to_string().contains("only read"));
    for (length, off) in [(256, 4), (100, 0)] {
        assert!(device.backend().adopt(&Bytes::shared(length, off)).is_err());
    }
}
