//! The settings of the cache of reference values. `reprpo config schema` prints the doc comments of
//! the fields.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flag::{Flag, Group};

/// The place where values of the reference are kept for later runs and evaluations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Nowhere: each run and each evaluation computes its own values.
    Off,
    /// In the memory of this process, for the other runs of a sweep and for the evaluation.
    #[default]
    Memory,
    /// In memory, and in the cache folder, for later processes.
    Disk,
}

/// The settings of the cache of reference values. They do not change the result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// The place where log-probabilities and pooled states of the reference are kept for later runs
    /// and evaluations.
    #[schemars(extend("flags" = [
        Flag::new(Group::Cache, "PLACE").named("reference-cache").under("Output").help(
            "Place where values of the reference are kept for later runs and evaluations: `off`, \
             `memory` (of this process) or `disk` (see `reprpo cache`).",
        ),
    ]))]
    pub reference: CacheMode,
    /// Folder of the values on disk; none = the folder `reference` in reprpo's cache folder.
    pub folder: Option<PathBuf>,
    /// Maximum size of the values in memory, and of all values on disk, in units of 10⁹ bytes. If
    /// there are more, those that were not used for the longest time are removed.
    pub max_gb: f64,
}

impl CacheConfig {
    /// The maximum size in bytes.
    pub fn bytes(&self) -> u64 {
        (self.max_gb * 1e9) as u64
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { reference: CacheMode::default(), folder: None, max_gb: 4.0 }
    }
}
