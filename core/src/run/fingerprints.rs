//! The fingerprints of a run's inputs. Before a run is resumed, they are compared with the
//! fingerprints in the checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Kind;

use crate::api::Statistics;
use crate::config::{Experiment, changed_fields, flat, shown};
use crate::error::{Context, Error, Result};
use crate::files::write_whole;
use crate::fingerprint::{Fingerprint, Parts, of_pairs, of_tensors, together};
use crate::text::TokenPair;
use crate::weights::type_name;

/// Fields of the experiment that are not compared. They do not change the training steps, or their
/// content has a separate fingerprint. New fields are compared by default.
const NOT_COMPARED: [&str; 12] = [
    "recipe",
    "plugins",
    "model",
    "device",
    "quantize_base",
    "shard_base",
    "out",
    "init_adapter",
    "init_transform",
    "dataset",
    "eval",
    "cache",
];
const NOT_COMPARED_IN_TRAIN: [&str; 2] = ["checkpoint_every", "tensorboard"];
/// Fields that only matter if the run has validation.
const VALIDATION: [&str; 5] = [
    "train.validate_every",
    "train.validation_pairs",
    "train.keep_best",
    "train.best_metric",
    "train.patience",
];
/// Fields of the evaluation that also decide how held-out pairs are scored.
const VALIDATION_IN_EVAL: [&str; 2] = ["eval.score", "eval.tokens"];

/// Returns the values of the fields that change the training steps, by name (`section.field`).
/// `paths` are fields whose values are the paths of saved values, which have fingerprints.
fn trajectory(experiment: &Experiment, kind: Kind, paths: &[String]) -> BTreeMap<String, Value> {
    let validates = experiment.train.validate_every.is_some();
    let mut fields = flat(&experiment.to_json(), |path| {
        if VALIDATION.contains(&path) || VALIDATION_IN_EVAL.contains(&path) {
            return validates;
        }
        !(NOT_COMPARED.iter().any(|free| path == *free || path.starts_with(&format!("{free}.")))
            || NOT_COMPARED_IN_TRAIN.iter().any(|f| path == format!("train.{f}"))
            || paths.iter().any(|field| field == path))
    });
    // The precision that `auto` selects depends on the device.
    fields.insert("dtype".to_owned(), type_name(kind).into());
    // The path of a plugin's file does not matter, but its code does.
    let plugins: Vec<Value> =
        experiment.plugins.iter().filter_map(|p| p.sha256.clone()).map(Value::from).collect();
    if !plugins.is_empty() {
        fields.insert("plugins".to_owned(), plugins.into());
    }
    fields
}

/// The fingerprints of all inputs that affect the training steps of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fingerprints {
    data: Fingerprint,
    /// Held-out pairs; `None` if the run has no validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_out: Option<Fingerprint>,
    model: Fingerprint,
    tokenizer: Fingerprint,
    reference: Fingerprint,
    start: Fingerprint,
    /// Statistics of the training data; `None` if the method computes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    statistics: Option<Fingerprint>,
    configuration: BTreeMap<String, Value>,
}

/// Fingerprints of the saved adapters and transforms that a run starts from.
#[derive(Debug)]
pub struct StartFingerprints {
    /// The saved adapter and transforms, if there are any, and the saved adapters that the new
    /// adapter is made of.
    pub start: Vec<Fingerprint>,
    /// Names of the configuration fields with the paths of the adapters that the new adapter is
    /// made of.
    pub paths: Vec<String>,
    /// The adapter of the reference; `None` if the reference is the base model.
    pub reference: Option<Fingerprint>,
    /// The saved adapter that the run starts from, if there is one.
    pub adapter: Option<Fingerprint>,
}

impl Fingerprints {
    /// Computes the fingerprints of the inputs of `experiment`. `kind` is the dtype in which the
    /// model computes. `data` contains the pairs to train on and the held-out pairs.
    pub fn new(
        experiment: &Experiment,
        kind: Kind,
        model: Fingerprint,
        tokenizer: Fingerprint,
        data: [&[TokenPair]; 2],
        start_fingerprints: &StartFingerprints,
    ) -> Self {
        let [pairs, held_out] = data;
        let named = |of: &str| Parts::new(of).describing(of);
        Self {
            data: of_pairs(pairs),
            held_out: Some(held_out).filter(|pairs| !pairs.is_empty()).map(of_pairs),
            model,
            tokenizer,
            reference: start_fingerprints
                .reference
                .clone()
                .unwrap_or_else(|| named("the base model")),
            start: if start_fingerprints.start.is_empty() {
                named("new values")
            } else {
                together("start", &start_fingerprints.start.iter().collect::<Vec<_>>())
            },
            statistics: None,
            configuration: trajectory(experiment, kind, &start_fingerprints.paths),
        }
    }

    /// Adds the statistics of the training data.
    ///
    /// # Errors
    /// Fails if a tensor cannot be read.
    pub fn set_statistics(&mut self, statistics: &Statistics) -> Result<()> {
        let tensors = statistics.iter().map(|(name, t)| (name.clone(), t.shallow_clone()));
        let of = "the statistics";
        self.statistics = Some(of_tensors(of, &Value::Null, &tensors.collect())?);
        Ok(())
    }

    /// Compares the fingerprints of a checkpoint (`self`) with those of the resumed run (`now`).
    /// Returns the name of each field or input that differs, with a description of the difference.
    pub fn differences(&self, now: &Self) -> Vec<(String, String)> {
        let parts = [
            ("the data", &self.data, &now.data),
            ("the model", &self.model, &now.model),
            ("the tokenizer", &self.tokenizer, &now.tokenizer),
            ("the reference", &self.reference, &now.reference),
            ("the initial values", &self.start, &now.start),
        ];
        let parts = parts.into_iter().filter_map(|(name, then, now)| {
            Some((name.to_owned(), format!("{name}: {}", then.change(now)?)))
        });
        // If only one of the two runs has validation, the difference in `train.validate_every` is
        // reported below.
        let held_out = self.held_out.as_ref().zip(now.held_out.as_ref());
        let held_out = held_out.and_then(|(then, now)| {
            Some((
                "the held-out data".to_owned(),
                format!("the held-out data: {}", then.change(now)?),
            ))
        });
        let statistics = self.statistics.as_ref().zip(now.statistics.as_ref());
        let statistics = statistics.and_then(|(then, now)| {
            Some(("the statistics".to_owned(), format!("the statistics: {}", then.change(now)?)))
        });
        let fields = changed_fields(&self.configuration, &now.configuration);
        let fields = fields.into_iter().map(|(path, then, now)| {
            (format!("`{path}`"), format!("`{path}`: {} then, {} now", shown(&then), shown(&now)))
        });
        parts.chain(held_out).chain(statistics).chain(fields).collect()
    }

    /// Reads the fingerprints of a checkpoint. Returns `None` for a checkpoint from an old version
    /// of reprpo that stored no fingerprints.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if its content is not valid.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(path).within(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_str(&text).map(Some).map_err(|e| {
            Error::new(format!("`{}` does not contain valid fingerprints", path.display()))
                .because(e)
        })
    }

    /// Writes the fingerprints as JSON.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::internal(e.to_string()))?;
        write_whole(path, text.as_bytes())
    }
}
