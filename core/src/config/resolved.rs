//! The result of merging all layers of settings.

use super::{Experiment, Origins, toml_text};

/// An experiment and the origins of its values.
#[derive(Debug)]
pub struct Resolved {
    /// The resolved experiment.
    pub experiment: Experiment,
    /// The origin of each value.
    pub origins: Origins,
}

impl Resolved {
    /// The experiment as TOML. A comment after each value names its origin.
    pub fn to_toml_with_origins(&self) -> String {
        toml_text::write(&self.experiment.to_json(), &self.origins)
    }
}
