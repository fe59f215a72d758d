//! Opening data sets, selecting parts of their splits, and inspecting their contents.

mod histogram;
mod inspect;
mod lengths;
mod selection;

pub use histogram::histogram;
pub use inspect::{
    Completion, Example, InspectSpec, Inspection, SplitReport, TokenReport, inspect,
};
pub use lengths::{Bin, Lengths};
pub use selection::{info, named, rows};

use crate::api::Dataset;
use crate::config::Experiment;
use crate::error::Result;
use crate::registry::Registry;

/// Opens the experiment's data set.
///
/// # Errors
/// Fails if the data set is not registered, if a path does not exist, or if the data set cannot be
/// opened, for example because a file has no pairs.
pub fn open(experiment: &Experiment, registry: &Registry) -> Result<Box<dyn Dataset>> {
    let entry = registry.dataset(&experiment.dataset.name)?;
    experiment.sources.check_data_paths(&experiment.dataset, registry)?;
    entry.build(&experiment.dataset.json())
}
