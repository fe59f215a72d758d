//! The built-in methods, one place each: configuration, maths, registration and test side by side.
//!
//! They use the plugin API alone, as a crate written outside does. Naming this crate is what links
//! them: `use reprpo_methods as _;`, or [`DEFAULTS`].

mod adapters;
#[cfg(test)]
mod golden;
mod interventions;
mod recipes;
mod reflections;
mod taps;
mod transforms;

/// What `reprpo run` does when nothing is said, as a configuration file:
/// `reprpo_cli::main(reprpo_methods::DEFAULTS)`.
pub const DEFAULTS: &str = include_str!("defaults.toml");
