//! The `record` section of a run's `config.toml`, and the relative paths in this file.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::data_source;
use super::path_fields::{PATHS, PATHS_OR_NAMES, STDIN, in_section};
use super::place::{absolute, lexical, physical};
use crate::api::Dataset;
use crate::error::{Error, Result};
use crate::fingerprint::{self, Fingerprint};
use crate::registry::{Kind, Registry};

/// Name of the section of a run's `config.toml` that contains its [`Record`].
pub(super) const SECTION: &str = "record";

/// The folder and the fingerprints that a run records in its `config.toml`. The relative paths in a
/// configuration file with a record are resolved against the file's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Folder of the run at the time of writing.
    pub(super) folder: PathBuf,
    /// Fingerprint of the model.
    pub(super) model: Fingerprint,
    /// Fingerprints of the data, by split.
    pub(super) data: BTreeMap<String, Fingerprint>,
}

impl Record {
    /// Creates the record of a run in `folder`.
    pub fn new(folder: &Path, model: Fingerprint, dataset: &dyn Dataset) -> Self {
        Self { folder: physical(folder), model, data: fingerprint::of_splits(dataset) }
    }

    /// Removes the record from the table of a configuration file and returns it; `None` if the file
    /// was not written by a run.
    fn take(table: &mut toml::Table, file: &Path) -> Result<Option<Self>> {
        let Some(value) = table.remove(SECTION) else { return Ok(None) };
        let wrong = |e| {
            Error::new(format!("invalid section `{SECTION}` in `{}`", file.display()))
                .because(e)
                .hint(format!(
                    "remove the section `{SECTION}` from the file; relative paths are then \
                        resolved against the current folder"
                ))
        };
        value
            .try_into()
            .map(Some)
            .map_err(|e: toml::de::Error| wrong(Error::new(e.message().to_owned())))
    }

    /// Reads a configuration file. If the file was written by a run, the record is removed from the
    /// table and returned separately.
    pub(super) fn split(path: &Path) -> Result<(toml::Table, Option<Self>)> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::new(format!("cannot read the configuration file `{}`", path.display()))
                .because(e)
        })?;
        let mut table =
            toml::from_str(&text).map_err(|e: toml::de::Error| not_toml(path, &text, &e))?;
        let record = Self::take(&mut table, path)?;
        Ok((table, record))
    }

    /// Reads the record of a configuration file; `None` if the file was not written by a run.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not TOML.
    pub fn read(file: &Path) -> Result<Option<Self>> {
        Ok(Self::split(file)?.1)
    }

    /// The fingerprint of the model that the run used.
    pub fn model(&self) -> &Fingerprint {
        &self.model
    }

    /// Makes all relative paths in the table of `file` absolute.
    pub(super) fn resolve(&self, table: &mut toml::Table, file: &Path, registry: &Registry) {
        self.resolve_plugins(table, file);
        for field in PATHS.iter().chain(&PATHS_OR_NAMES) {
            if let Some(value) = table.get_mut(*field) {
                self.resolve_value(value, file, PATHS_OR_NAMES.contains(field));
            }
        }
        if let Some(eval) = table.get_mut("eval").and_then(toml::Value::as_table_mut) {
            if let Some(suite) = eval.get_mut("suite") {
                self.resolve_value(suite, file, true);
            }
            for entry in
                eval.get_mut("shifts").and_then(toml::Value::as_array_mut).into_iter().flatten()
            {
                if let toml::Value::String(text) = entry {
                    *text = data_source::with_path(text, |path| self.found(path, file, true));
                }
            }
        }
        for kind in Kind::ALL {
            let Some(section) = table.get_mut(kind.name()).and_then(toml::Value::as_table_mut)
            else {
                continue;
            };
            let Some(name) = section.get("name").and_then(toml::Value::as_str).map(str::to_owned)
            else {
                continue;
            };
            for field in in_section(kind, &name, registry) {
                if let Some(value) = section.get_mut(&field) {
                    self.resolve_value(value, file, false);
                }
            }
        }
    }

    /// Makes only the paths of plugin files absolute. The other paths can only be found after the
    /// plugins have been loaded.
    pub(super) fn resolve_plugins(&self, table: &mut toml::Table, file: &Path) {
        for plugin in
            table.get_mut("plugins").and_then(toml::Value::as_array_mut).into_iter().flatten()
        {
            let path = match plugin {
                toml::Value::Table(plugin) => plugin.get_mut("path"),
                path => Some(path),
            };
            if let Some(path) = path {
                self.resolve_value(path, file, false);
            }
        }
    }

    fn resolve_value(&self, value: &mut toml::Value, file: &Path, or_name: bool) {
        match value {
            toml::Value::String(text) => *text = self.found(text, file, or_name),
            toml::Value::Array(list) => {
                list.iter_mut().for_each(|v| self.resolve_value(v, file, or_name))
            }
            _ => {}
        }
    }

    /// Converts `text`, a relative path in `file`, to an absolute path. The path is relative to the
    /// file's folder, or to the run's original folder if it only exists there. If `or_name` is
    /// true, `text` may also be a name. It is then only a path if it begins with `.` or `..`.
    fn found(&self, text: &str, file: &Path, or_name: bool) -> String {
        let path = Path::new(text);
        let begins_here =
            matches!(path.components().next(), Some(Component::CurDir | Component::ParentDir));
        if text.is_empty()
            || text == "none"
            || text == STDIN
            || path.is_absolute()
            || (or_name && !begins_here)
        {
            return text.to_owned();
        }
        let folder = file.parent().unwrap_or(Path::new(""));
        let here = lexical(&absolute(folder).join(path));
        let candidates =
            [here.clone(), lexical(&physical(folder).join(path)), lexical(&self.folder.join(path))];
        candidates.into_iter().find(|p| p.exists()).unwrap_or(here).to_string_lossy().into_owned()
    }
}

