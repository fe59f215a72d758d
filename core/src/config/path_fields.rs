//! The fields that hold paths.

use super::fields::{Field, plugin_fields};
use crate::registry::{DatasetEntry, Kind, Registry, TypedEntry};

/// Fields outside the plugins' sections that are always paths.
pub(super) const PATHS: [&str; 2] = ["init_transform", "out"];
/// Fields that hold either a path or a name, such as that of a repository of the hub.
pub(super) const PATHS_OR_NAMES: [&str; 2] = ["model", "init_adapter"];
/// The field that `--data-dir` sets, in every data set.
const DATA_DIR: &str = "data_dir";
/// Standard input, in place of a path.
pub(super) const STDIN: &str = "-";

/// The fields of a plugin that hold paths: those whose schema has the format `path`, the one that
/// `--dataset FILE` fills, and the one that `--data-dir` fills.
pub(super) fn in_section(kind: Kind, name: &str, registry: &Registry) -> Vec<String> {
    let Ok(entry) = registry.get(kind, name) else { return Vec::new() };
    let argument = DatasetEntry::of_entry(entry)
        .filter(|data| !data.extensions.is_empty())
        .and_then(|data| data.argument);
    let all = plugin_fields(entry.about()).unwrap_or_default();
    let is_path = |f: &Field| {
        f.path || Some(f.name.as_str()) == argument || (kind == Kind::Dataset && f.name == DATA_DIR)
    };
    all.into_iter().filter(is_path).map(|f| f.name).collect()
}
