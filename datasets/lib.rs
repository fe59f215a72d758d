//! The built-in data sets.
//!
//! They are written as an outsider's crate would be: against `reprpo_plugin` alone, each
//! registering itself. Nothing here tokenises or knows a model; a data set's work ends at the text
//! of a pair.

pub mod files;
pub mod genies;
pub mod hub;
pub mod synthetic;
