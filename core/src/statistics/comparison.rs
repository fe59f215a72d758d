//! Paired comparison of two methods on the same pairs and seeds.

use serde::{Deserialize, Serialize};

use super::estimate::{Estimate, Interval};
use super::table::{Table, TableError};

/// The difference between two methods.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Mean over pairs of the first method's value minus the second method's value, with its 95 %
    /// confidence interval.
    pub difference: Estimate,
    /// Two-sided p value of the hypothesis that the difference is 0. It is below 0.05 if and only
    /// if the interval does not contain 0. `None` if there is no interval.
    pub p: Option<f64>,
}

/// Compares two methods by the difference of their values for each pair and seed.
///
/// # Errors
/// Fails if a pair or a seed only occurs in one table, or if a pair is in different clusters. The
/// error names the pair or the seed.
pub fn compare(first: &Table, second: &Table) -> Result<Comparison, TableError> {
    let difference = Estimate::of(&first.minus(second)?);
    let p = match (difference.interval, difference.components) {
        (Interval::Given { .. }, Some(components)) => Some(components.p_value(difference.mean)),
        _ => None,
    };
    Ok(Comparison { difference, p })
}
