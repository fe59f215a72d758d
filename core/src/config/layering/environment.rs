//! Reads settings of the experiment from environment variables.

use super::setting::{RawValue, Setting};
use crate::config::Origin;

/// Environment variables that start with `REPRPO_` but are not settings of the experiment.
pub(super) const OTHER_VARIABLES: [&str; 7] = [
    "REPRPO_DATA",
    "REPRPO_CACHE",
    "REPRPO_SHARED",
    "REPRPO_NO_PROGRESS",
    "REPRPO_NO_NCCL",
    "REPRPO_LOG",
    "REPRPO_PLUGIN_DIR",
];

/// True if the environment variable is a setting of the experiment.
pub fn is_setting(name: &str) -> bool {
    name.starts_with("REPRPO_") && !OTHER_VARIABLES.contains(&name)
}

/// Extracts the settings from environment variables. For example, `REPRPO_TRAIN__LR` sets
/// `train.lr`.
pub(super) fn settings(variables: impl IntoIterator<Item = (String, String)>) -> Vec<Setting> {
    let mut ours: Vec<_> = variables.into_iter().filter(|(name, _)| is_setting(name)).collect();
    // Sort the variables, because the order of a process's environment is arbitrary.
    ours.sort();
    let setting = |(name, value): (String, String)| {
        let path = name["REPRPO_".len()..].to_lowercase().split("__").map(str::to_owned).collect();
        Setting::new(path, RawValue::Text(value), Origin::Environment(name))
    };
    ours.into_iter().map(setting).collect()
}
