//! The layer of environment variables.

use super::setting::{Given, Setting};
use crate::config::Origin;

/// Variables that begin as the configuration's do and are read elsewhere.
pub(super) const OTHER_VARIABLES: [&str; 6] = [
    "REPRPO_DATA",
    "REPRPO_CACHE",
    "REPRPO_SHARED",
    "REPRPO_NO_PROGRESS",
    "REPRPO_LOG",
    "REPRPO_PLUGIN_DIR",
];

/// The settings of the `REPRPO_*` among `variables`: `REPRPO_TRAIN__LR` is `train.lr`.
pub(super) fn settings(variables: impl IntoIterator<Item = (String, String)>) -> Vec<Setting> {
    let mut ours: Vec<_> = variables
        .into_iter()
        .filter(|(name, _)| {
            name.starts_with("REPRPO_") && !OTHER_VARIABLES.contains(&name.as_str())
        })
        .collect();
    // The order in which a process finds them means nothing.
    ours.sort();
    let setting = |(name, value): (String, String)| {
        let path = name["REPRPO_".len()..].to_lowercase().split("__").map(str::to_owned).collect();
        Setting::new(path, Given::Text(value), Origin::Environment(name))
    };
    ours.into_iter().map(setting).collect()
}
