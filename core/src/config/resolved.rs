//! The result of merging all layers of settings.

use super::{Experiment, Origins, toml_text};

/// An experiment and the origins of its values.
#[derive(Debug)]
pub struct Resolved {
    /// The resolved experiment.
    pub experiment: Experiment,
    /// The origin of each of its values.
    pub origins: Origins,
}

impl Resolved {
    /// The experiment as TOML with a comment after each value that names its origin.
    pub fn to_toml_with_origins(&self) -> String {
        toml_text::write(&self.experiment.to_json(), &self.origins)
    }
}
