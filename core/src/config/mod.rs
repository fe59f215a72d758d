//! The resolved experiment: every value that a run depends on, and where each of them came from.
//!
//! Values arrive in layers (built-in defaults, the chosen plugins' defaults, a recipe, files, the environment, flags, `--set`),
//! as paths and JSON values; only when all are in is the result typed and checked. What a plugin's section may hold is
//! read from that plugin's schema, so a new plugin is configurable without a line here.

mod check;
mod dataset;
mod example;
mod experiment;
mod fields;
mod layering;
mod origin;
pub(crate) mod paths;
mod plugins;
#[cfg(test)]
mod tests;
mod written;

pub use example::Example;
pub use experiment::{Choice, Dtype, EvalConfig, Experiment, ReferenceModel, Schedule, Score, TrainConfig, schema};
pub(crate) use fields::equal;
pub use fields::{Field, Word, fields, plugin_fields};
pub(crate) use layering::default_learning_rate;
pub use layering::{Layering, Resolved};
pub use origin::{Origin, Origins};
pub use paths::{Record, Sources};
pub use plugins::PluginFile;
