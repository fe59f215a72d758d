//! A finished run, read from its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::pairs::{self, ScoredSplit};
use super::states::StatesRecord;
use super::steps::{self, StepLine, ValidationLine};
use crate::config::{Score, flat};
use crate::error::{Context, Error, Result};
use crate::eval::SampleCompletions;

/// A finished run.
#[derive(Clone, Debug)]
pub struct RecordedRun {
    /// Folder of the run.
    pub folder: PathBuf,
    /// The fields of the configuration, e.g. `train.lr`.
    pub config: BTreeMap<String, Value>,
    /// The configuration as it is in `config.toml`.
    pub toml: String,
    /// Seed of the training.
    pub seed: u64,
    /// Digest of the model; `None` if the run did not record it.
    pub model: Option<String>,
    /// Digests of the data, by split.
    pub data: BTreeMap<String, String>,
    /// Title of the run's table.
    pub title: String,
    /// The scored splits, from in-distribution to unrelated data.
    pub splits: Vec<ScoredSplit>,
    /// The training steps.
    pub steps: Vec<StepLine>,
    /// The validations.
    pub validations: Vec<ValidationLine>,
    /// Sample completions, if there are any.
    pub completions: Option<SampleCompletions>,
    /// The motion of the states, if it was recorded.
    pub states: Option<StatesRecord>,
}

impl RecordedRun {
    /// Reads a run from its folder.
    ///
    /// # Errors
    /// Fails if the run is not finished or was not evaluated, or if a file is damaged. The message
    /// is a reason that can follow the name of the folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let config = folder.join("config.toml");
        if !config.is_file() {
            return Err(Error::new("there is no `config.toml`"));
        }
        if !folder.join("adapter").join("adapter_config.json").is_file() {
            return Err(Error::new("the training is not complete"));
        }
        let summary = folder.join("eval").join("summary.json");
        if !summary.is_file() {
            return Err(Error::new("the run has not been evaluated"));
        }
        let toml = std::fs::read_to_string(&config)
            .within(|| format!("cannot read `{}`", config.display()))?;
        let wrong = |path: &Path| format!("`{}` is damaged", path.display());
        let mut table: toml::Table = toml::from_str(&toml)
            .map_err(|e: toml::de::Error| Error::new(wrong(&config)).because(e))?;
        let record = table.remove("record").map(json).transpose()?.unwrap_or_default();
        let config = flat(&json(toml::Value::Table(table))?, |_| true);
        let text = std::fs::read_to_string(&summary)
            .within(|| format!("cannot read `{}`", summary.display()))?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| Error::new(wrong(&summary)).because(e))?;
        let describe = json["splits"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|s| Some((s["split"].as_str()?.to_owned(), s["data"].as_str()?.to_owned())))
            .collect();
        let (steps, validations) = steps::read(folder)?;
        let digest = |v: &Value| v["sha256"].as_str().map(str::to_owned);
        Ok(Self {
            folder: folder.to_owned(),
            seed: config.get("train.seed").and_then(Value::as_u64).unwrap_or_default(),
            model: digest(&record["model"]),
            data: record["data"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(split, v)| Some((split.clone(), digest(v)?)))
                .collect(),
            title: json["title"].as_str().unwrap_or_default().to_owned(),
            splits: pairs::read(folder, &describe)?,
            steps,
            validations,
            // Only people read the completions, so an unknown format is not an error.
            completions: serde_json::from_value(json["completions"].clone()).ok().flatten(),
            states: StatesRecord::read(folder)?,
            config,
            toml,
        })
    }

    /// The last component of the folder's path.
    pub fn name(&self) -> String {
        let name = self.folder.file_name().map(|n| n.to_string_lossy().into_owned());
        name.unwrap_or_else(|| self.folder.display().to_string())
    }

    /// A field of the configuration as text, without quotes.
    pub fn field(&self, path: &str) -> Option<String> {
        self.config.get(path).map(plain)
    }

    /// The score by which completions are compared.
    pub fn score(&self) -> Score {
        match self.field("eval.score").as_deref() {
            Some("sum") => Score::Sum,
            _ => Score::Mean,
        }
    }

    /// The peak learning rate.
    pub fn learning_rate(&self) -> Option<f64> {
        self.config.get("train.lr").and_then(Value::as_f64)
    }

    /// Returns the split with this name.
    pub fn split(&self, name: &str) -> Option<&ScoredSplit> {
        self.splits.iter().find(|s| s.name == name)
    }

    /// The parts of the method: the intervention, and the transform and the adapter unless they are
    /// `none`. A run without training has no adapter.
    pub fn method_parts(&self) -> Vec<String> {
        let intervention = self.field("intervention.name").unwrap_or_default();
        if intervention == "none" {
            return vec![intervention];
        }
        let others = ["transform.name", "adapter.name"].iter().filter_map(|f| self.field(f));
        std::iter::once(intervention).chain(others.filter(|name| name != "none")).collect()
    }

    /// Mean loss on the held-out pairs at the last validation.
    pub fn last_validation_loss(&self) -> Option<f64> {
        self.validations.last()?.values.get("loss").copied()
    }
}

/// Converts a TOML value to JSON.
fn json(value: toml::Value) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::new("`config.toml` is damaged").because(e))
}

/// Formats a value of a field without quotes, and small numbers as in `1e-4`.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => match n.as_f64() {
            Some(v) if v != 0.0 && v.abs() < 0.01 => format!("{v:e}"),
            Some(v) => v.to_string(),
            None => n.to_string(),
        },
        other => other.to_string(),
    }
}
