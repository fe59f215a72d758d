//! Estimates, intervals and tests for studies with several clusters of pairs and several seeds.
//!
//! The pairs of a test set are not independent, because many pairs share a prompt. The seeds of a
//! training are not independent of the pairs either, because every seed is evaluated on the same
//! pairs. This module computes intervals for this crossed design, and the metrics that are defined
//! on scored pairs. `docs/statistics.md` describes the method, its assumptions and its limits.
//!
//! The module only computes: it reads no files, prints nothing, and uses neither models nor
//! tensors. All results are deterministic.

mod accuracy;
mod calibration;
mod comparison;
mod elicitation;
mod estimate;
mod holm;
mod interpolation;
mod power;
mod quantiles;
#[cfg(test)]
mod simulation;
mod table;

pub use accuracy::{AccuracyByLength, Lengths, ScoredPair, Share, accuracy_by_length, credit};
pub use calibration::{BINS, Bin, Calibration, MIN_BIN, Prediction, both_orders};
pub use comparison::{Comparison, compare};
pub use elicitation::{differential_elicitation, elicitation};
pub use estimate::{
    Bounds, Components, Estimate, Interval, MIN_EFFECTIVE_CLUSTERS, NoInterval, Scope,
};
pub use holm::{InvalidPValue, holm};
pub use interpolation::{AtTarget, InterpolationError, Point, at_target};
pub use power::{CannotPlan, Plan, smallest_detectable_difference};
pub use table::{Observation, Table, TableError};
