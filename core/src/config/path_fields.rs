//! The fields whose values are paths.

use super::fields::{Field, plugin_fields};
use crate::registry::{DatasetEntry, Kind, Registry, TypedEntry};

/// Top-level fields whose values are always paths.
pub(super) const PATHS: [&str; 2] = ["init_transform", "out"];
/// Top-level fields whose value is either a path or a name, such as the id of a Hugging Face
/// repository.
pub(super) const PATHS_OR_NAMES: [&str; 2] = ["model", "init_adapter"];
/// Name of the data set field that `--data-dir` sets.
const DATA_DIR: &str = "data_dir";
/// The path that means standard input.
pub(super) const STDIN: &str = "-";

/// Returns the names of a plugin's fields whose values are paths. These are the fields with the
/// format `path` in the schema, and the fields that `--dataset FILE` and `--data-dir` set.
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
