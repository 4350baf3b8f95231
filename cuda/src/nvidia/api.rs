//! The driver's functions, looked up once by name.
//!
//! Types, constants and signatures are cudarc's, and the compiler checks the table below against them.
//! The functions are not called through cudarc for two reasons: it panics when the driver lacks one,
//! and its `CUresult` is a Rust enum, which a driver newer than the bindings breaks by answering with a
//! number that the enum does not have. Here a missing function is a sentence, and an answer a number.
#![allow(unsafe_code, non_snake_case)]

use super::fault;
use crate::driver::{Fault, Outcome};
use crate::probe::{self, Loaded};
use cudarc::driver::sys;
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph,
    CUgraphExec, CUgraphNode, CUmemPool_attribute, CUmemPoolProps, CUmemoryPool, CUmodule, CUstream,
};
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

/// `CUresult`.
pub(super) type Code = u32;

macro_rules! functions {
    ($($name:ident($($type:ty),* $(,)?);)*) => {
        /// The functions of `libcuda` that this crate calls, under their C names.
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($type),*) -> Code,)*
            cuGetErrorName: Text,
            cuGetErrorString: Text,
            /// Since CUDA 12.4.
            pub(super) cuFuncGetParamInfo: Option<ParamInfo>,
        }

        // The same types as in the bindings, or this does not compile.
        $(const _: unsafe fn($($type),*) -> sys::CUresult = sys::$name;)*

        impl Api {
            fn of(loaded: &'static Loaded) -> Result<Api, String> {
                Ok(Api {
                    $($name: find(loaded, stringify!($name))?,)*
                    cuGetErrorName: find(loaded, "cuGetErrorName")?,
                    cuGetErrorString: find(loaded, "cuGetErrorString")?,
                    cuFuncGetParamInfo: find(loaded, "cuFuncGetParamInfo").ok(),
                })
            }
        }
    };
}

/// `CUresult fn(CUresult, const char **)`.
type Text = unsafe extern "C" fn(Code, *mut *const c_char) -> Code;
/// `CUresult fn(CUfunction, size_t index, size_t *offset, size_t *size)`.
pub(super) type ParamInfo = unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> Code;
const _: unsafe fn(CUfunction, usize, *mut usize, *mut usize) -> sys::CUresult = sys::cuFuncGetParamInfo;

functions! {
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceTotalMem_v2(*mut usize, CUdevice);
    cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxSetCurrent(CUcontext);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventDestroy_v2(CUevent);
    cuEventRecord(CUevent, CUstream);
    cuEventSynchronize(CUevent);
    cuEventElapsedTime(*mut f32, CUevent, CUevent);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemPoolCreate(*mut CUmemoryPool, *const CUmemPoolProps);
    cuMemPoolDestroy(CUmemoryPool);
    cuMemPoolTrimTo(CUmemoryPool, usize);
    cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, *mut c_void);
    cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute, *mut c_void);
    cuMemAllocFromPoolAsync(*mut CUdeviceptr, usize, CUmemoryPool, CUstream);
    cuMemFreeAsync(CUdeviceptr, CUstream);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemsetD8Async(CUdeviceptr, c_uchar, usize, CUstream);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuModuleLoadData(*mut CUmodule, *const c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
    cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
    cuLaunchKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void,
    );
    cuGraphCreate(*mut CUgraph, c_uint);
    cuGraphDestroy(CUgraph);
    cuGraphAddKernelNode_v2(
        *mut CUgraphNode, CUgraph, *const CUgraphNode, usize, *const sys::CUDA_KERNEL_NODE_PARAMS,
    );
    cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, c_ulonglong);
    cuGraphExecDestroy(CUgraphExec);
    cuGraphUpload(CUgraphExec, CUstream);
    cuGraphLaunch(CUgraphExec, CUstream);
}

/// Calls a function of an [`Api`] and checks its answer: `call!(api, cuStreamSynchronize(stream))`.
macro_rules! call {
    ($api:expr, $name:ident($($argument:expr),* $(,)?)) => {
        $api.check(($api.$name)($($argument),*), stringify!($name))
    };
}
pub(super) use call;

impl Api {
    /// The driver's functions, or why there are none.
    pub(super) fn get() -> Result<(&'static Api, &'static Loaded), String> {
        static API: OnceLock<Result<Api, String>> = OnceLock::new();
        let loaded = probe::library()?;
        let api = API.get_or_init(|| Api::of(loaded)).as_ref().map_err(Clone::clone)?;
        Ok((api, loaded))
    }

    /// An answer as an outcome.
    pub(super) fn check(&self, code: Code, function: &str) -> Outcome<()> {
        if code == 0 { Ok(()) } else { Err(self.fault(code, function)) }
    }

    fn fault(&self, code: Code, function: &str) -> Fault {
        let words = self.text(self.cuGetErrorString, code);
        let name = self.text(self.cuGetErrorName, code);
        fault::of(code, function, words.as_deref(), name.as_deref())
    }

    /// What the driver says to a code; nothing to codes that it does not know.
    fn text(&self, function: Text, code: Code) -> Option<String> {
        let mut text = std::ptr::null();
        // SAFETY: it takes any number, and writes a pointer to a constant text, or null.
        let answer = unsafe { function(code, &raw mut text) };
        // SAFETY: not null, so it is that text, which ends in NUL.
        (answer == 0 && !text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}

/// A function of the library, which is never unloaded.
fn find<F: Copy>(loaded: &'static Loaded, name: &str) -> Result<F, String> {
    // SAFETY: `F` is the type of the field for this name, whose arguments are checked against the
    // bindings; `CUresult` is a 32-bit enum in C.
    let symbol = unsafe { loaded.library.get::<F>(name) };
    symbol.map(|symbol| *symbol).map_err(|e| format!("the NVIDIA driver lacks a function: {e}"))
}
