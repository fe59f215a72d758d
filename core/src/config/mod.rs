//! The configuration: all settings of a run, and where each value came from.
//!
//! A field is defined once, in its struct. The definition includes the default, the documentation
//! in the schema and in the help, and the flag on the command line. Values come from layers:
//! built-in defaults, the chosen plugins' defaults, a recipe, files, the environment, flags, and
//! `--set`. Each layer maps field paths to JSON values. Types and ranges are only checked after all
//! layers have been merged. The fields of a plugin's section are read from the plugin's schema, so
//! a new plugin needs no code here.

mod batch;
mod cache;
mod changes;
mod check;
mod choice;
mod command_line;
mod data_source;
mod dataset;
mod dtype;
mod eval;
mod example;
mod experiment;
mod fields;
mod flag;
mod layering;
mod origin;
mod path_fields;
pub(crate) mod paths;
mod place;
mod plugins;
mod record;
mod resolved;
mod schema;
mod sources;
mod suite;
#[cfg(test)]
mod tests;
mod toml_text;
mod train;
pub(crate) mod value;

pub use batch::Batch;
pub use cache::{CacheConfig, CacheMode};
pub(crate) use changes::{changed_fields, flat, shown};
pub use choice::Choice;
pub use command_line::flags;
pub use data_source::{DataSource, Shift};
pub use dtype::Dtype;
pub use eval::{EvalConfig, OverlapRule, Score};
pub use example::Example;
pub use experiment::Experiment;
pub use fields::{Field, Word, fields, plugin_fields};
pub use flag::{Flag, Group};
pub(crate) use layering::default_learning_rate;
pub use layering::{Assignment, Layering, is_setting};
pub use origin::{Origin, Origins};
pub use plugins::PluginFile;
pub use record::Record;
pub use resolved::Resolved;
pub use schema::schema;
pub use sources::Sources;
pub use suite::{Suite, SuitePair, SuiteText, TrainingSet, shifts};
pub use train::{BestMetric, ReferenceModel, Schedule, TrainConfig};
