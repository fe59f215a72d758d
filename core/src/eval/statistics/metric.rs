//! A number of the evaluation table, with its confidence interval.

use serde::{Deserialize, Serialize};

use crate::statistics::{Estimate, Interval, NoInterval};

/// A metric with its 95 % confidence interval.
///
/// The interval is over clusters of pairs. It treats the training as fixed, because a run has one
/// seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The metric over all pairs.
    pub value: f64,
    /// Lower end of the interval; `None` if there is no interval.
    pub low: Option<f64>,
    /// Upper end of the interval; `None` if there is no interval.
    pub high: Option<f64>,
    /// The reason why there is no interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_interval: Option<NoInterval>,
}

impl Metric {
    /// Returns the mean and the interval of `estimate`.
    pub fn of(estimate: &Estimate) -> Self {
        let bounds = estimate.bounds();
        let no_interval = match estimate.interval {
            Interval::Absent(reason) => Some(reason),
            Interval::Given { .. } => None,
        };
        Self {
            value: estimate.mean,
            low: bounds.map(|b| b.low),
            high: bounds.map(|b| b.high),
            no_interval,
        }
    }

    /// Applies an increasing function to the value and to both ends of the interval.
    #[must_use]
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { value: f(self.value), low: self.low.map(&f), high: self.high.map(&f), ..self }
    }

    /// The negative of the metric.
    #[must_use]
    pub fn negated(self) -> Self {
        let [low, high] = [self.high, self.low].map(|end| end.map(|end| -end));
        Self { value: -self.value, low, high, ..self }
    }

    /// The two ends of the interval, if there is one.
    pub fn interval(&self) -> Option<(f64, f64)> {
        self.low.zip(self.high)
    }
}
