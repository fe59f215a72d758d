//! The paths in an experiment: how a run stores them, and how they are compared.
//!
//! Relative paths from the user are resolved against the current folder. A run stores a path
//! relative to its own folder if the path and the run are in the same folder tree. Otherwise, it
//! stores an absolute path. Stored paths therefore remain valid if the current folder changes or if
//! the whole tree is moved.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::path_fields::{STDIN, in_section};
use super::place::{physical, stored};
use super::record::SECTION;
use super::{Experiment, Origins, Record, data_source, toml_text};
use crate::registry::{Kind, Registry};

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
    data_source::map_paths(&mut experiment.eval.shifts, change);
    if let Some(suite) = experiment.eval.suite.as_mut().filter(|text| Path::new(text).exists()) {
        *suite = change(suite);
    }
    for plugin in &mut experiment.plugins {
        plugin.path = owned(&plugin.path);
    }
    for kind in Kind::ALL {
        let fields = in_section(kind, &experiment.choice(kind).name, registry);
        let section = experiment.choice_mut(kind);
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

/// The contents of `config.toml` for a run in `folder`.
pub(crate) fn recorded(
    experiment: &Experiment,
    folder: &Path,
    record: &Record,
    registry: &Registry,
) -> String {
    let mut experiment = experiment.clone();
    let (run, here) = (physical(folder), std::env::current_dir().unwrap_or_default());
    map_paths(&mut experiment, registry, &|path| stored(Path::new(path), &run, &here));
    let mut json = experiment.to_json();
    json[SECTION] = serde_json::to_value(record).unwrap_or_default();
    let text = toml_text::write(&json, &Origins::default());
    let explains = "# Written by `reprpo run`. Relative paths in this file are resolved against \
        its folder.
# The model and the data that are found there are compared with these fingerprints.";
    text.replace(&format!("\n[{SECTION}]\n"), &format!("\n{explains}\n[{SECTION}]\n"))
}

/// The experiment with absolute paths and without symbolic links, for comparisons.
pub(crate) fn comparable(experiment: &Experiment, registry: &Registry) -> Experiment {
    let mut experiment = experiment.clone();
    map_paths(&mut experiment, registry, &|path| {
        physical(Path::new(path)).to_string_lossy().into_owned()
    });
    experiment
}
