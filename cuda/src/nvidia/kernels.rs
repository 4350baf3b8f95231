//! Loaded modules and their kernels, and launches of them.
#![allow(unsafe_code)]

use super::api::call;
use super::arguments::Arguments;
use super::context::Context;
use crate::cubin::{Image, Supply};
use crate::driver::{Fault, Kernel, Launch, Outcome};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::ffi::CString;
use std::ptr::null_mut;
use std::sync::Arc;

/// What a block has without asking for more, and kernels of all architectures get.
const PLAIN_SHARED: usize = 48 << 10;

/// No kernel takes more.
const MOST_ARGUMENTS: usize = 64;

/// The kernels of one context. Modules stay loaded as long as it lives, so that a [`Kernel`] once given
/// is good.
pub(super) struct Kernels {
    context: Arc<Context>,
    /// Bytes of shared memory that a block may have at most, static and dynamic.
    shared: usize,
    modules: Mutex<HashMap<String, Module>>,
    functions: RwLock<Vec<Function>>,
}

struct Module {
    module: sys::CUmodule,
    functions: HashMap<String, Kernel>,
}

/// A kernel and what launches of it have to obey.
#[derive(Clone)]
pub(super) struct Function {
    function: sys::CUfunction,
    name: Arc<str>,
    /// Bytes of dynamic shared memory at most.
    shared: usize,
    /// Threads of a block at most, as the kernel was compiled.
    threads: u32,
    /// Bytes of each argument, if the driver tells.
    sizes: Option<Arc<[usize]>>,
}

// SAFETY: modules and functions are handles that any thread may use.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// For a device whose blocks have `shared` bytes of shared memory at most.
    pub(super) fn new(context: &Arc<Context>, shared: usize) -> Arc<Kernels> {
        let (modules, functions) = (Mutex::default(), RwLock::default());
        Arc::new(Kernels { context: context.clone(), shared, modules, functions })
    }

    /// An entry point of a file, loaded once. The context is current.
    pub(super) fn load(&self, supply: &Supply, file: &str, entry: &str) -> Outcome<Kernel> {
        let mut modules = self.modules.lock();
        if !modules.contains_key(file) {
            let module = supply.load(file, |image| self.module(image))?;
            modules.insert(file.into(), Module { module, functions: HashMap::new() });
        }
        let Some(module) = modules.get_mut(file) else { return Err(Fault::Failed(format!("{file}.cu is not loaded"))) };
        if let Some(&kernel) = module.functions.get(entry) {
            return Ok(kernel);
        }
        let function = self.function(module.module, entry).map_err(|fault| match fault {
            Fault::Failed(why) => Fault::Failed(format!("`{entry}` of cuda/kernels/{file}.cu: {why}")),
            other => other,
        })?;
        let mut functions = self.functions.write();
        let kernel = Kernel(functions.len());
        functions.push(function);
        module.functions.insert(entry.into(), kernel);
        Ok(kernel)
    }

    fn module(&self, image: &Image) -> Outcome<sys::CUmodule> {
        if image.is_ptx() && image.0.last() != Some(&0) {
            return Err(Fault::Failed("it is neither a cubin nor a text with an end".into()));
        }
        let mut module = null_mut();
        // SAFETY: the context is current; the image is a whole cubin (an ELF file, which knows its
        // length, checked by its sum or fresh from the compiler) or PTX that ends in NUL, and the
        // driver copies what it keeps of it; the handle is written through the pointer.
        unsafe { call!(self.context.api, cuModuleLoadData(&raw mut module, image.0.as_ptr().cast())) }?;
        Ok(module)
    }

    fn function(&self, module: sys::CUmodule, entry: &str) -> Outcome<Function> {
        let api = self.context.api;
        let name = CString::new(entry).map_err(|_| Fault::Failed("a name with a NUL".into()))?;
        let mut function = null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, the handle is written.
        unsafe { call!(api, cuModuleGetFunction(&raw mut function, module, name.as_ptr())) }?;
        let attribute = |attribute: Attribute| -> Outcome<usize> {
            let mut value = 0;
            // SAFETY: the function is loaded; the value is written.
            unsafe { call!(api, cuFuncGetAttribute(&raw mut value, attribute, function)) }?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        let fixed = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let threads = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let shared = self.shared.max(PLAIN_SHARED).saturating_sub(fixed);
        if fixed + shared > PLAIN_SHARED {
            // Allows launches with so much; what a launch asks for decides about occupancy.
            let limit = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let value = i32::try_from(shared).unwrap_or(i32::MAX);
            // SAFETY: the function is loaded.
            unsafe { call!(api, cuFuncSetAttribute(function, limit, value)) }?;
        }
        Ok(Function { function, name: entry.into(), shared, threads: threads as u32, sizes: self.sizes(function) })
    }

    /// Bytes of each argument; drivers before CUDA 12.4 do not tell. All kernels have arguments.
    fn sizes(&self, function: sys::CUfunction) -> Option<Arc<[usize]>> {
        let info = self.context.api.cuFuncGetParamInfo?;
        let size = |index| {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the function is loaded; both numbers are written. The index after the last
            // argument is refused, which ends the list.
            let code = unsafe { info(function, index, &raw mut offset, &raw mut size) };
            (code == 0).then_some(size)
        };
        let sizes: Vec<usize> = (0..MOST_ARGUMENTS).map_while(size).collect();
        (!sizes.is_empty()).then(|| sizes.into())
    }

    /// The function of a launch and its arguments, checked against what the kernel takes.
    pub(super) fn prepare(&self, launch: &Launch) -> Outcome<(Function, Arguments)> {
        let function = self.functions.read().get(launch.kernel.0).cloned();
        let function = function.ok_or_else(|| Fault::Failed(format!("there is no {:?}", launch.kernel)))?;
        let named = |why: String| Fault::Failed(format!("`{}`: {why}", function.name));
        if launch.shared as usize > function.shared || launch.block == 0 || launch.block > function.threads {
            return Err(named(format!(
                "{} threads with {} bytes of dynamic shared memory; it takes {} threads and {} bytes",
                launch.block, launch.shared, function.threads, function.shared
            )));
        }
        let arguments = Arguments::new(launch, function.sizes.as_deref()).map_err(named)?;
        Ok((function, arguments))
    }

    /// Puts a launch into the stream. The context is current.
    ///
    /// # Safety
    /// The operands are memory of this context with the sizes that the kernel was written for.
    pub(super) unsafe fn launch(&self, launch: &Launch) -> Outcome<()> {
        let (function, mut arguments) = self.prepare(launch)?;
        let ([x, y, z], stream) = (launch.grid, self.context.stream());
        arguments.with(|pointers| {
            // SAFETY: the function is loaded, pointers lead to as many arguments as it takes (checked
            // where the driver tells, by tests of all rows elsewhere), copied before the call returns.
            unsafe {
                call!(
                    self.context.api,
                    cuLaunchKernel(
                        function.function,
                        x,
                        y,
                        z,
                        launch.block,
                        1,
                        1,
                        launch.shared,
                        stream,
                        pointers,
                        null_mut()
                    )
                )
            }
        })
    }
}

impl Function {
    /// The driver's handle.
    pub(super) fn handle(&self) -> sys::CUfunction {
        self.function
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.wait().is_err() {
            return;
        }
        for module in self.modules.get_mut().values() {
            // SAFETY: loaded once, and its kernels neither run nor are launched again: the stream is
            // empty, and recorded launches hold the kernels.
            let _ = unsafe { call!(self.context.api, cuModuleUnload(module.module)) };
        }
    }
}
