//! The built-in data sets.
//!
//! They only use `reprpo_plugin`, like external plugins, and each registers itself. A data set
//! returns the text of pairs; it does not tokenise, and does not know the model.

pub mod files;
pub mod genies;
pub mod hub;
pub mod synthetic;
