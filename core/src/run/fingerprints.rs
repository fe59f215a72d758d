//! The fingerprints of a run, with which its checkpoints are compared before it is resumed.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Kind;

use crate::config::{Experiment, changed_fields, flat, shown};
use crate::error::{Context, Error, Result};
use crate::files::write_whole;
use crate::fingerprint::{Fingerprint, Parts, of_pairs, together};
use crate::text::TokenPair;
use crate::weights::type_name;

/// Fields of the experiment that do not change the steps of a run, or whose content has a
/// fingerprint of its own. Every other field counts, including those that are added later.
const FREE: [&str; 9] = [
    "recipe",
    "plugins",
    "model",
    "device",
    "out",
    "init_adapter",
    "init_transform",
    "dataset",
    "eval",
];
const FREE_IN_TRAIN: [&str; 1] = ["checkpoint_every"];
/// Fields that only a run with validations reads. Those of the evaluation decide how the held-out
/// pairs are scored.
const VALIDATION: [&str; 5] = [
    "train.validate_every",
    "train.validation_pairs",
    "train.keep_best",
    "train.best_metric",
    "train.patience",
];
const VALIDATION_IN_EVAL: [&str; 2] = ["eval.score", "eval.tokens"];

/// The fields that every step depends on, as `section.field`.
fn trajectory(experiment: &Experiment, kind: Kind) -> BTreeMap<String, Value> {
    let validates = experiment.train.validate_every.is_some();
    let mut fields = flat(&experiment.to_json(), |path| {
        if VALIDATION.contains(&path) || VALIDATION_IN_EVAL.contains(&path) {
            return validates;
        }
        !(FREE.iter().any(|free| path == *free || path.starts_with(&format!("{free}.")))
            || FREE_IN_TRAIN.iter().any(|f| path == format!("train.{f}")))
    });
    // `auto` means another precision on another device.
    fields.insert("dtype".to_owned(), type_name(kind).into());
    // The path of a plugin's file changes nothing, but its code does.
    let plugins: Vec<Value> =
        experiment.plugins.iter().filter_map(|p| p.sha256.clone()).map(Value::from).collect();
    if !plugins.is_empty() {
        fields.insert("plugins".to_owned(), plugins.into());
    }
    fields
}

/// The fingerprints of everything that the steps of a run depend on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fingerprints {
    data: Fingerprint,
    /// `None` if the run does not validate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_out: Option<Fingerprint>,
    model: Fingerprint,
    tokenizer: Fingerprint,
    reference: Fingerprint,
    start: Fingerprint,
    configuration: BTreeMap<String, Value>,
}

/// The fingerprints of the saved values that a run begins with, besides the model.
#[derive(Debug)]
pub struct Begins {
    /// The saved adapter and transforms, if there are any.
    pub start: Vec<Fingerprint>,
    /// The adapter that the reference has, if it is not the base model.
    pub reference: Option<Fingerprint>,
}

impl Fingerprints {
    /// The fingerprints of a run of this experiment, whose model computes in `kind`. Its data are
    /// the pairs to train on and those that are held out.
    pub fn new(
        experiment: &Experiment,
        kind: Kind,
        model: Fingerprint,
        tokenizer: Fingerprint,
        data: [&[TokenPair]; 2],
        begins: &Begins,
    ) -> Self {
        let [pairs, held_out] = data;
        let named = |of: &str| Parts::new(of).describing(of);
        Self {
            data: of_pairs(pairs),
            held_out: Some(held_out).filter(|pairs| !pairs.is_empty()).map(of_pairs),
            model,
            tokenizer,
            reference: begins.reference.clone().unwrap_or_else(|| named("the base model")),
            start: if begins.start.is_empty() {
                named("new values")
            } else {
                together("start", &begins.start.iter().collect::<Vec<_>>())
            },
            configuration: trajectory(experiment, kind),
        }
    }

    /// The differences between a checkpoint with these fingerprints and a run with `now`: the name
    /// and the details of each.
    pub fn differences(&self, now: &Self) -> Vec<(String, String)> {
        let parts = [
            ("the data", &self.data, &now.data),
            ("the model", &self.model, &now.model),
            ("the tokenizer", &self.tokenizer, &now.tokenizer),
            ("the reference", &self.reference, &now.reference),
            ("the values that training began with", &self.start, &now.start),
        ];
        let parts = parts.into_iter().filter_map(|(name, then, now)| {
            Some((name.to_owned(), format!("{name}: {}", then.change(now)?)))
        });
        // If only one of the two validates, `train.validate_every` differs.
        let held_out = self.held_out.as_ref().zip(now.held_out.as_ref());
        let held_out = held_out.and_then(|(then, now)| {
            Some((
                "the held-out data".to_owned(),
                format!("the held-out data: {}", then.change(now)?),
            ))
        });
        let fields = changed_fields(&self.configuration, &now.configuration);
        let fields = fields.into_iter().map(|(path, then, now)| {
            (format!("`{path}`"), format!("`{path}`: {} then, {} now", shown(&then), shown(&now)))
        });
        parts.chain(held_out).chain(fields).collect()
    }

    /// A digest of everything that the kept values of the reference depend on besides the tokens of
    /// their pair. Fields that only change how the policy is trained are left out.
    pub fn of_reference(&self) -> String {
        let mut parts = Parts::new("reference values");
        parts.add(self.model.sha256.as_bytes());
        parts.add(self.reference.sha256.as_bytes());
        for (path, value) in self
            .configuration
            .iter()
            .filter(|(path, _)| !path.starts_with("train.") && !path.starts_with("adapter."))
        {
            parts.add(path.as_bytes());
            parts.add(value.to_string().as_bytes());
        }
        parts.hex()
    }

    /// Reads the fingerprints of a checkpoint; `None` if it was written by a version that did not
    /// keep any.
    ///
    /// # Errors
    /// Fails if the file is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(path).within(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_str(&text).map(Some).map_err(|e| {
            Error::new(format!("`{}` does not hold fingerprints", path.display())).because(e)
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
