//! Compares a run with its repetition.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::pairs::{self, ScoredSplit};
use super::recorded::RecordedRun;
use super::steps;
use crate::error::{Context, Error, Result};
use crate::run::Environment;

/// The difference between a run and its repetition.
#[derive(Clone, Debug, Serialize)]
pub struct Reproduction {
    /// Folder of the original run.
    pub run: PathBuf,
    /// Folder of the repetition.
    pub repetition: PathBuf,
    /// True if all compared files have the same bytes.
    pub identical: bool,
    /// The compared files, and if they have the same bytes.
    pub files: BTreeMap<String, bool>,
    /// Largest difference of the loss of a step; `None` if the runs have no common step.
    pub loss: Option<f64>,
    /// Largest difference of the log-probability of a completion by the trained model, in nats.
    pub score: Option<f64>,
    /// Difference of the accuracy on each split: repetition − original.
    pub accuracy: BTreeMap<String, f64>,
    /// Differences between the environments; `None` if the original run did not record its own.
    pub environment: Option<Vec<String>>,
}

/// Files with the results of a run, relative to its folder. The configuration is not compared,
/// because it contains the folder.
const FILES: [&str; 2] = ["metrics.jsonl", "eval/pairs.jsonl"];
/// Folders with the trained parameters.
const FOLDERS: [&str; 2] = ["adapter", "transform"];

impl Reproduction {
    /// Compares the run in the folder `run` with the repetition in the folder `repetition`.
    ///
    /// # Errors
    /// Fails if a file cannot be read.
    pub fn between(run: &Path, repetition: &Path) -> Result<Self> {
        let mut names: Vec<String> = FILES.map(str::to_owned).to_vec();
        for folder in FOLDERS {
            for root in [run, repetition] {
                names.extend(weights(&root.join(folder))?.iter().map(|f| format!("{folder}/{f}")));
            }
        }
        names.sort();
        names.dedup();
        let mut files = BTreeMap::new();
        for name in names {
            if let Some(same) = same_bytes(&run.join(&name), &repetition.join(&name))? {
                files.insert(name, same);
            }
        }
        let then = Environment::read(run)?;
        let now = Environment::read(repetition)?;
        let environment = then.zip(now).map(|(then, now)| then.differences(&now));
        let (loss, score, accuracy) =
            (losses(run, repetition)?, scores(run, repetition), accuracies(run, repetition));
        Ok(Self {
            run: run.to_owned(),
            repetition: repetition.to_owned(),
            identical: files.values().all(|same| *same),
            files,
            loss,
            score,
            accuracy,
            environment,
        })
    }

    /// True if no loss and no score differs by more than `tolerance`, and every accuracy is equal.
    pub fn is_within(&self, tolerance: f64) -> bool {
        // NaN is not within a tolerance.
        let within = |v: Option<f64>| v.is_none_or(|v| v <= tolerance);
        self.identical
            || (within(self.loss)
                && within(self.score)
                && self.accuracy.values().all(|v| *v == 0.0)
                && (self.loss.is_some() || self.score.is_some()))
    }

    /// Formats the comparison for a terminal.
    pub fn plain(&self) -> String {
        let mut lines = Vec::new();
        lines.push(if self.identical {
            "identical: all results have the same bytes".to_owned()
        } else {
            "not identical".to_owned()
        });
        for (name, same) in &self.files {
            lines.push(format!("  {name}: {}", if *same { "same bytes" } else { "different" }));
        }
        if !self.identical {
            let show = |v: Option<f64>, unit: &str| {
                v.map_or_else(|| "unknown".to_owned(), |v| format!("{v:.3e}{unit}"))
            };
            lines.push(format!("largest difference of a loss: {}", show(self.loss, "")));
            lines.push(format!("largest difference of a score: {}", show(self.score, " nats")));
            for (split, difference) in &self.accuracy {
                lines.push(format!("difference of the accuracy on {split}: {difference:+.4}"));
            }
        }
        match self.environment.as_deref() {
            None => {
                lines.push("environment: unknown, because the run did not record it".to_owned())
            }
            Some([]) => lines.push("environment: the same".to_owned()),
            Some(differences) => {
                lines.push("environment:".to_owned());
                lines.extend(differences.iter().map(|d| format!("  {d}")));
            }
        }
        lines.join("\n") + "\n"
    }
}

/// Names of the files with tensors in a folder.
fn weights(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries =
        folder.read_dir().within(|| format!("cannot read the folder `{}`", folder.display()))?;
    Ok(entries
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".safetensors"))
        .collect())
}

/// True if both files have the same bytes. `None` if both are missing.
fn same_bytes(a: &Path, b: &Path) -> Result<Option<bool>> {
    if !a.is_file() && !b.is_file() {
        return Ok(None);
    }
    if a.is_file() != b.is_file() {
        return Ok(Some(false));
    }
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|e| Error::new(format!("cannot read `{}`", path.display())).because(e))
    };
    Ok(Some(read(a)? == read(b)?))
}

fn losses(run: &Path, repetition: &Path) -> Result<Option<f64>> {
    let (then, now) = (steps::read(run)?.0, steps::read(repetition)?.0);
    let of: BTreeMap<usize, f64> = now.iter().map(|s| (s.step, s.loss)).collect();
    let differences = then.iter().filter_map(|s| Some(difference(s.loss, *of.get(&s.step)?)));
    Ok(largest(differences))
}

/// Largest difference of a log-probability by the trained model.
fn scores(run: &Path, repetition: &Path) -> Option<f64> {
    let (then, now) = both(run, repetition)?;
    let mut all = Vec::new();
    for split in &then {
        let other = now.iter().find(|s| s.name == split.name)?;
        for pair in &split.pairs {
            let Some(same) = other.pairs.iter().find(|p| p.index() == pair.index()) else {
                continue;
            };
            let (a, b) = (&pair.trained, &same.trained);
            all.push(difference(a.chosen.logp_sum, b.chosen.logp_sum));
            all.push(difference(a.rejected.logp_sum, b.rejected.logp_sum));
        }
    }
    largest(all)
}

/// Differences of the accuracies: repetition − original.
fn accuracies(run: &Path, repetition: &Path) -> BTreeMap<String, f64> {
    let read = |folder: &Path| RecordedRun::read(folder).ok();
    let Some((then, now)) = read(run).zip(read(repetition)) else { return BTreeMap::new() };
    let accuracy = |run: &RecordedRun, split: &str| -> Option<f64> {
        let pairs = &run.split(split)?.pairs;
        let sum: f64 = pairs.iter().map(|p| p.credit(true, run.score())).sum();
        Some(sum / pairs.len() as f64)
    };
    then.splits
        .iter()
        .filter_map(|s| {
            Some((s.name.clone(), accuracy(&now, &s.name)? - accuracy(&then, &s.name)?))
        })
        .collect()
}

fn both(run: &Path, repetition: &Path) -> Option<(Vec<ScoredSplit>, Vec<ScoredSplit>)> {
    let read = |folder: &Path| pairs::read(folder, &BTreeMap::new()).ok();
    read(run).zip(read(repetition))
}

/// The absolute difference; 0 if both values are NaN.
fn difference(a: f64, b: f64) -> f64 {
    if a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() }
}

/// The largest value, or NaN if one is NaN. `None` without values.
fn largest(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    values.into_iter().fold(None, |most: Option<f64>, v| {
        Some(
            most.map_or(v, |most| if v.is_nan() || most.is_nan() { f64::NAN } else { most.max(v) }),
        )
    })
}
