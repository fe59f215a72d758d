//! A run's notes about itself in its `config.toml`, and the paths in such a file.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::path_fields::{PATHS, PATHS_OR_NAMES, STDIN, in_section};
use super::place::{absolute, lexical, physical};
use crate::api::Dataset;
use crate::error::{Error, Result};
use crate::fingerprint::{self, Fingerprint};
use crate::registry::{Kind, Registry};

/// The section of a run's `config.toml` that holds its [`Record`].
pub(super) const SECTION: &str = "record";

/// A run's notes about itself in its `config.toml`. Relative paths in such a file begin at the
/// file's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The run's folder when this was written.
    pub(super) folder: PathBuf,
    /// The model's fingerprint.
    pub(super) model: Fingerprint,
    /// The data's fingerprints, by split.
    pub(super) data: BTreeMap<String, Fingerprint>,
}

impl Record {
    /// The record of a run in `folder`.
    pub fn new(folder: &Path, model: Fingerprint, dataset: &dyn Dataset) -> Self {
        Self { folder: physical(folder), model, data: fingerprint::of_splits(dataset) }
    }

    /// Takes the record out of the table of a configuration file; `None` if no run wrote the file.
    fn take(table: &mut toml::Table, file: &Path) -> Result<Option<Self>> {
        let Some(value) = table.remove(SECTION) else { return Ok(None) };
        let wrong = |e| {
            Error::new(format!("`{SECTION}` in `{}` is not what a run writes", file.display()))
                .because(e)
                .hint(format!(
                    "take the section `{SECTION}` out of the file; relative paths then \
                    begin at the folder that the command runs in"
                ))
        };
        value
            .try_into()
            .map(Some)
            .map_err(|e: toml::de::Error| wrong(Error::new(e.message().to_owned())))
    }

    /// The table in a configuration file, and the record in it if a run wrote the file.
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

    /// The record in a configuration file; `None` if no run wrote the file.
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

    /// Makes the relative paths in the table of `file`, which a run wrote, absolute.
    pub(super) fn resolve(&self, table: &mut toml::Table, file: &Path, registry: &Registry) {
        self.resolve_plugins(table, file);
        for field in PATHS.iter().chain(&PATHS_OR_NAMES) {
            if let Some(value) = table.get_mut(*field) {
                self.resolve_value(value, file, PATHS_OR_NAMES.contains(field));
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

    /// Makes the paths of plugin files absolute. They are needed before the other fields can be
    /// understood.
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

    /// The absolute path that `text` in `file` means. It begins at the file's folder, or at the
    /// folder in which the run was made if only that leads to something.
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
    fn a_record_that_no_run_wrote_is_refused() {
        let table = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
        for text in ["record = 3", "[record]\nfolder = \"x\"", "[record]\nmodel = 1"] {
            let e = Record::take(&mut table(text), Path::new("a/config.toml")).unwrap_err();
            assert!(
                format!("{e:?}")
                    .starts_with("`record` in `a/config.toml` is not what a run writes"),
                "{e:?}"
            );
        }
        assert!(Record::take(&mut table("model = \"x\""), Path::new("x")).unwrap().is_none());
    }

    #[test]
    fn a_kept_path_is_looked_for_beside_the_run_and_then_where_the_run_was() {
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
