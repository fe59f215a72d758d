//! The starting point of a run: a new folder or a checkpoint.

use std::path::{Path, PathBuf};

/// The starting point of a run.
#[derive(Clone, Debug)]
pub enum Start {
    /// Start in a folder that does not exist yet or is empty.
    New(PathBuf),
    /// Resume from the checkpoint of the run in this folder.
    Resume {
        /// The run's folder.
        folder: PathBuf,
        /// True to resume even if the data, the model or the configuration has changed since the
        /// checkpoint was written.
        inexact: bool,
    },
}

impl Start {
    /// The run's folder.
    pub fn folder(&self) -> &Path {
        match self {
            Start::New(folder) | Start::Resume { folder, .. } => folder,
        }
    }
}
