//! Recorded launches: a CUDA graph, built node by node.
//!
//! Not by capturing the stream: what another thread submits meanwhile would be recorded too.
#![allow(unsafe_code)]

use super::api::call;
use super::context::Context;
use super::kernels::Kernels;
use crate::driver::{Launch, Outcome, Replay};
use cudarc::driver::sys;
use parking_lot::Mutex;
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// An executable graph.
pub(super) struct Recorded {
    context: Arc<Context>,
    /// `None` without launches. Graphs are not for several threads at once, so it is locked.
    graph: Mutex<Option<sys::CUgraphExec>>,
    /// Their modules stay loaded.
    _kernels: Arc<Kernels>,
}

// SAFETY: an executable graph is a handle that any thread may use, one at a time.
unsafe impl Send for Recorded {}
// SAFETY: the lock lets in one at a time.
unsafe impl Sync for Recorded {}

/// A graph that is being built.
struct Draft<'a> {
    context: &'a Context,
    graph: sys::CUgraph,
}

impl Recorded {
    /// Records launches, each after the one before. The context is current.
    ///
    /// # Safety
    /// The operands are memory of this context with the sizes that the kernels were written for, and
    /// stay so as long as the result is submitted.
    pub(super) unsafe fn new(context: &Arc<Context>, kernels: &Arc<Kernels>, launches: &[Launch]) -> Outcome<Self> {
        let recorded = Recorded { context: context.clone(), graph: Mutex::new(None), _kernels: kernels.clone() };
        if launches.is_empty() {
            return Ok(recorded);
        }
        let draft = Draft::new(context)?;
        let mut previous = None;
        for launch in launches {
            // SAFETY: the caller answers for the operands.
            previous = Some(unsafe { draft.add(kernels, launch, previous) }?);
        }
        let mut graph = null_mut();
        // SAFETY: the graph is alive; the handle is written. 0: no flags.
        unsafe { call!(context.api, cuGraphInstantiateWithFlags(&raw mut graph, draft.graph, 0)) }?;
        *recorded.graph.lock() = Some(graph);
        // What the first launch would otherwise wait for.
        // SAFETY: graph and stream are alive.
        unsafe { call!(context.api, cuGraphUpload(graph, context.stream())) }?;
        Ok(recorded)
    }
}

impl Replay for Recorded {
    fn submit(&self) -> Outcome<()> {
        let graph = self.graph.lock();
        let Some(graph) = *graph else { return Ok(()) };
        self.context.enter()?;
        // SAFETY: graph and stream are alive; one launch of a graph waits for the one before.
        unsafe { call!(self.context.api, cuGraphLaunch(graph, self.context.stream())) }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if let (Some(graph), Ok(())) = (self.graph.get_mut().take(), self.context.enter()) {
            // SAFETY: the graph is alive and not launched again; if it runs it is freed afterwards.
            let _ = unsafe { call!(self.context.api, cuGraphExecDestroy(graph)) };
        }
    }
}

impl<'a> Draft<'a> {
    fn new(context: &'a Context) -> Outcome<Self> {
        let mut graph = null_mut();
        // SAFETY: the handle is written. 0 is the only flag there is.
        unsafe { call!(context.api, cuGraphCreate(&raw mut graph, 0)) }?;
        Ok(Draft { context, graph })
    }

    /// Adds a launch after another.
    ///
    /// # Safety
    /// As for [`Recorded::new`].
    unsafe fn add(
        &self,
        kernels: &Kernels,
        launch: &Launch,
        after: Option<sys::CUgraphNode>,
    ) -> Outcome<sys::CUgraphNode> {
        let (function, mut arguments) = kernels.prepare(launch)?;
        let [x, y, z] = launch.grid;
        let mut node = null_mut();
        arguments.with(|pointers| {
            let parameters = sys::CUDA_KERNEL_NODE_PARAMS {
                func: function.handle(),
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: launch.block,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: launch.shared,
                kernelParams: pointers,
                extra: null_mut(),
                // Not a kernel of a library; in the current context.
                kern: null_mut(),
                ctx: null_mut(),
            };
            let (before, count) = after.as_ref().map_or((null(), 0), |node| (&raw const *node, 1));
            // SAFETY: the graph is alive, the dependency is a node of it, and the driver copies the
            // arguments before it returns. As for a launch, they are those that the function takes.
            unsafe {
                let parameters = &raw const parameters;
                call!(self.context.api, cuGraphAddKernelNode_v2(&raw mut node, self.graph, before, count, parameters))
            }
        })?;
        Ok(node)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // SAFETY: the graph is alive; what was instantiated from it stands on its own.
        let _ = unsafe { call!(self.context.api, cuGraphDestroy(self.graph)) };
    }
}
