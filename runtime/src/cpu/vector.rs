//! Vector instructions for plain loops.
//!
//! Builds are for the oldest processor of their target, so loops use its narrow registers.
//! [`widest`] compiles a closure once for each vector width and takes the widest that this
//! processor has. Lanes never change the order of a sum, so results are the same bits on all.

/// Runs `f`, which must be inlined whole (`#[inline(always)]` on what it calls), with the widest
/// vector instructions there are.
#[inline]
pub fn widest<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(not(target_arch = "wasm32"))]
    {
        pulp::Arch::new().dispatch(f)
    }
    #[cfg(target_arch = "wasm32")]
    {
        f()
    }
}