fn not_toml(path: &Path, text: &str, e: &toml::de::Error) -> Error {
    let place = e.span().map_or_else(String::new, |span| {
        let before = text.get(..span.start).unwrap_or(text);
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("line {}, column {column}: ", before.matches('\n').count() + 1)
    });
    Error::new(format!("the configuration file `{}` is not TOML", path.display()))
        .because(Error::new(format!("{place}{}", e.message().lines().next().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_was_not_written_by_a_run_is_refused() {
        let table = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
        for text in ["record = 3", "[record]\nfolder = \"x\"", "[record]\nmodel = 1"] {
            let e = Record::take(&mut table(text), Path::new("a/config.toml")).unwrap_err();
            assert!(
                format!("{e:?}").starts_with("invalid section `record` in `a/config.toml`"),
                "{e:?}"
            );
        }
        assert!(Record::take(&mut table("model = \"x\""), Path::new("x")).unwrap().is_none());
    }

    #[test]
    fn a_relative_path_is_resolved_against_the_runs_folder_and_then_its_original_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["old/runs/a", "new/runs/a", "old/model"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let record = Record {
            folder: root.join("old/runs/a"),
            model: fingerprint::of_pairs(&[]),
            data: BTreeMap::new(),
        };
        let file = root.join("new/runs/a/config.toml");
        let found = |text: &str, or_name: bool| record.found(text, &file, or_name);
        assert_eq!(found("../../model", true), root.join("old/model").to_string_lossy());
        std::fs::create_dir_all(root.join("new/model")).unwrap();
        assert_eq!(found("../../model", true), root.join("new/model").to_string_lossy());
        assert_eq!(found("../../none", true), root.join("new/none").to_string_lossy());
        for name in ["org/name", "smollm2", "/abs/x", ""] {
            assert_eq!(found(name, true), name);
        }
        assert_eq!((found("-", false), found("none", false)), ("-".into(), "none".into()));
        assert_eq!(found("x.jsonl", false), root.join("new/runs/a/x.jsonl").to_string_lossy());
    }
}
