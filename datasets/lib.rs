//! The built-in data sets.
//!
//! They only depend on `reprpo_plugin`, like external plugins, and each registers itself. A data
//! set only returns the text of pairs: it does not tokenise, and it does not depend on the model.

pub mod files;
pub mod genies;
pub mod hub;
pub mod synthetic;
