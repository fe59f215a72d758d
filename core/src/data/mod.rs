//! Data sets from the outside: the part of one that is asked for, and what is in it before anything
//! is trained.

mod histogram;
mod inspect;
mod lengths;
mod selection;

pub use histogram::histogram;
pub use inspect::{Asked, Completion, Example, Inspection, SplitReport, Used, inspect};
pub use lengths::{Bin, Lengths};
pub use selection::{info, named, rows};

use crate::api::Dataset;
use crate::config::Experiment;
use crate::error::Result;
use crate::registry::Registry;

/// Opens the experiment's data set.
///
/// # Errors
/// What the data set itself refuses: a field that does not fit, a file that is missing or holds no
/// pairs.
pub fn open(experiment: &Experiment, registry: &Registry) -> Result<Box<dyn Dataset>> {
    let entry = registry.dataset(&experiment.dataset.name)?;
    experiment.sources.check_data_paths(&experiment.dataset, registry)?;
    entry.build(&experiment.dataset.json())
}
