//! The built-in data sets.
//!
//! Like external plugins, they only depend on `reprpo_plugin`, and each registers itself. A data
//! set only returns the text of pairs. It does not tokenise, and it does not depend on the model.

pub mod files;
pub mod genies;
pub mod hub;
mod suites;
pub mod synthetic;
