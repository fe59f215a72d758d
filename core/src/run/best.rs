//! Keeps track of the best validation result, and of the number of validations since then.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::BestMetric;
use crate::error::Error;

/// The best validation so far. Checkpoints include it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Number of finished steps at the last validation; 0 before the first validation.
    pub validated: usize,
    /// The validation with the best value; `None` if no validation had a finite value.
    pub best: Option<Validated>,
    /// Number of validations since the best one.
    pub without_improvement: usize,
}

/// The result of one validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// Number of finished steps at this validation.
    pub step: usize,
    /// The value of `train.best_metric`.
    #[serde(serialize_with = "exact", deserialize_with = "from_exact")]
    pub value: f64,
}

impl Best {
    /// Records the metric's `value` at the validation after `step` steps. Returns true if it is
    /// strictly better than all earlier values. A missing or non-finite value is never better.
    pub fn observe(&mut self, metric: BestMetric, step: usize, value: Option<f64>) -> bool {
        self.validated = step;
        let Some(value) = value.filter(|value| value.is_finite()) else {
            self.without_improvement += 1;
            return false;
        };
        let better = self.best.is_none_or(|best| {
            if metric == BestMetric::Loss { value < best.value } else { value > best.value }
        });
        if better {
            (self.best, self.without_improvement) = (Some(Validated { step, value }), 0);
        } else {
            self.without_improvement += 1;
        }
        better
    }

    /// The step of the best validation.
    pub fn step(&self) -> Option<usize> {
        self.best.map(|best| best.step)
    }

    /// True if there have been at least `patience` validations since the best one.
    pub fn exhausted(&self, patience: Option<usize>) -> bool {
        patience.is_some_and(|patience| self.without_improvement >= patience)
    }
}

/// Serialises a number as a string. When `serde_json` writes a number and reads it again, the last
/// bit may change.
fn exact<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:?}"))
}

fn from_exact<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|e| {
        serde::de::Error::custom(Error::new(format!("`{text}` is not a number")).because(e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(metric: BestMetric, values: &[f64]) -> (Best, Vec<bool>) {
        let mut best = Best::default();
        let better = values
            .iter()
            .enumerate()
            .map(|(i, value)| best.observe(metric, 10 * (i + 1), Some(*value)))
            .collect();
        (best, better)
    }

    #[test]
    fn the_earliest_of_equal_best_values_is_kept() {
        let (best, better) = steps(BestMetric::Accuracy, &[0.5, 0.75, 0.75, 0.5]);
        assert_eq!(better, [true, true, false, false]);
        assert_eq!(
            (best.best, best.validated, best.without_improvement),
            (Some(Validated { step: 20, value: 0.75 }), 40, 2)
        );
        assert_eq!(steps(BestMetric::Margin, &[-1.0, -2.0, 3.0]).1, [true, false, true]);
        assert_eq!(steps(BestMetric::Loss, &[0.7, 0.8, 0.6]).1, [true, false, true]);
    }

    #[test]
    fn a_value_that_is_not_finite_is_never_the_best() {
        let (best, better) = steps(BestMetric::Margin, &[f64::NAN, f64::INFINITY]);
        assert_eq!((better, best.best, best.without_improvement), (vec![false, false], None, 2));
    }

    #[test]
    fn patience_counts_validations_in_a_row() {
        let (best, _) = steps(BestMetric::Loss, &[1.0, 2.0, 0.5, 0.6]);
        assert!(best.exhausted(Some(1)) && !best.exhausted(Some(2)) && !best.exhausted(None));
    }

    #[test]
    fn a_saved_value_is_read_back_to_the_last_bit() {
        for value in [0.1 + 0.2, 1.0 / 3.0, -1e-300, 5e-324, 123_456_789.123_456_78] {
            let best = Best {
                validated: 3,
                best: Some(Validated { step: 2, value }),
                without_improvement: 1,
            };
            let read: Best = serde_json::from_str(&serde_json::to_string(&best).unwrap()).unwrap();
            assert_eq!(read, best);
        }
    }
}
