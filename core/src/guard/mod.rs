//! Runs the code of methods and turns panics into errors, both for built-in methods and in plugin
//! libraries.

pub mod faults;
mod guarded;
pub(crate) mod host_link;

pub(crate) use guarded::{Guarded, MethodId, guard};
