//! The record of a training step.

use serde_json::{Map, Value, json};

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

    /// The line of `metrics.jsonl`. It leaves out how fast the step was, so that a run repeated on
    /// the same machine writes the same bytes.
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
