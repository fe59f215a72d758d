//! Calls the code of methods and turns panics into errors. Built-in methods and plugins are treated
//! alike.

pub mod faults;
mod guarded;
pub(crate) mod host_link;

pub(crate) use guarded::{Guarded, MethodId, guard};
