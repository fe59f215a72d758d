//! Values of a frozen reference: log-probabilities and pooled states of preference pairs.
//!
//! Training compares the policy with these values, and evaluation compares the trained model with
//! them. They only depend on the reference and on the tokens, so they are computed once and reused
//! by later epochs, runs and evaluations.
//!
//! A value may depend on the batch that computes it, up to rounding. For example, the
//! log-probability of a token can differ in its last bit between a batch of one pair and a batch of
//! four pairs. Therefore, the pairs of a data set are divided into blocks, and a block is always
//! computed as one batch. The digest of all its tokens is part of the key of its values. So the
//! bytes of a value do not depend on whether it was cached.

mod blocks;
mod cache;
mod disk;
mod fitting;
mod listing;
mod memory;
mod quantity;
mod source;
mod values;

pub use blocks::{BLOCK_TOKENS, blocks};
pub use cache::{ReferenceCache, Usage};
pub use fitting::{FitSites, ReferencePass};
pub use listing::{Collection, clear, collections, folder};
pub use memory::cached_bytes;
pub use quantity::Quantity;
pub(crate) use source::describe as described_device;
pub use source::{About, Source};
pub(crate) use values::block_spec;
pub use values::{Values, compute};
