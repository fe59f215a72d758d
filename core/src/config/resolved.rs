//! The result of layering.

use super::{Experiment, Origins, written};

/// An experiment, and where each of its values came from.
#[derive(Debug)]
pub struct Resolved {
    /// The values.
    pub experiment: Experiment,
    /// Their origins.
    pub origins: Origins,
}

impl Resolved {
    /// The experiment as TOML with the origin of each value behind it.
    pub fn to_toml_with_origins(&self) -> String {
        written::toml(&self.experiment.to_json(), &self.origins)
    }
}
