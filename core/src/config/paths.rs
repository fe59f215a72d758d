//! Paths in an experiment: which fields hold them, how a run keeps them, and where each of them came from.
//!
//! A path that a person gives begins at the folder in which the command runs. A run keeps it relative to its own folder if
//! both lie in one tree, and otherwise absolute. It is then found from any folder, even after the tree was moved.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Experiment, Origin, Origins, fields, layering, written};
use crate::api::Dataset;
use crate::error::{Error, Result};
use crate::fingerprint::{self, Fingerprint};
use crate::registry::{DatasetEntry, Kind, Registry, TypedEntry};

/// The section of a run's `config.toml` that holds its [`Record`].
pub(super) const SECTION: &str = "record";

/// Fields outside the plugins' sections that are always paths.
const PATHS: [&str; 2] = ["init_transform", "out"];
/// Fields that hold either a path or a name, such as that of a repository of the hub.
const PATHS_OR_NAMES: [&str; 2] = ["model", "init_adapter"];
/// The field that `--data-dir` sets, in every data set.
const DATA_DIR: &str = "data_dir";
/// Standard input, in place of a path.
const STDIN: &str = "-";

/// A run's notes about itself in its `config.toml`. Relative paths in such a file begin at the file's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The run's folder when this was written.
    folder: PathBuf,
    /// The model's fingerprint.
    model: Fingerprint,
    /// The data's fingerprints, by split.
    data: BTreeMap<String, Fingerprint>,
}

impl Record {
    /// The record of a run in `folder`.
    pub fn new(folder: &Path, model: Fingerprint, dataset: &dyn Dataset) -> Self {
        Self { folder: physical(folder), model, data: fingerprint::of_splits(dataset) }
    }

    /// Takes the record out of the table of a configuration file; `None` if no run wrote the file.
    pub(super) fn take(table: &mut toml::Table, file: &Path) -> Result<Option<Self>> {
        let Some(value) = table.remove(SECTION) else { return Ok(None) };
        let wrong = |e| {
            Error::new(format!("`{SECTION}` in `{}` is not what a run writes", file.display()))
                .because(e)
                .hint(format!("take the section `{SECTION}` out of the file; relative paths then begin at the folder that the command runs in"))
        };
        value.try_into().map(Some).map_err(|e: toml::de::Error| wrong(Error::new(e.message().to_owned())))
    }

    /// The record in a configuration file; `None` if no run wrote the file.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not TOML.
    pub fn read(file: &Path) -> Result<Option<Self>> {
        Ok(layering::read(file)?.1)
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
            let Some(section) = table.get_mut(kind.name()).and_then(toml::Value::as_table_mut) else { continue };
            let Some(name) = section.get("name").and_then(toml::Value::as_str).map(str::to_owned) else { continue };
            for field in in_section(kind, &name, registry) {
                if let Some(value) = section.get_mut(&field) {
                    self.resolve_value(value, file, false);
                }
            }
        }
    }

    /// Makes the paths of plugin files absolute. They are needed before the other fields can be understood.
    pub(super) fn resolve_plugins(&self, table: &mut toml::Table, file: &Path) {
        for plugin in table.get_mut("plugins").and_then(toml::Value::as_array_mut).into_iter().flatten() {
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
            toml::Value::Array(list) => list.iter_mut().for_each(|v| self.resolve_value(v, file, or_name)),
            _ => {}
        }
    }

    /// The absolute path that `text` in `file` means. It begins at the file's folder, or at the folder in which the run was
    /// made if only that leads to something.
    fn found(&self, text: &str, file: &Path, or_name: bool) -> String {
        let path = Path::new(text);
        let begins_here = matches!(path.components().next(), Some(Component::CurDir | Component::ParentDir));
        if text.is_empty() || text == "none" || text == STDIN || path.is_absolute() || (or_name && !begins_here) {
            return text.to_owned();
        }
        let folder = file.parent().unwrap_or(Path::new(""));
        let here = lexical(&absolute(folder).join(path));
        let candidates = [here.clone(), lexical(&physical(folder).join(path)), lexical(&self.folder.join(path))];
        candidates.into_iter().find(|p| p.exists()).unwrap_or(here).to_string_lossy().into_owned()
    }
}

