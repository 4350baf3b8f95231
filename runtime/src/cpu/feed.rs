//! Host memory that kernels read in place: a thread brings the pages of the next group in while kernels read those
//! of this one, and pages are released behind.
//!
//! Kernels that came too early would fault the pages in themselves, so waiting for the thread is not needed for
//! their results; it keeps two groups at most in memory, and says how long memory was waited for.

use crate::error::{Error, Result};
use crate::stream::{Feed, Figures, Load};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) struct InPlace {
    load: Arc<Load>,
    state: Mutex<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    /// Groups that the thread is to bring in; `None` ends it.
    wanted: Option<Sender<usize>>,
    done: Receiver<(usize, Duration)>,
    /// Groups that were begun and have not left.
    inside: Vec<Stage>,
    figures: Figures,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Outside,
    UnderWay,
    There,
}

impl InPlace {
    pub(super) fn new(load: Load) -> Result<InPlace> {
        let failed = |message: String| Error::Device { device: "cpu".into(), message };
        if let Some(fault) = load.fault() {
            return Err(failed(fault));
        }
        let load = Arc::new(load);
        let (wanted, jobs) = channel::<usize>();
        let (finished, done) = channel();
        let of_thread = load.clone();
        let work = move || {
            for group in jobs {
                let begin = Instant::now();
                of_thread.memory.fetch(of_thread.groups[group].bytes.clone());
                if finished.send((group, begin.elapsed())).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("weights ahead".into()).spawn(work);
        let thread = thread.map_err(|e| failed(format!("no thread brings weights in: {e}")))?;
        let inside = vec![Stage::Outside; load.groups.len()];
        let state = State { wanted: Some(wanted), done, inside, figures: Figures::default() };
        Ok(InPlace { load, state: Mutex::new(state), thread: Some(thread) })
    }

    fn known(&self, group: usize) -> Result<()> {
        let groups = self.load.groups.len();
        let unknown = || Error::Device { device: "cpu".into(), message: format!("group {group} of {groups}") };
        if group < groups { Ok(()) } else { Err(unknown()) }
    }
}

impl State {
    fn begin(&mut self, group: usize) -> Result<()> {
        if self.inside[group] == Stage::Outside {
            let sent = self.wanted.as_ref().is_some_and(|wanted| wanted.send(group).is_ok());
            if !sent {
                return Err(gone());
            }
            self.inside[group] = Stage::UnderWay;
        }
        Ok(())
    }
}

fn gone() -> Error {
    Error::Device { device: "cpu".into(), message: "the thread that brings weights in has ended".into() }
}

impl Feed for InPlace {
    fn ahead(&self, group: usize) -> Result<()> {
        self.known(group)?;
        self.state.lock().begin(group)
    }

    fn arrive(&self, group: usize) -> Result<()> {
        self.known(group)?;
        let mut state = self.state.lock();
        state.begin(group)?;
        let begin = Instant::now();
        while state.inside[group] != Stage::There {
            let (arrived, took) = state.done.recv().map_err(|_| gone())?;
            state.inside[arrived] = Stage::There;
            state.figures.copying += took;
            state.figures.bytes += self.load.groups[arrived].bytes.len() as u64;
        }
        state.figures.waiting += begin.elapsed();
        Ok(())
    }

    fn leave(&self, group: usize) -> Result<()> {
        self.known(group)?;
        let mut state = self.state.lock();
        if state.inside[group] == Stage::There {
            self.load.memory.release(self.load.groups[group].bytes.clone());
            state.inside[group] = Stage::Outside;
        }
        Ok(())
    }

    fn figures(&self) -> Figures {
        self.state.lock().figures
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        self.state.get_mut().wanted = None;
        if let Some(thread) = self.thread.take() {
            // It ends after the group under way; a panic there has been reported by `arrive`.
            let _ = thread.join();
        }
    }
}
