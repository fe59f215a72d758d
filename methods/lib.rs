//! The built-in methods. Each has one folder with its configuration, maths, registration and tests.
//!
//! They only use the plugin API, like external plugins. The linker only includes them if the
//! program refers to this crate, e.g. with `use reprpo_methods as _;` or [`DEFAULTS`].

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
