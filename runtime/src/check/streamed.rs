//! Streamed weights against resident ones: a chain of programs of which each reads a group of weights.

use crate::device::{Buffer, Device, Program};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::ops::{add, copy, rms_norm};
use crate::random::Random;
use crate::stream::{Feed, Group, HostMemory, Load, Way};
use crate::tensor::{Role, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Groups: more than there are slots, and odd.
const GROUPS: usize = 5;
/// Tokens and width.
const SHAPE: [usize; 2] = [48, 200];
/// Where the second tensor of a group begins.
const SECOND: usize = (4 * SHAPE[0] * SHAPE[1]).next_multiple_of(256);
/// Bytes of a group.
const BYTES: usize = (SECOND + 4 * SHAPE[1]).next_multiple_of(64);

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Host memory that is no file.
struct Lines(Vec<Line>);

impl HostMemory for Lines {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    fn fetch(&self, _: Range<usize>) {}

    fn release(&self, _: Range<usize>) {}
}

/// The weights of a group: `[m,k]` and `[k]`.
struct Weights([Tensor; 2]);

impl Weights {
    fn new(i: usize) -> Weights {
        let [m, k] = SHAPE;
        let add = Tensor::weight(format!("add {i}"), [m, k], DType::F32);
        Weights([add, Tensor::weight(format!("scale {i}"), [k], DType::F32)])
    }

    /// `x = rms_norm(x + w0, w1)`.
    fn program(&self, device: &Device, x: &Tensor) -> Result<Box<dyn Program>> {
        let mut g = Graph::new(self.0[0].name());
        let [v, a, w] = [x, &self.0[0], &self.0[1]].map(|t| g.bind(t));
        let sum = add::add(&mut g, v, a)?;
        let y = rms_norm::rms_norm(&mut g, sum, w, 1e-5)?;
        copy::copy_into(&mut g, y, v)?;
        device.prepare(&g)
    }
}

/// Runs programs over weights that stay and over the same weights streamed, several times and after runs that
/// ended early, and compares every bit; gives the bytes that were streamed, or `None` where the device streams none.
pub fn check_streamed(device: &Device, seed: u64) -> Result<Option<u64>> {
    let wrong = |message: String| Error::Device { device: device.label(), message: format!("seed {seed}: {message}") };
    let way = device.backend().way();
    let slots = match way {
        Way::Missing => return Ok(None),
        Way::InPlace => 0,
        Way::Slots { slots, .. } => slots,
    };
    let mut random = Random::new(seed);
    let mut lines = vec![Line([0; 64]); GROUPS * BYTES / 64];
    for value in bytemuck::cast_slice_mut::<Line, f32>(&mut lines) {
        *value = random.normal() as f32;
    }
    let first: Vec<f32> = (0..SHAPE[0] * SHAPE[1]).map(|_| random.normal() as f32).collect();
    let x = Tensor::state("x", SHAPE, DType::F32);
    device.allocate(&x)?;

    let resident: Vec<Weights> = (0..GROUPS).map(Weights::new).collect();
    for (i, Weights([add, scale])) in resident.iter().enumerate() {
        let floats: &[f32] = bytemuck::cast_slice(&lines);
        let group = &floats[i * BYTES / 4..];
        [add, scale].into_iter().try_for_each(|tensor| device.allocate(tensor))?;
        device.write(add, &group[..SHAPE[0] * SHAPE[1]])?;
        device.write(scale, &group[SECOND / 4..SECOND / 4 + SHAPE[1]])?;
    }
    let programs = resident.iter().map(|weights| weights.program(device, &x)).collect::<Result<Vec<_>>>()?;
    let mut expected = Vec::new();
    device.write(&x, &first)?;
    for _ in 0..3 {
        programs.iter().try_for_each(|program| program.submit().map(drop))?;
        expected.push(device.read::<u32>(&x)?);
    }

    let memory: Arc<dyn HostMemory> = Arc::new(Lines(lines));
    let whole = if slots == 0 { Some(device.backend().adopt(&memory)?) } else { None };
    let slot = |i| device.backend().alloc(BYTES as u64, Role::Weight, &format!("slot {i}"));
    let slots = (0..slots).map(slot).collect::<Result<Vec<Buffer>>>()?;
    let streamed: Vec<Weights> = (0..GROUPS).map(Weights::new).collect();
    let mut load = Load { memory, groups: Vec::new() };
    for (i, Weights(tensors)) in streamed.iter().enumerate() {
        let slot = slots.get(i % slots.len().max(1));
        for (tensor, at) in tensors.iter().zip([0, SECOND]) {
            let (buffer, begin) = slot.map_or((whole.as_ref(), i * BYTES), |slot| (Some(slot), 0));
            let part = buffer.and_then(|buffer| buffer.part((begin + at) as u64, tensor.spec().bytes()));
            if !part.is_some_and(|part| tensor.place(part)) {
                return Err(wrong(format!("`{}` has no place", tensor.name())));
            }
        }
        load.groups.push(Group { bytes: i * BYTES..(i + 1) * BYTES, slot: slot.cloned() });
    }
    let programs = streamed.iter().map(|weights| weights.program(device, &x)).collect::<Result<Vec<_>>>()?;
    let feed = device.backend().feed(load)?;
    let run = |feed: &dyn Feed, groups: Range<usize>| -> Result<()> {
        feed.ahead(0)?;
        for i in groups {
            feed.arrive(i)?;
            feed.ahead((i + 1) % GROUPS)?;
            programs[i].submit()?;
            feed.leave(i)?;
        }
        Ok(())
    };
    for early in 0..GROUPS {
        run(&*feed, 0..early)?;
        device.write(&x, &first)?;
        for (round, expected) in expected.iter().enumerate() {
            run(&*feed, 0..GROUPS)?;
            if device.read::<u32>(&x)? != *expected {
                return Err(wrong(format!("streamed weights give other bits in run {round} after {early} groups")));
            }
        }
    }
    if feed.arrive(GROUPS).is_ok() {
        return Err(wrong("a group arrives that is not there".into()));
    }
    let bytes = feed.figures().bytes;
    let least = (3 * GROUPS * GROUPS * BYTES) as u64;
    if bytes < least { Err(wrong(format!("{bytes} bytes were counted of {least}"))) } else { Ok(Some(bytes)) }
}
