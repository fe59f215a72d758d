//! reprpo: train language models from preference pairs through their hidden states and gradients.
//!
//! This crate contains the engine and the plugin API, but no methods. Interventions, adapters,
//! transforms, taps and data sets are looked up in the [`registry`]. The engine computes the values
//! that an intervention requests in its [`api::Needs`].

pub mod api;
pub mod batch;
pub mod config;
pub mod conformance;
pub mod data;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod ffi;
pub mod files;
pub mod fingerprint;
pub mod generate;
pub mod guard;
pub mod hub;
pub mod memory;
pub mod model;
pub mod other_base;
pub mod page;
pub mod panics;
pub mod plugin;
pub mod reference;
pub mod registry;
pub mod report;
pub mod results;
pub mod run;
pub mod selftest;
pub mod session;
pub mod shifts;
pub mod statistics;
pub mod study;
pub mod text;
pub mod train;
pub mod weights;
pub mod world;

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod layers_tests;

#[doc(hidden)]
pub use inventory;

pub use error::{Context, Error, Result};
