//! The record of a training step.

use serde_json::{Map, Value, json};

use crate::train::LeftOut;

/// Name of the metric that counts the pairs left out of a step's loss.
pub const LEFT_OUT: &str = "pairs_left_out";

/// The metrics of one optimiser step, with the same names as in TRL.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: usize,
    /// Total number of steps in the run.
    pub steps: usize,
    /// Number of epochs up to this step, which may be fractional.
    pub epoch: f64,
    /// Mean loss over the pairs that were not left out.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Number of tokens trained on so far. The prompt of a pair counts twice, once per completion.
    pub num_tokens: usize,
    /// Name and value of each metric, averaged over the pairs of the step. The method's own metrics
    /// come first, then the metrics that all methods have.
    pub metrics: Vec<(String, f64)>,
    /// The pairs left out of the loss; `None` if the method never leaves out pairs.
    pub left_out: Option<LeftOut>,
    /// Mean number of pairs per second since this process started training.
    pub pairs_per_second: f64,
}

impl StepRecord {
    /// Returns the metric with this name.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// Returns the step's line in `metrics.jsonl`. The line omits the speed, so that a repeated run
    /// on the same machine writes the same bytes.
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
