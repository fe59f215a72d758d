//! Calls the code of methods and turns panics into errors, for built-in methods as well as for
//! methods from plugin libraries.

pub mod faults;
mod guarded;
pub(crate) mod host_link;

pub(crate) use guarded::{Guarded, MethodId, guard};
