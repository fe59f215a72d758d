//! Reads the objective of a search, and the other results, from the folder of a run.
//!
//! The objective is the mean of log σ(s(y⁺) − s(y⁻)), where s is the score that `eval.score`
//! selects. It is measured on the held-out part of the training data, by the adapter that the run
//! kept.

use std::path::Path;

use serde_json::Value;

use super::plan::SHIFT;
use crate::config::Score;
use crate::error::{Context, Error, Result};
use crate::eval::statistics::{PairScore, SplitSummary, mean_log_sigmoid};

/// Name of the objective.
pub const OBJECTIVE: &str = "mean_log_sigmoid";
/// The objective in `metrics.jsonl`.
const METRIC: &str = "eval_log_sigmoid";

/// The results of a finished run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Mean loss over the first and the last quarter of the steps; `None` without steps.
    pub loss: Option<[f64; 2]>,
    /// The splits of the evaluation.
    pub splits: Vec<SplitSummary>,
}

impl Outcome {
    /// Reads the results of the run in `folder`.
    ///
    /// # Errors
    /// Fails if a file is missing or damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let losses: Vec<f64> =
            metrics(folder)?.iter().filter_map(|line| line["loss"].as_f64()).collect();
        let quarter = losses.len().div_ceil(4);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let loss = (!losses.is_empty())
            .then(|| [mean(&losses[..quarter]), mean(&losses[losses.len() - quarter..])]);
        let summary = folder.join("eval/summary.json");
        let splits = match std::fs::read_to_string(&summary) {
            Ok(text) => serde_json::from_str::<Value>(&text)
                .and_then(|value| serde_json::from_value(value["splits"].clone()))
                .map_err(|e| {
                    Error::new(format!("`{}` is not an evaluation summary", summary.display()))
                        .because(e)
                })?,
            Err(_) => Vec::new(),
        };
        Ok(Self { loss, splits })
    }
}

fn metrics(folder: &Path) -> Result<Vec<Value>> {
    let path = folder.join("metrics.jsonl");
    let text =
        std::fs::read_to_string(&path).within(|| format!("cannot read `{}`", path.display()))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Reads the objective on the held-out pairs from the folder of a finished run. Returns `None` if
/// the run did not validate, or if the objective was not finite.
///
/// # Errors
/// Fails if a file cannot be read.
pub fn on_validation(folder: &Path) -> Result<Option<f64>> {
    let path = folder.join("validation.json");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    let outcome: Value = serde_json::from_str(&text)
        .map_err(|e| Error::new(format!("`{}` is damaged", path.display())).because(e))?;
    // With `train.keep_best`, the adapter is not from the last step.
    let step = outcome["adapter_step"].clone();
    let at_step = |line: &&Value| line["step"] == step && line.get(METRIC).is_some();
    Ok(metrics(folder)?.iter().rfind(at_step).and_then(|line| line[METRIC].as_f64()))
}

/// Computes the objective on the shifted set from the scores of a finished run. Returns `None` if
/// it is not finite.
///
/// # Errors
/// Fails if the run has no scores of the shifted set.
pub fn on_shift(folder: &Path, score: Score) -> Result<Option<f64>> {
    let path = folder.join("eval/pairs.jsonl");
    let text =
        std::fs::read_to_string(&path).within(|| format!("cannot read `{}`", path.display()))?;
    let mut pairs: Vec<PairScore> = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)
            .map_err(|e| Error::new(format!("`{}` is damaged", path.display())).because(e))?;
        // A pair that was dropped has no scores.
        if line["split"] == SHIFT && line["trained"].is_object() {
            // Infinite scores are null in JSON. The objective is then not finite.
            match serde_json::from_value(line["trained"].clone()) {
                Ok(pair) => pairs.push(pair),
                Err(_) => return Ok(None),
            }
        }
    }
    if pairs.is_empty() {
        return Err(Error::new(format!("the run has no scores of the split `{SHIFT}`"))
            .hint(format!("set `dataset.{SHIFT}`, or select by validation")));
    }
    Ok(mean_log_sigmoid(&pairs, score))
}
