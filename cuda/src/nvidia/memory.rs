//! Device memory, given and taken in the order of the stream.
//!
//! From a pool of our own: giving memory back needs no wait, what comes back serves the next request
//! without a call to the system, and dropping the pool returns all of it. Systems without pools (some
//! virtual cards) get `cuMemAlloc`, which waits when memory is given back.
#![allow(unsafe_code)]

use super::api::call;
use super::context::Context;
use crate::driver::{Address, Fault, Outcome};
use cudarc::driver::sys::{self, CUmemPool_attribute as Attribute};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ptr::null_mut;
use std::sync::Arc;

/// What every allocation starts at a multiple of, as [`crate::driver::Driver::alloc`] promises.
const ALIGNED: u64 = 256;

/// The memory of one context.
pub(super) struct Memory {
    context: Arc<Context>,
    pool: Option<sys::CUmemoryPool>,
    /// What was given and not taken back. A mistaken address is never passed to the driver, and what
    /// is left goes back when this is dropped.
    live: Mutex<HashSet<Address>>,
}

// SAFETY: a pool is a handle that any thread may use.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// With a pool if the device has them. The context is current.
    pub(super) fn new(context: &Arc<Context>, pools: bool) -> Outcome<Memory> {
        let mut memory = Memory { context: context.clone(), pool: None, live: Mutex::default() };
        if !pools {
            return Ok(memory);
        }
        let properties = sys::CUmemPoolProps {
            allocType: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            handleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
            location: sys::CUmemLocation {
                type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: context.device,
            },
            win32SecurityAttributes: null_mut(),
            maxSize: 0,
            usage: 0,
            reserved: [0; 54],
        };
        let mut pool = null_mut();
        // SAFETY: the properties are whole, what drivers may add to them is 0; the handle is written.
        match unsafe { call!(context.api, cuMemPoolCreate(&raw mut pool, &raw const properties)) } {
            // Some virtualised drivers say that they have pools and refuse to make one.
            Err(Fault::Failed(why)) => {
                tracing::debug!("memory without a pool: {why}");
                return Ok(memory);
            }
            other => other?,
        }
        memory.pool = Some(pool);
        // Nothing goes back to the system at a wait, only when the pool is trimmed or dropped.
        let mut keep = u64::MAX;
        let threshold = Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is alive; this attribute is a 64-bit number.
        unsafe { call!(context.api, cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast())) }?;
        Ok(memory)
    }

    /// Memory with undefined content. The context is current.
    pub(super) fn alloc(&self, bytes: u64) -> Outcome<Address> {
        let size = usize::try_from(bytes).map_err(|_| Fault::OutOfMemory)?;
        let address = match self.try_alloc(size) {
            // What was freed may not have come back yet, or lies in pieces of the wrong size.
            Err(Fault::OutOfMemory) => {
                self.context.wait()?;
                self.trim();
                self.try_alloc(size)?
            }
            other => other?,
        };
        if !address.is_multiple_of(ALIGNED) {
            self.release(address);
            return Err(Fault::Failed(format!("the driver gave memory at {address:#x}, no multiple of {ALIGNED}")));
        }
        self.live.lock().insert(address);
        Ok(address)
    }

    fn try_alloc(&self, bytes: usize) -> Outcome<Address> {
        let (api, mut address) = (self.context.api, 0);
        // SAFETY: the context is current, pool and stream are alive; the address is written.
        unsafe {
            match self.pool {
                Some(pool) => {
                    call!(api, cuMemAllocFromPoolAsync(&raw mut address, bytes, pool, self.context.stream()))
                }
                None => call!(api, cuMemAlloc_v2(&raw mut address, bytes)),
            }
        }?;
        Ok(address)
    }

    /// Takes memory back after what was submitted before. The context is current.
    pub(super) fn free(&self, address: Address) {
        if self.live.lock().remove(&address) {
            self.release(address);
        } else {
            tracing::error!("{address:#x} is given back and was never given");
        }
    }

    fn release(&self, address: Address) {
        let api = self.context.api;
        let outcome = match self.pool {
            // SAFETY: given by this pool and used by nothing that is submitted later.
            Some(_) => unsafe { call!(api, cuMemFreeAsync(address, self.context.stream())) },
            // SAFETY: given by `cuMemAlloc`, and nothing in the stream uses it after the wait.
            None => self.context.wait().and_then(|()| unsafe { call!(api, cuMemFree_v2(address)) }),
        };
        // After a fault of the device nothing can be given back, and the context takes all with it.
        if let Err(fault) = outcome {
            tracing::debug!("memory is not given back: {fault}");
        }
    }

    /// Free and total bytes. What the pool holds unused is free. The context is current.
    pub(super) fn info(&self) -> Outcome<(u64, u64)> {
        let (free, total) = self.system()?;
        let reserved = self.pool_bytes(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = self.pool_bytes(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok(((free + reserved.saturating_sub(used)).min(total), total))
    }

    /// Bytes that no program holds, this one's pool included. The context is current.
    pub(super) fn untaken(&self) -> Outcome<u64> {
        Ok(self.system()?.0)
    }

    /// Free and total bytes in the driver's words.
    fn system(&self) -> Outcome<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; both sizes are written.
        unsafe { call!(self.context.api, cuMemGetInfo_v2(&raw mut free, &raw mut total)) }?;
        Ok((free as u64, total as u64))
    }

    fn pool_bytes(&self, attribute: Attribute) -> Outcome<u64> {
        let mut bytes = 0u64;
        if let Some(pool) = self.pool {
            // SAFETY: the pool is alive; the attributes asked for are 64-bit numbers.
            unsafe { call!(self.context.api, cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast())) }?;
        }
        Ok(bytes)
    }

    /// Gives what the pool holds unused back to the system.
    pub(super) fn trim(&self) {
        if let Some(pool) = self.pool {
            // SAFETY: the pool is alive.
            let _ = unsafe { call!(self.context.api, cuMemPoolTrimTo(pool, 0)) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        let left: Vec<Address> = self.live.get_mut().drain().collect();
        left.into_iter().for_each(|address| self.release(address));
        if let Some(pool) = self.pool {
            let _ = self.context.wait();
            // SAFETY: the pool is alive and used no more, and all of it was given back.
            let _ = unsafe { call!(self.context.api, cuMemPoolDestroy(pool)) };
        }
    }
}
