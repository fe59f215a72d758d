//! The results of a validation, as written to `metrics.jsonl` and to the log.

use serde_json::{Map, Value, json};

use super::step::LEFT_OUT;
use crate::train::LeftOut;

/// The results of one validation on the held-out pairs. The names in `metrics.jsonl` are the same
/// as in TRL, including the prefix `eval_`.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationRecord {
    /// Number of finished steps.
    pub step: usize,
    /// Number of epochs completed before this validation, e.g. 1.5 halfway through the second
    /// epoch.
    pub epoch: f64,
    /// The method's mean loss without dropout; `None` if all pairs were left out. A loss that
    /// depends on the step is computed as in the run's last step.
    pub loss: Option<f64>,
    /// Fraction of pairs whose chosen completion has the higher score. A tie counts one half.
    pub accuracy: f64,
    /// Mean increase of log p(chosen) − log p(rejected) since the start of training, in nats;
    /// `None` if no pair has finite scores.
    pub margin: Option<f64>,
    /// Mean log σ of the score difference on the held-out pairs, in nats; `None` if a score is not
    /// finite. See `mean_log_sigmoid` in `eval::statistics`.
    pub log_sigmoid: Option<f64>,
    /// Name and value of each metric, averaged over the pairs. The method's own metrics come first,
    /// followed by those that all methods have.
    pub metrics: Vec<(String, f64)>,
    /// The pairs left out of the loss; `None` if the method never leaves out pairs.
    pub left_out: Option<LeftOut>,
    /// True if this validation is better than all earlier ones.
    pub best: bool,
    /// True if training ends after this validation.
    pub last: bool,
}

impl ValidationRecord {
    /// Returns the line for `metrics.jsonl`. Numbers that are missing or not finite are null.
    pub fn to_json(&self) -> Value {
        let mut line = Map::new();
        line.insert("step".to_owned(), json!(self.step));
        line.insert("epoch".to_owned(), json!(self.epoch));
        for (name, value) in [
            ("loss", self.loss),
            ("accuracy", Some(self.accuracy)),
            ("margin", self.margin),
            ("log_sigmoid", self.log_sigmoid),
        ] {
            line.insert(format!("eval_{name}"), json!(value));
        }
        for (name, value) in &self.metrics {
            // `or_insert` keeps a field above if a metric of the method has the same name.
            line.entry(format!("eval_{name}")).or_insert(json!(value));
        }
        if let Some(left_out) = &self.left_out {
            line.insert(format!("eval_{LEFT_OUT}"), json!(left_out.pairs));
        }
        Value::Object(line)
    }

    /// Returns the line for the log.
    pub fn to_text(&self) -> String {
        let loss = self.loss.map_or_else(|| "no loss".to_owned(), |loss| format!("loss {loss:.4}"));
        let margin = self.margin.map_or_else(
            || "margin gain undefined".to_owned(),
            |margin| format!("margin gain {margin:+.3} nats"),
        );
        let best = if self.best { ", the best so far" } else { "" };
        format!(
            "validation after step {}: {loss}, accuracy {:.3}, {margin}{best}",
            self.step, self.accuracy
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_uses_the_metric_names_of_trl() {
        let record = ValidationRecord {
            step: 20,
            epoch: 0.5,
            loss: Some(0.625),
            accuracy: 0.75,
            margin: Some(-1.5),
            log_sigmoid: Some(-0.5),
            metrics: vec![
                ("rewards/margins".to_owned(), 0.25),
                ("accuracy".to_owned(), 9.0),
                ("logps/chosen".to_owned(), f64::NAN),
            ],
            left_out: Some(LeftOut { pairs: 2, lacking: "no preference direction" }),
            best: true,
            last: false,
        };
        let line = r#"{"step":20,"epoch":0.5,"eval_loss":0.625,"eval_accuracy":0.75,"eval_margin":-1.5,"eval_log_sigmoid":-0.5,"eval_rewards/margins":0.25,"eval_logps/chosen":null,"eval_pairs_left_out":2}"#;
        assert_eq!(record.to_json().to_string(), line);
        assert_eq!(
            record.to_text(),
            "validation after step 20: loss 0.6250, accuracy 0.750, margin gain -1.500 nats, the \
                best so far"
        );
        let without = ValidationRecord { loss: None, margin: None, best: false, ..record };
        assert_eq!(
            without.to_text(),
            "validation after step 20: no loss, accuracy 0.750, margin gain undefined"
        );
    }
}
