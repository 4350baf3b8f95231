//! Compiled kernels: ready ones in the executable, kept ones on disk, fresh ones from NVRTC.
//!
//! A compiled file is worth something only for the sources that it was made of, so every place is
//! asked with [`Source::hash`] and answers only if it holds exactly that. Most users have a driver and
//! no compiler: for the architectures of [`READY`] the driver alone is enough.

mod arch;
mod archive;
mod cache;
mod source;
mod supply;
mod wire;

pub use arch::{Arch, READY, Target};
pub use archive::{Archive, Packed};
pub use cache::{Cache, Key};
pub use source::{HEADERS, OPTIONS, Source};
pub use supply::{Image, Supply};
