//! Tensors that outlive a program: weights, states and inputs.
//!
//! A [`Tensor`] is a description with an identity. It gets memory when a device
//! allocates it, keeps it until the last clone is dropped, and can be bound to
//! any number of programs of that device. Planning needs no memory at all.

use crate::device::Buffer;
use crate::dtype::{DType, Spec};
use std::sync::{Arc, OnceLock};

/// What a tensor is for, and so how it counts in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Read by programs, written by loading or by the optimiser.
    Weight,
    /// Kept between runs: caches, moments, accumulated gradients, random state, results.
    State,
    /// Written by the host before a run: tokens, positions, hyper-parameters.
    Input,
    /// Lives within one run, in the arena.
    Activation,
}

/// A named tensor with an identity; clones are the same tensor.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    role: Role,
    spec: Spec,
    buffer: OnceLock<Buffer>,
}

impl Tensor {
    /// A tensor without memory.
    pub fn new(name: impl Into<String>, role: Role, shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        Tensor(Arc::new(Inner { name: name.into(), role, spec: Spec::new(shape, dtype), buffer: OnceLock::new() }))
    }

    /// A weight.
    pub fn weight(name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        Self::new(name, Role::Weight, shape, dtype)
    }

    /// A state.
    pub fn state(name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        Self::new(name, Role::State, shape, dtype)
    }

    /// An input.
    pub fn input(name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: DType) -> Self {
        Self::new(name, Role::Input, shape, dtype)
    }

    /// Its name, for messages and files.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.0.role
    }

    /// Its shape and dtype.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// Identity: equal for clones, different for any two tensors alive at once.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Its memory, once allocated.
    pub fn buffer(&self) -> Option<&Buffer> {
        self.0.buffer.get()
    }

    /// Gives it memory, which may be a part of a buffer and the memory of other tensors as well; `false` if the
    /// buffer is smaller than the tensor or it has memory already, which programs may be bound to.
    pub fn place(&self, buffer: Buffer) -> bool {
        buffer.bytes() >= self.0.spec.bytes() && self.0.buffer.set(buffer).is_ok()
    }
}
