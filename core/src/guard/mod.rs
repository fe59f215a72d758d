//! Runs the code of methods so that panics in it become errors, in this program and in plugin
//! libraries.

pub mod faults;
mod guarded;
pub(crate) mod host_link;

pub(crate) use guarded::{Guarded, MethodId, guard};
