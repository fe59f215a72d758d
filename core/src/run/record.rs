//! The record of a training step, and those who record it.

mod jsonl;
mod log_file;
mod terminal;

use serde_json::{Map, Value, json};

pub use jsonl::JsonLines;
pub use log_file::LogFile;
pub use terminal::Terminal;

use crate::error::Result;
use crate::eval::Evaluation;
use crate::train::LeftOut;

/// Name of the number of pairs of a step that did not count in its loss.
pub const LEFT_OUT: &str = "pairs_left_out";

/// The numbers of one optimiser step. Names are those of TRL.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: usize,
    /// Number of steps that the run takes.
    pub steps: usize,
    /// How many times the data was seen after this step.
    pub epoch: f64,
    /// The loss, a mean over the pairs of the step that count.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens of all pairs seen so far, the prompt of a pair counted twice.
    pub num_tokens: usize,
    /// Means over the pairs of the step, by name: those of the method, then those of the engine.
    pub metrics: Vec<(String, f64)>,
    /// The pairs that did not count in the loss; `None` if the method counts every pair.
    pub left_out: Option<LeftOut>,
    /// Pairs per second since this process began to train.
    pub pairs_per_second: f64,
}

impl StepRecord {
    /// The metric of that name.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// The line of `metrics.jsonl`. It leaves out how fast the step was, so that a run repeated on the same machine writes the
    /// same bytes.
    pub fn to_json(&self) -> Value {
        let mut line = Map::new();
        let mut put = |name: &str, value: Value| line.insert(name.to_owned(), value);
        put("step", json!(self.step));
        put("epoch", json!(self.epoch));
        put("loss", json!(self.loss));
        put("grad_norm", json!(self.grad_norm));
        put("learning_rate", json!(self.learning_rate));
        put("num_tokens", json!(self.num_tokens));
        for (name, value) in &self.metrics {
            put(name, json!(value));
        }
        if let Some(left_out) = &self.left_out {
            put(LEFT_OUT, json!(left_out.pairs));
        }
        Value::Object(line)
    }
}

/// A line of text about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// For everyone who follows the run.
    Message(&'a str),
    /// For those who read the log.
    Detail(&'a str),
}

/// Records a run: one file in this folder for each place where records go.
pub trait Recorder {
    /// The training begins after `first` of `steps` steps.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn begin(&mut self, _first: usize, _steps: usize) -> Result<()> {
        Ok(())
    }

    /// A step is done.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn step(&mut self, _record: &StepRecord) -> Result<()> {
        Ok(())
    }

    /// Something is worth a line of text.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn note(&mut self, _note: Note<'_>) -> Result<()> {
        Ok(())
    }

    /// The result was evaluated.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn evaluation(&mut self, _evaluation: &Evaluation) -> Result<()> {
        Ok(())
    }

    /// The run is over.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// All recorders of a run. A run without recorders leaves no trace.
#[derive(Default)]
pub struct Recorders<'a>(Vec<Box<dyn Recorder + 'a>>);

impl<'a> Recorders<'a> {
    /// Adds a recorder.
    pub fn add(&mut self, recorder: impl Recorder + 'a) {
        self.0.push(Box::new(recorder));
    }

    fn each(&mut self, record: impl Fn(&mut dyn Recorder) -> Result<()>) -> Result<()> {
        self.0.iter_mut().try_for_each(|recorder| record(recorder.as_mut()))
    }

    /// Records a line of text for everyone.
    ///
    /// # Errors
    /// Fails if a recorder fails.
    pub fn message(&mut self, text: &str) -> Result<()> {
        self.note(Note::Message(text))
    }

    /// Records text for the log.
    ///
    /// # Errors
    /// Fails if a recorder fails.
    pub fn detail(&mut self, text: &str) -> Result<()> {
        self.note(Note::Detail(text))
    }
}

impl Recorder for Recorders<'_> {
    fn begin(&mut self, first: usize, steps: usize) -> Result<()> {
        self.each(|r| r.begin(first, steps))
    }

    fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.each(|r| r.step(record))
    }

    fn note(&mut self, note: Note<'_>) -> Result<()> {
        self.each(|r| r.note(note))
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.each(|r| r.evaluation(evaluation))
    }

    fn close(&mut self) -> Result<()> {
        self.each(|r| r.close())
    }
}
