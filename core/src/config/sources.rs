//! The origins of an experiment's values, and the records of the runs that they came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::path_fields::{STDIN, in_section};
use super::{Choice, Origin, Origins, Record};
use crate::api::Dataset;
use crate::error::{Error, Result};
use crate::fingerprint::{self, Fingerprint};
use crate::registry::{Kind, Registry};

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
            Some(Origin::File(file)) => {
                self.records.get(file).map(|record| (file.as_path(), record))
            }
            _ => None,
        }
    }

    /// Adds to an error about the value of `field` where the value came from.
    pub fn explain(&self, field: &str, value: &str, e: Error) -> Error {
        match self.origins.get(field) {
            None | Some(Origin::Default) => e,
            Some(origin) => {
                let e =
                    e.within(format!("`{field}` is `{value}` ({origin}), which cannot be used"));
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
        Err(Error::new(format!(
            "the model at `{model}` is not the one that `{}` was made with",
            file.display()
        ))
        .because(Error::new(format!("the model: {change}")))
        .hint("put the run's model back, or name the one to use with `--model`"))
    }

    /// Compares the data that were found with the record of the run that named them. Gives the
    /// differences that the user asked for by naming other data.
    ///
    /// # Errors
    /// Fails if the run was made with other data.
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
        // A field that only changes how a file's rows are read does not explain why the file
        // changed.
        let mut places = in_section(Kind::Dataset, &chosen.name, registry);
        places.extend(
            registry.dataset(&chosen.name).ok().and_then(|data| data.argument).map(str::to_owned),
        );
        let other_place = places.iter().any(|field| is_given(field));
        let other_field = chosen.config.keys().any(|field| is_given(field));
        let found = fingerprint::of_splits(dataset);
        let mut changes = Vec::new();
        for (split, then) in &record.data {
            let Some(change) = found.get(split).and_then(|now| then.change(now)) else { continue };
            if is_given(split) {
                continue;
            }
            let change = format!("the `{split}` pairs: {change}{}", named(chosen, &self.origins));
            let asked_for = if dataset.files(split).is_empty() { other_field } else { other_place };
            if !asked_for {
                return Err(Error::new(format!(
                    "the data are not those that `{}` was made with",
                    file.display()
                ))
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
            let e = Error::new(format!(
                "`{path}` is `{missing}`{from}, where there is no file or folder"
            ));
            return Err(match self.record(&path) {
                Some((_, record)) => e.hint(format!(
                    "the run was made in `{}`; name the data with `--dataset`, or move them along",
                    record.folder.display()
                )),
                None if is_relative(missing) => e.hint(from_here()),
                None => e,
            });
        }
        Ok(())
    }
}

/// The paths of the data set, for a message.
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

fn from_here() -> String {
    let here =
        std::env::current_dir().map_or_else(|_| ".".to_owned(), |here| here.display().to_string());
    format!("a relative path begins at the folder that the command runs in, which is `{here}`")
}

fn is_relative(value: &str) -> bool {
    Path::new(value).is_relative()
}
