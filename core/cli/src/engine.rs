//! Where the command hands over to the engine: what it asks for, fully resolved, and what it gets back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reprpo_core::config::Experiment;
use reprpo_core::eval::statistics::PairScore;
use reprpo_core::report::{Progress, Table};
use reprpo_core::{Error, Result};

use crate::App;

/// How a run begins.
pub enum Start {
    /// In a new folder, which does not exist yet.
    New(PathBuf),
    /// From the last checkpoint of the run in this folder.
    Resume(PathBuf),
}

impl Start {
    /// The run's folder.
    pub fn folder(&self) -> &Path {
        match self {
            Start::New(folder) | Start::Resume(folder) => folder,
        }
    }
}

/// Trains, and judges the result where the experiment asks for it.
///
/// # Errors
/// What cannot be loaded, built or trained; `Error::interrupted` when `stop` turned true, after a checkpoint.
pub fn run(_experiment: &Experiment, _start: &Start, _stop: &Arc<AtomicBool>, _progress: &mut dyn Progress, _app: &App<'_>) -> Result<Option<Table>> {
    Err(not_linked())
}

/// Judges the experiment's model on its data set: alone, or with `adapter` against itself without it.
///
/// # Errors
/// What cannot be loaded or scored.
pub fn evaluate(_experiment: &Experiment, _adapter: Option<&Path>, _progress: &mut dyn Progress, _app: &App<'_>) -> Result<Table> {
    Err(not_linked())
}

/// Scores every pair of the experiment's data set with its model and `init_adapter`, split after split.
///
/// # Errors
/// What cannot be loaded or scored.
pub fn score(_experiment: &Experiment, _eos: bool, _progress: &mut dyn Progress, _app: &App<'_>) -> Result<Vec<PairScore>> {
    Err(not_linked())
}

fn not_linked() -> Error {
    Error::internal("the engine is not linked yet")
}
