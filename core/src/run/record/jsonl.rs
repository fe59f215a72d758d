//! Writes the run's results in machine-readable form: a JSON line per step and per validation, and
//! the tables and scores of the evaluation.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use super::recorder::Recorder;
use super::step::StepRecord;
use super::validation::ValidationRecord;
use crate::error::{Context, Result};
use crate::eval::Evaluation;

/// Writes `metrics.jsonl` and `eval/`.
#[derive(Debug)]
pub struct JsonLines {
    metrics: File,
    eval: PathBuf,
}

impl JsonLines {
    /// Creates a recorder that appends steps and validations to the open file `metrics`, and writes
    /// the evaluation to the folder `eval`.
    pub fn new(metrics: File, eval: PathBuf) -> Self {
        Self { metrics, eval }
    }
}

impl Recorder for JsonLines {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        writeln!(self.metrics, "{}", record.to_json())
            .within(|| "cannot write `metrics.jsonl`".to_owned())
    }

    fn validation(&mut self, record: &ValidationRecord) -> Result<()> {
        writeln!(self.metrics, "{}", record.to_json())
            .within(|| "cannot write `metrics.jsonl`".to_owned())
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        evaluation.write(&self.eval)
    }
}
