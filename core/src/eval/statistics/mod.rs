//! Computes the metrics of the evaluation from the scores of pairs, with confidence intervals over
//! clusters of pairs.
//!
//! This module uses neither models nor tensors. Tests can therefore compare every metric with a
//! value computed by hand.

mod best_of;
mod clusters;
mod metric;
mod model_metrics;
mod scores;
mod summary;

pub use best_of::BestOf;
pub use clusters::Clusters;
pub use metric::Metric;
pub use model_metrics::{ModelMetrics, mean_log_sigmoid};
pub use scores::{CompletionScore, PairScore};
pub use summary::{Change, Overlap, SplitSummary};

#[cfg(test)]
mod tests;
