//! One open device: its handles, limits, and the errors that wait to be raised.

use super::Options;
use super::fetch::Staging;
use super::memory::Memory;
use super::pipeline::Pipelines;
use crate::device::{Buffer, Caps, Ticket};
use crate::error::{Error, Result};
use crate::ledger::{Held, Kind, Ledger};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Errors kept until somebody asks; later ones are consequences of these.
const MOST_QUEUED: usize = 16;

/// wgpu keeps a copy of what is written until it is submitted; so many bytes are let pile up.
const MOST_UNSUBMITTED: u64 = 64 << 20;

pub(super) struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) caps: Caps,
    pub(super) limits: wgpu::Limits,
    /// Parameters go by `var<immediate>`, else by a dynamic-offset uniform.
    pub(super) immediates: bool,
    pub(super) info: wgpu::AdapterInfo,
    pub(super) options: Options,
    pub(super) ledger: Arc<Ledger>,
    pub(super) pipelines: Pipelines,
    pub(super) staging: Staging,
    errors: Arc<Errors>,
    tickets: AtomicU64,
    unsubmitted: AtomicU64,
}

#[derive(Default)]
struct Errors {
    queued: Mutex<VecDeque<String>>,
    lost: Mutex<Option<String>>,
}

impl Context {
    pub(super) fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        caps: Caps,
        info: wgpu::AdapterInfo,
        options: Options,
    ) -> Context {
        let errors = Arc::<Errors>::default();
        let sink = errors.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut queued = sink.queued.lock();
            if queued.len() < MOST_QUEUED {
                queued.push_back(message(&error));
            }
        }));
        let sink = errors.clone();
        device.set_device_lost_callback(move |reason, message| {
            *sink.lost.lock() = Some(format!("{reason:?}: {message}"));
        });
        let pipelines = Pipelines::new(&device, &info, &options);
        Context {
            limits: device.limits(),
            immediates: device.features().contains(wgpu::Features::IMMEDIATES),
            ledger: Ledger::new(&caps),
            device,
            queue,
            caps,
            info,
            options,
            pipelines,
            staging: Staging::default(),
            errors,
            tickets: AtomicU64::new(0),
            unsubmitted: AtomicU64::new(0),
        }
    }

    /// Predicted work of one submit before a program has been watched.
    pub(super) fn submit_budget(&self) -> Duration {
        self.options.submit_budget.unwrap_or(Duration::from_millis(50))
    }

    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::Device { device: self.caps.id.clone(), message: message.into() }
    }

    /// Counts bytes of a buffer. Where the budget has no room for them, staging buffers that are kept for later
    /// reads make some.
    pub(super) fn hold(&self, kind: Kind, bytes: u64, name: &str) -> Result<Held> {
        let held = self.ledger.take(kind, bytes, name);
        if held.is_err() && self.staging.clear() > 0 {
            return self.ledger.take(kind, bytes, name);
        }
        held
    }

    /// Raises what went wrong since the last call.
    pub(super) fn raise(&self) -> Result<()> {
        if let Some(message) = self.errors.lost.lock().clone() {
            return Err(Error::Lost { device: self.caps.id.clone(), message });
        }
        match self.errors.queued.lock().pop_front() {
            Some(message) => Err(self.error(message)),
            None => Ok(()),
        }
    }

    /// Runs `f` and returns the error of the device calls in it, if any. A browser tells later, so
    /// there the error is queued.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn scoped<T>(&self, f: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let scopes = [Internal, OutOfMemory, Validation].map(|kind| self.device.push_error_scope(kind));
        let value = f();
        let errors = scopes.into_iter().rev().map(|scope| pollster::block_on(scope.pop()));
        let error = errors.fold(None, |first, next| first.or(next));
        (value, error)
    }

    #[cfg(target_arch = "wasm32")]
    pub(super) fn scoped<T>(&self, f: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
        (f(), None)
    }

    /// Submits an encoder's commands.
    pub(super) fn submit(&self, encoder: wgpu::CommandEncoder) -> wgpu::SubmissionIndex {
        self.unsubmitted.store(0, Ordering::Relaxed);
        self.queue.submit([encoder.finish()])
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Writes in queue order.
    pub(super) fn write(&self, to: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut at = offset;
        for part in bytes.chunks(MOST_UNSUBMITTED as usize) {
            self.queue.write_buffer(to, at, part);
            at += part.len() as u64;
            let waiting = self.unsubmitted.fetch_add(part.len() as u64, Ordering::Relaxed);
            if waiting + part.len() as u64 >= MOST_UNSUBMITTED {
                self.unsubmitted.store(0, Ordering::Relaxed);
                let index = self.queue.submit([]);
                #[cfg(not(target_arch = "wasm32"))]
                self.wait(Some(index))?;
                #[cfg(target_arch = "wasm32")]
                let _ = index;
            }
        }
        self.raise()
    }

    /// Waits for a submission, or for all, and raises what went wrong.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        self.raise()?;
        polled.map_err(|e| self.error(e.to_string()))?;
        Ok(())
    }

    /// A browser's main thread cannot block.
    #[cfg(target_arch = "wasm32")]
    pub(super) fn wait(&self, _: Option<wgpu::SubmissionIndex>) -> Result<()> {
        Err(self.error("a browser cannot block on the device"))
    }

    pub(super) fn memory_of(&self, buffer: &Buffer) -> Result<Arc<Memory>> {
        let memory = buffer.downcast::<Memory>().filter(|m| m.belongs_to(self));
        memory.ok_or_else(|| self.error("the buffer belongs to another device"))
    }
}

/// An error with all its causes; wgpu's own text is long but names the culprit at its end.
pub(super) fn message(error: &wgpu::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text.trim().to_string()
}
