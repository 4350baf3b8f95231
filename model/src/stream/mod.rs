//! Layer streaming: models that are larger than the budget.
//!
//! As many layers as fit stay on the device ([`fit`]), beside embedding, head, cache and activations. The weights
//! of the others lie in a file without a name, in the layout of the device, and are brought in by groups, each
//! while the one before computes. A session's program is then a list of parts, one for each group, and the hidden
//! state goes from one to the next in a tensor. Kernels and their order are those of a session without streaming,
//! and so are the results, bit for bit.
//!
//! The CPU reads the mapped file where it lies. A GPU copies groups into slots; see [`tritter_runtime::stream`].

mod folder;
mod rate;
mod split;
mod store;
mod weights;

pub use folder::{folder, in_memory};
pub use rate::{measure, tokens_per_second};
pub use split::{Split, divide, fit};
pub use weights::Streamed;
pub(crate) use weights::load;