/// The origin of each value of an experiment, and the records of the runs that values came from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    origins: Origins,
    records: BTreeMap<PathBuf, Record>,
}

/// Always equal, because the origins of their values do not make two experiments differ.
impl PartialEq for Sources {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Sources {
    pub(super) fn new(origins: Origins, records: BTreeMap<PathBuf, Record>) -> Self {
        Self { origins, records }
    }

    /// Where the value of a field came from; `None` if that is not known.
    pub fn origin(&self, field: &str) -> Option<&Origin> {
        self.origins.get(field)
    }

    /// Drops the records, for a caller that checks the model and the data by other means.
    pub(crate) fn forget_records(&mut self) {
        self.records.clear();
    }

    /// The run that the value of `field` came from: its configuration file and its record.
    fn record(&self, field: &str) -> Option<(&Path, &Record)> {
        match self.origins.get(field) {
            Some(Origin::File(file)) => self.records.get(file).map(|record| (file.as_path(), record)),
            _ => None,
        }
    }

    /// Adds to an error about the value of `field` where the value came from.
    pub fn explain(&self, field: &str, value: &str, e: Error) -> Error {
        match self.origins.get(field) {
            None | Some(Origin::Default) => e,
            Some(origin) => {
                let e = e.within(format!("`{field}` is `{value}` ({origin}), which cannot be used"));
                match (origin, self.record(field)) {
                    (Origin::File(_), None) if is_relative(value) => e.hint(from_here()),
                    _ => e,
                }
            }
        }
    }

    /// Compares the model that was found with the record of the run that named it.
    ///
    /// # Errors
    /// Fails if the run was made with another model.
    pub fn check_model(&self, model: &str, found: &Fingerprint) -> Result<()> {
        let Some((file, record)) = self.record("model") else { return Ok(()) };
        let Some(change) = record.model.change(found) else { return Ok(()) };
        Err(Error::new(format!("the model at `{model}` is not the one that `{}` was made with", file.display()))
            .because(Error::new(format!("the model: {change}")))
            .hint("put the run's model back, or name the one to use with `--model`"))
    }

    /// Compares the data that were found with the record of the run that named them. Gives the differences that the user
    /// asked for by naming other data.
    ///
    /// # Errors
    /// Fails if the run was made with other data.
    pub fn check_data(&self, experiment: &Experiment, dataset: &dyn Dataset, registry: &Registry) -> Result<Vec<String>> {
        let Some((file, record)) = self.record("dataset.name") else { return Ok(Vec::new()) };
        let said = |field: &str| {
            let origin = self.origins.get(&format!("dataset.{field}"));
            !matches!(origin, None | Some(Origin::Default | Origin::Plugin(_))) && origin != Some(&Origin::File(file.to_owned()))
        };
        // A field that only says how a file's rows are read does not explain why the file changed.
        let mut places = in_section(Kind::Dataset, &experiment.dataset.name, registry);
        let argument = registry.dataset(&experiment.dataset.name).ok().and_then(|entry| entry.argument);
        places.extend(argument.map(str::to_owned));
        let other_place = places.iter().any(|field| said(field));
        let other_field = experiment.dataset.config.keys().any(|field| said(field));
        let found = fingerprint::of_splits(dataset);
        let mut changes = Vec::new();
        for (split, then) in &record.data {
            let Some(change) = found.get(split).and_then(|now| then.change(now)) else { continue };
            if said(split) {
                continue;
            }
            let change = format!("the `{split}` pairs: {change}{}", named(experiment, &self.origins));
            let asked_for = if dataset.files(split).is_empty() { other_field } else { other_place };
            if !asked_for {
                return Err(Error::new(format!("the data are not those that `{}` was made with", file.display()))
                    .because(Error::new(change))
                    .hint("put the run's data back, or name the data to use with `--dataset`"));
            }
            changes.push(change);
        }
        Ok(changes)
    }

