//! The steps and validations of a run, from `metrics.jsonl`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Context, Result};

/// A training step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepLine {
    /// Number of the step, from 1.
    pub step: usize,
    /// Mean loss over the pairs of the step.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
}

/// A validation during training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValidationLine {
    /// Number of finished steps.
    pub step: usize,
    /// The values by name, without the prefix `eval_`. Values that are not finite are omitted.
    pub values: BTreeMap<String, f64>,
}

/// Reads the steps and the validations. Incomplete lines are skipped, because a killed process
/// leaves one.
///
/// # Errors
/// Fails if the file cannot be read.
pub(super) fn read(folder: &Path) -> Result<(Vec<StepLine>, Vec<ValidationLine>)> {
    let path = folder.join("metrics.jsonl");
    let text =
        std::fs::read_to_string(&path).within(|| format!("cannot read `{}`", path.display()))?;
    let (mut steps, mut validations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let Ok(Value::Object(line)) = serde_json::from_str(line) else { continue };
        let Some(step) = line.get("step").and_then(Value::as_u64) else { continue };
        let step = step as usize;
        let number = |name: &str| line.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        if line.contains_key("loss") {
            steps.push(StepLine {
                step,
                loss: number("loss"),
                learning_rate: number("learning_rate"),
            });
            continue;
        }
        let values: BTreeMap<String, f64> = line
            .iter()
            .filter_map(|(name, v)| Some((name.strip_prefix("eval_")?.to_owned(), v.as_f64()?)))
            .collect();
        if !values.is_empty() {
            validations.push(ValidationLine { step, values });
        }
    }
    Ok((steps, validations))
}
