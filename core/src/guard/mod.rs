//! The guard around a method's code, on both sides of a library's boundary.

pub mod faults;
mod guarded;
pub(crate) mod host_link;

pub(crate) use guarded::{Guarded, Who, guard};
