//! Comparison of methods at the same damage to the text: a metric at a given log perplexity ratio.

use serde::{Deserialize, Serialize};

/// One run of a sweep over learning rates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Learning rate of the run; greater than 0.
    pub learning_rate: f64,
    /// Log perplexity ratio of the run, in nats.
    pub log_ratio: f64,
    /// The metric.
    pub y: f64,
}

/// The metric at the target, or the reason why it is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtTarget {
    /// The metric at the first crossing along increasing learning rates.
    Interpolated {
        /// The interpolated metric.
        y: f64,
        /// The neighbouring learning rates between which the ratio crosses the target. Both are
        /// equal if one run has exactly the target ratio.
        learning_rates: (f64, f64),
        /// Number of crossings. If it is greater than 1, the ratio is not monotone in the learning
        /// rate, and `y` belongs to the first crossing.
        crossings: usize,
    },
    /// All ratios are on the same side of the target. There is no extrapolation.
    NotBracketed {
        /// The smallest ratio.
        min: f64,
        /// The largest ratio.
        max: f64,
    },
}

/// A reason why points cannot be interpolated.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InterpolationError {
    /// There are no points.
    #[error("there are no runs to interpolate")]
    Empty,
    /// A number is infinite or NaN. The field is the position of the point, or `None` for the
    /// target.
    #[error("the numbers of the runs and the target ratio must be finite")]
    NotFinite(Option<usize>),
    /// The learning rate of the point at this position is not greater than the one before it.
    #[error("the learning rates of the runs must increase, but run {0} does not follow this order")]
    Unsorted(usize),
}

/// Computes the metric at the log perplexity ratio `target`, by linear interpolation in the ratio
/// between neighbouring learning rates.
///
/// # Errors
/// Fails if there are no points, if a number is not finite, or if the learning rates do not
/// increase strictly.
pub fn at_target(points: &[Point], target: f64) -> Result<AtTarget, InterpolationError> {
    if points.is_empty() {
        return Err(InterpolationError::Empty);
    }
    if !target.is_finite() {
        return Err(InterpolationError::NotFinite(None));
    }
    let is_finite = |p: &Point| [p.learning_rate, p.log_ratio, p.y].iter().all(|v| v.is_finite());
    if let Some(i) = points.iter().position(|p| !is_finite(p)) {
        return Err(InterpolationError::NotFinite(Some(i)));
    }
    if let Some(i) = points.windows(2).position(|w| w[0].learning_rate >= w[1].learning_rate) {
        return Err(InterpolationError::Unsorted(i + 1));
    }
    let mut crossings = 0;
    let mut first = None;
    for (i, here) in points.iter().enumerate() {
        let before = i.checked_sub(1).map(|j| &points[j]);
        let (y, learning_rates) = if here.log_ratio == target {
            // Consecutive runs with exactly the target ratio are one crossing.
            if before.is_some_and(|b| b.log_ratio == target) {
                continue;
            }
            (here.y, (here.learning_rate, here.learning_rate))
        } else {
            let Some(before) = before else { continue };
            let (a, b) = (before.log_ratio, here.log_ratio);
            if !((a < target && target < b) || (b < target && target < a)) {
                continue;
            }
            let fraction = (target - a) / (b - a);
            let y = before.y + fraction * (here.y - before.y);
            (y, (before.learning_rate, here.learning_rate))
        };
        crossings += 1;
        first.get_or_insert((y, learning_rates));
    }
    Ok(match first {
        Some((y, learning_rates)) => AtTarget::Interpolated { y, learning_rates, crossings },
        None => AtTarget::NotBracketed {
            min: points.iter().map(|p| p.log_ratio).fold(f64::INFINITY, f64::min),
            max: points.iter().map(|p| p.log_ratio).fold(f64::NEG_INFINITY, f64::max),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[(f64, f64, f64)]) -> Vec<Point> {
        values
            .iter()
            .map(|&(learning_rate, log_ratio, y)| Point { learning_rate, log_ratio, y })
            .collect()
    }

    #[test]
    fn the_metric_is_interpolated_between_neighbours() {
        let runs = points(&[(1e-5, 0.0, 0.5), (1e-4, -0.2, 0.6), (1e-3, -0.6, 0.8)]);
        let Ok(AtTarget::Interpolated { y, learning_rates, crossings }) = at_target(&runs, -0.3)
        else {
            panic!("not interpolated")
        };
        // 0.6 + (0.1 / 0.4)·0.2
        assert!((y - 0.65).abs() < 1e-12);
        assert_eq!((learning_rates, crossings), ((1e-4, 1e-3), 1));
    }

    #[test]
    fn a_target_outside_the_ratios_is_not_extrapolated() {
        let runs = points(&[(1e-5, 0.0, 0.5), (1e-4, -0.2, 0.6)]);
        let outside = AtTarget::NotBracketed { min: -0.2, max: 0.0 };
        assert_eq!(at_target(&runs, -0.3), Ok(outside));
        assert_eq!(at_target(&runs, 0.1), Ok(outside));
    }

    #[test]
    fn the_first_of_several_crossings_is_used() {
        let runs = points(&[(1.0, 0.0, 0.0), (2.0, -1.0, 1.0), (3.0, 0.0, 5.0), (4.0, -1.0, 7.0)]);
        assert_eq!(
            at_target(&runs, -0.5),
            Ok(AtTarget::Interpolated { y: 0.5, learning_rates: (1.0, 2.0), crossings: 3 })
        );
    }

    #[test]
    fn a_run_at_the_target_is_one_crossing() {
        let runs = points(&[(1.0, 0.0, 0.0), (2.0, -1.0, 1.0), (3.0, -1.0, 2.0), (4.0, -2.0, 3.0)]);
        let exact = AtTarget::Interpolated { y: 1.0, learning_rates: (2.0, 2.0), crossings: 1 };
        assert_eq!(at_target(&runs, -1.0), Ok(exact));
        assert_eq!(at_target(&runs[1..2], -1.0), Ok(exact));
    }

    #[test]
    fn points_in_the_wrong_order_and_missing_numbers_are_refused() {
        let runs = points(&[(2.0, 0.0, 0.0), (2.0, -1.0, 1.0)]);
        assert_eq!(at_target(&runs, -0.5), Err(InterpolationError::Unsorted(1)));
        assert_eq!(at_target(&[], 0.0), Err(InterpolationError::Empty));
        assert_eq!(at_target(&runs, f64::NAN), Err(InterpolationError::NotFinite(None)));
        let broken = points(&[(1.0, 0.0, f64::NAN)]);
        assert_eq!(at_target(&broken, 0.0), Err(InterpolationError::NotFinite(Some(0))));
    }
}