    /// Checks that every path of the data set exists.
    ///
    /// # Errors
    /// Fails if a path does not exist. The error names the field, its value and its origin.
    pub fn check_data_paths(&self, experiment: &Experiment, registry: &Registry) -> Result<()> {
        for field in in_section(Kind::Dataset, &experiment.dataset.name, registry) {
            let values = match experiment.dataset.config.get(&field) {
                Some(Value::String(one)) => vec![one.as_str()],
                Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
                _ => continue,
            };
            let Some(missing) = values.into_iter().find(|v| !v.is_empty() && *v != STDIN && !Path::new(v).exists()) else { continue };
            let path = format!("dataset.{field}");
            let origin = self.origins.get(&path);
            let said = origin.map_or_else(String::new, |origin| format!(" ({origin})"));
            let e = Error::new(format!("`{path}` is `{missing}`{said}, where there is no file or folder"));
            return Err(match self.record(&path) {
                Some((_, record)) => e.hint(format!("the run was made in `{}`; name the data with `--dataset`, or move them along", record.folder.display())),
                None if is_relative(missing) => e.hint(from_here()),
                None => e,
            });
        }
        Ok(())
    }
}

/// The paths of the data set, for a message.
fn named(experiment: &Experiment, origins: &Origins) -> String {
    let values = experiment.dataset.config.iter().filter_map(|(field, value)| Some((field, value.as_str().filter(|v| Path::new(v).exists())?)));
    let said = |field: &str| origins.get(&format!("dataset.{field}")).map_or_else(String::new, |origin| format!(" ({origin})"));
    values.map(|(field, value)| format!("; `dataset.{field}` is `{value}`{}", said(field))).collect()
}

fn from_here() -> String {
    let here = std::env::current_dir().map_or_else(|_| ".".to_owned(), |here| here.display().to_string());
    format!("a relative path begins at the folder that the command runs in, which is `{here}`")
}

fn is_relative(value: &str) -> bool {
    Path::new(value).is_relative()
}

/// The fields of a plugin that hold paths: those whose schema has the format `path`, the one that `--dataset FILE` fills, and
/// the one that `--data-dir` fills.
fn in_section(kind: Kind, name: &str, registry: &Registry) -> Vec<String> {
    let Ok(entry) = registry.get(kind, name) else { return Vec::new() };
    let argument = DatasetEntry::of_entry(entry).filter(|data| !data.extensions.is_empty()).and_then(|data| data.argument);
    let all = fields::plugin_fields(entry.about()).unwrap_or_default();
    let is_path = |f: &fields::Field| f.path || Some(f.name.as_str()) == argument || (kind == Kind::Dataset && f.name == DATA_DIR);
    all.into_iter().filter(is_path).map(|f| f.name).collect()
}

/// Applies `change` to every path of an experiment.
fn map_paths(experiment: &mut Experiment, registry: &Registry, change: &dyn Fn(&str) -> String) {
    let owned = |path: &Path| PathBuf::from(change(&path.to_string_lossy()));
    if Path::new(&experiment.model).exists() {
        experiment.model = change(&experiment.model);
    }
    if let Some(path) = experiment.init_adapter.as_mut().filter(|path| path.exists()) {
        *path = owned(path);
    }
    for path in [&mut experiment.init_transform, &mut experiment.out].into_iter().flatten() {
        *path = owned(path);
    }
    for plugin in &mut experiment.plugins {
        plugin.path = owned(&plugin.path);
    }
    for kind in Kind::ALL {
        let fields = in_section(kind, &experiment.choice(kind).name, registry);
        let section = match kind {
            Kind::Intervention => &mut experiment.intervention,
            Kind::Adapter => &mut experiment.adapter,
            Kind::Transform => &mut experiment.transform,
            Kind::Tap => &mut experiment.tap,
            Kind::Dataset => &mut experiment.dataset,
        };
        for field in fields {
            let values = match section.config.get_mut(&field) {
                Some(Value::Array(list)) => list.as_mut_slice(),
                Some(value) => std::slice::from_mut(value),
                None => continue,
            };
            for value in values {
                if let Value::String(text) = value
                    && !text.is_empty()
                    && text.as_str() != STDIN
                {
                    *text = change(text);
                }
            }
        }
    }
}

/// The text of the `config.toml` that a run in `folder` keeps.
pub(crate) fn recorded(experiment: &Experiment, folder: &Path, record: &Record, registry: &Registry) -> String {
    let mut experiment = experiment.clone();
    let (run, here) = (physical(folder), std::env::current_dir().unwrap_or_default());
    map_paths(&mut experiment, registry, &|path| stored(Path::new(path), &run, &here));
    let mut json = experiment.to_json();
    json[SECTION] = serde_json::to_value(record).unwrap_or_default();
    let text = written::toml(&json, &Origins::default());
    let explains = "# Written by `reprpo run`. Relative paths in this file begin at its folder. The model and the data
# that they lead to are compared with these fingerprints.";
    text.replace(&format!("\n[{SECTION}]\n"), &format!("\n{explains}\n[{SECTION}]\n"))
}

/// The experiment with every path made absolute, for a comparison.
pub(crate) fn comparable(experiment: &Experiment, registry: &Registry) -> Experiment {
    let mut experiment = experiment.clone();
    map_paths(&mut experiment, registry, &|path| physical(Path::new(path)).to_string_lossy().into_owned());
    experiment
}

/// A path as the run in the folder `run` keeps it. It is relative if both lie below the folder that the command ran in, or
/// if the path lies below the folder that holds the run, and otherwise absolute.
fn stored(path: &Path, run: &Path, here: &Path) -> String {
    let target = at_place(path);
    let shared = |tree: &Path| tree.parent().is_some() && run.starts_with(tree) && target.starts_with(tree);
    if !(shared(here) || run.parent().is_some_and(shared)) {
        return absolute(path).to_string_lossy().into_owned();
    }
    relative(&target, run)
}

/// The relative path from `folder` to `target`, which are both absolute. It begins with `.` or `..`, so that it cannot be
/// taken for a name.
fn relative(target: &Path, folder: &Path) -> String {
    let (target, folder): (Vec<_>, Vec<_>) = (target.components().collect(), folder.components().collect());
    let same = target.iter().zip(&folder).take_while(|(a, b)| a == b).count();
    let up = folder.len() - same;
    let mut path = PathBuf::from(if up == 0 { "." } else { "" });
    path.extend((0..up).map(|_| ".."));
    path.extend(&target[same..]);
    path.to_string_lossy().into_owned()
}

/// An absolute path with its symbolic links resolved, except in its last part, which may be a link on purpose.
fn at_place(path: &Path) -> PathBuf {
    let path = absolute(path);
    match (path.parent().and_then(|parent| parent.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.canonicalize().unwrap_or_else(|_| lexical(&path)),
    }
}

/// An absolute path with all its symbolic links resolved.
fn physical(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    path.canonicalize().unwrap_or_else(|_| lexical(&absolute(path)))
}

/// An absolute path with its symbolic links kept.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A path without `.` and `..`. It only looks at the text of the path, not at the file system.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !matches!(out.components().next_back(), None | Some(Component::ParentDir)) {
                    out.pop();
                }
            }
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_tree_of_the_run_is_kept_relative_and_any_other_absolute() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let tree = root.join("tree");
        for folder in ["tree/runs/a", "tree/models/x", "other"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let run = tree.join("runs/a");
        let of = |path: &str, here: &Path| stored(&root.join(path), &run, here);
        assert_eq!(of("tree/models/x", &tree), "../../models/x");
        assert_eq!(of("tree/models/../models/x", &tree), "../../models/x");
        assert_eq!(of("tree/runs/pairs.jsonl", Path::new("/")), "../pairs.jsonl", "beside the run");
        assert_eq!(of("tree/runs/a/x", Path::new("/")), "./x");
        assert_eq!(of("tree/runs/a", &tree), ".");
        assert_eq!(of("other/y", &tree), root.join("other/y").to_string_lossy());
        assert_eq!(of("tree/models/x", Path::new("/")), tree.join("models/x").to_string_lossy(), "the root is in every tree");
        assert_eq!(of("tree/models/x", &root.join("other")), tree.join("models/x").to_string_lossy());
    }

    #[test]
    fn a_record_that_no_run_wrote_is_refused() {
        let table = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
        for text in ["record = 3", "[record]\nfolder = \"x\"", "[record]\nmodel = 1"] {
            let e = Record::take(&mut table(text), Path::new("a/config.toml")).unwrap_err();
            assert!(format!("{e:?}").starts_with("`record` in `a/config.toml` is not what a run writes"), "{e:?}");
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
        let record = Record { folder: root.join("old/runs/a"), model: fingerprint::of_pairs(&[]), data: BTreeMap::new() };
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
