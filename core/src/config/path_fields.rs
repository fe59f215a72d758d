//! The fields whose values are paths.

use super::fields::{Field, plugin_fields};
use crate::registry::{DatasetEntry, Kind, Registry, TypedEntry};

/// Fields outside the plugins' sections whose values are always paths.
pub(super) const PATHS: [&str; 2] = ["init_transform", "out"];
/// Fields whose value is either a path or a name, such as the id of a Hugging Face repository.
pub(super) const PATHS_OR_NAMES: [&str; 2] = ["model", "init_adapter"];
/// The field of a data set that `--data-dir` sets.
const DATA_DIR: &str = "data_dir";
/// The path that means standard input.
pub(super) const STDIN: &str = "-";

/// The fields of a plugin whose values are paths: fields whose schema has the format `path`, the
/// field that `--dataset FILE` sets, and the field that `--data-dir` sets.
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
