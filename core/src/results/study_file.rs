//! The file `study.json` in the folder of a study.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Result;
use crate::files::read_record;

/// Name of the file.
pub(super) const FILE: &str = "study.json";

/// The data on which a study selected the values of its methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectedOn {
    /// Held-out pairs of the training distribution.
    Validation,
    /// The shifted data, on which the methods are compared. The comparison is then too optimistic.
    Shift,
}

/// The state of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialState {
    /// The run is complete.
    Finished,
    /// The run ended with an error.
    Failed,
    /// The sampler stopped the run because of its intermediate results.
    Pruned,
    /// The run has not been started or is not complete.
    Missing,
}

impl TrialState {
    /// The name of the state in `study.json`.
    pub fn name(self) -> &'static str {
        match self {
            TrialState::Finished => "finished",
            TrialState::Failed => "failed",
            TrialState::Pruned => "pruned",
            TrialState::Missing => "missing",
        }
    }
}

/// A run of a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Name of the method.
    pub method: String,
    /// `search` or `final`.
    pub phase: String,
    /// The searched fields and their values.
    #[serde(default)]
    pub values: BTreeMap<String, Value>,
    /// Seed of the training.
    pub seed: u64,
    /// Folder of the run, relative to the folder of the study.
    pub run: PathBuf,
    /// State of the run.
    pub state: TrialState,
    /// The objective, if the run is complete.
    #[serde(default)]
    pub score: Option<f64>,
    /// The error of a failed run.
    #[serde(default)]
    pub error: Option<String>,
}

impl Trial {
    /// True if the run belongs to the final runs at the tuned values.
    pub fn is_final(&self) -> bool {
        self.phase == "final"
    }
}

/// The content of `study.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudyFile {
    /// Name of the study.
    #[serde(default)]
    pub name: String,
    /// The command that made the study.
    #[serde(default)]
    pub command: Vec<String>,
    /// Name of the objective of the search.
    #[serde(default)]
    pub objective: Option<String>,
    /// The data on which the values were selected.
    pub selected_on: SelectedOn,
    /// Names of the methods.
    pub methods: Vec<String>,
    /// The selected values of each method.
    #[serde(default)]
    pub tuned: BTreeMap<String, BTreeMap<String, Value>>,
    /// The runs.
    pub trials: Vec<Trial>,
}

impl StudyFile {
    /// Reads the file from the folder of a study. Returns `None` if there is no such file.
    ///
    /// # Errors
    /// Fails if the file cannot be read or does not have the expected format.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        read_record(&folder.join(FILE), "does not describe a study")
    }
}
