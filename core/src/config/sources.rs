//! The origins of an experiment's values. A model or data set from an earlier run is checked
//! against the fingerprints of the run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::path_fields::{STDIN, in_section};
use super::{Choice, Origin, Origins, Record};
use crate::api::Dataset;
use crate::error::{Error, Result};
use crate::fingerprint::{self, Fingerprint};
use crate::registry::{Kind, Registry};

/// The origin of each value of an experiment, and the records of all runs that provided values.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    origins: Origins,
    records: BTreeMap<PathBuf, Record>,
}

/// All `Sources` are equal, so that a comparison of experiments ignores the origins of their
/// values.
impl PartialEq for Sources {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Sources {
    pub(super) fn new(origins: Origins, records: BTreeMap<PathBuf, Record>) -> Self {
        Self { origins, records }
    }

    /// The origin of a field's value; `None` if it is not known.
    pub fn origin(&self, field: &str) -> Option<&Origin> {
        self.origins.get(field)
    }

    /// Drops the records, for callers that check the model and the data themselves.
    pub(crate) fn forget_records(&mut self) {
        self.records.clear();
    }

    /// If the value of `field` came from an earlier run, returns the run's configuration file and
    /// its record.
    fn record(&self, field: &str) -> Option<(&Path, &Record)> {
        match self.origins.get(field) {
            Some(Origin::File(file)) => {
                self.records.get(file).map(|record| (file.as_path(), record))
            }
            _ => None,
        }
    }

    /// Adds the field, its value and the origin of the value to an error about the value.
    pub fn explain(&self, field: &str, value: &str, e: Error) -> Error {
        match self.origins.get(field) {
            None | Some(Origin::Default) => e,
            Some(origin) => {
                let e = e.within(format!(
                    "`{field}` is `{value}` ({origin}), but this value cannot be used"
                ));
                match (origin, self.record(field)) {
                    (Origin::File(_), None) if is_relative(value) => e.hint(current_folder_hint()),
                    _ => e,
                }
            }
        }
    }

    /// Checks the loaded model against the fingerprint that an earlier run recorded. Does nothing
    /// if the setting `model` does not come from a run.
    ///
    /// # Errors
    /// Fails if the fingerprints differ.
    pub fn check_model(&self, model: &str, found: &Fingerprint) -> Result<()> {
        let Some((file, record)) = self.record("model") else { return Ok(()) };
        let Some(change) = record.model.change(found) else { return Ok(()) };
        Err(Error::new(format!(
            "the model at `{model}` does not match the fingerprint in `{}`",
            file.display()
        ))
        .because(Error::new(format!("the model: {change}")))
        .hint("restore the run's model, or choose a different model with `--model`"))
    }

    /// Compares the loaded data with the fingerprints of an earlier run, and describes each
    /// difference. Returns an empty list if the data set does not come from a run.
    ///
    /// # Errors
    /// Fails if the data differs although the user did not choose different data.
    pub fn check_data(
        &self,
        chosen: &Choice,
        dataset: &dyn Dataset,
        registry: &Registry,
    ) -> Result<Vec<String>> {
        let Some((file, record)) = self.record("dataset.name") else { return Ok(Vec::new()) };
        let is_given = |field: &str| {
            let origin = self.origins.get(&format!("dataset.{field}"));
            !matches!(origin, None | Some(Origin::Default | Origin::Plugin(_)))
                && origin != Some(&Origin::File(file.to_owned()))
        };
        // If the data set reads files, a difference is only expected if the user set a path. Other
        // fields do not change the fingerprint of the files.
        let mut path_fields = in_section(Kind::Dataset, &chosen.name, registry);
        path_fields.extend(
            registry.dataset(&chosen.name).ok().and_then(|data| data.argument).map(str::to_owned),
        );
        let path_is_given = path_fields.iter().any(|field| is_given(field));
        let field_is_given = chosen.config.keys().any(|field| is_given(field));
        let found = fingerprint::of_splits(dataset);
        let mut changes = Vec::new();
        for (split, then) in &record.data {
            let Some(change) = found.get(split).and_then(|now| then.change(now)) else { continue };
            if is_given(split) {
                continue;
            }
            let change = format!("the `{split}` pairs: {change}{}", named(chosen, &self.origins));
            let intended =
                if dataset.files(split).is_empty() { field_is_given } else { path_is_given };
            if !intended {
                return Err(Error::new(format!(
                    "the data does not match the fingerprint in `{}`",
                    file.display()
                ))
                .because(Error::new(change))
                .hint("restore the run's data, or choose different data with `--dataset`"));
            }
            changes.push(change);
        }
        Ok(changes)
    }

    /// Checks that every path of the data set exists.
    ///
    /// # Errors
    /// Fails if a path does not exist. The error names the field, its value and its origin.
    pub fn check_data_paths(&self, chosen: &Choice, registry: &Registry) -> Result<()> {
        for field in in_section(Kind::Dataset, &chosen.name, registry) {
            let values = match chosen.config.get(&field) {
                Some(Value::String(one)) => vec![one.as_str()],
                Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
                _ => continue,
            };
            let Some(missing) =
                values.into_iter().find(|v| !v.is_empty() && *v != STDIN && !Path::new(v).exists())
            else {
                continue;
            };
            let path = format!("dataset.{field}");
            let origin = self.origins.get(&path);
            let from = origin.map_or_else(String::new, |origin| format!(" ({origin})"));
            let e =
                Error::new(format!("`{path}` is `{missing}`{from}, but this path does not exist"));
            return Err(match self.record(&path) {
                Some((_, record)) => e.hint(format!(
                    "choose the data with `--dataset`, or copy it to the same location relative to \
                        the run, which was made in `{}`",
                    record.folder.display()
                )),
                None if is_relative(missing) => e.hint(current_folder_hint()),
                None => e,
            });
        }
        Ok(())
    }
}

/// Lists the fields of the data set that contain existing paths, with the origin of each path. The
/// list is appended to a message.
fn named(chosen: &Choice, origins: &Origins) -> String {
    let values = chosen.config.iter().filter_map(|(field, value)| {
        Some((field, value.as_str().filter(|v| Path::new(v).exists())?))
    });
    let from = |field: &str| {
        origins
            .get(&format!("dataset.{field}"))
            .map_or_else(String::new, |origin| format!(" ({origin})"))
    };
    values
        .map(|(field, value)| format!("; `dataset.{field}` is `{value}`{}", from(field)))
        .collect()
}

fn current_folder_hint() -> String {
    let here =
        std::env::current_dir().map_or_else(|_| ".".to_owned(), |here| here.display().to_string());
    format!("relative paths are resolved against the current folder, which is `{here}`")
}

fn is_relative(value: &str) -> bool {
    Path::new(value).is_relative()
}
