//! The built-in methods. Each has one folder with its configuration, maths, registration and tests.
//!
//! Like external plugins, the methods only use the plugin API. The linker includes the methods only
//! if the program refers to this crate, e.g. with `use reprpo_methods as _;` or [`DEFAULTS`].

mod adapters;
#[cfg(test)]
mod golden;
mod interventions;
mod recipes;
mod reflections;
mod taps;
mod transforms;

/// The default configuration of `reprpo run`, for
/// `reprpo_cli::main(reprpo_methods::DEFAULTS)`.
pub const DEFAULTS: &str = include_str!("defaults.toml");
