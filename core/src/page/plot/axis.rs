//! Axes: their range and their ticks.

use crate::results::number;

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Title with the unit.
    pub title: String,
    /// Positions and labels of the ticks.
    pub ticks: Vec<(f64, String)>,
}

/// Ticks of a logarithmic axis that covers more than a factor of 2, for one decade.
const DECADE: [f64; 4] = [1.0, 2.0, 3.0, 5.0];

impl Axis {
    /// Creates a linear axis that contains all finite values, with about `ticks` ticks at round
    /// numbers. The range is extended to the outer ticks.
    pub fn linear(title: &str, values: impl IntoIterator<Item = f64>, ticks: usize) -> Self {
        let (low, high) = range(values);
        let step = round_step((high - low) / ticks as f64);
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let digits = digits(step);
        let count = (last - first).round() as usize;
        let ticks = (0..=count)
            .map(|i| (first + i as f64) * step)
            .map(|v| (v, number(v, digits)))
            .collect();
        let (low, high) = (first * step, last * step);
        Self { low, high, log: false, title: title.to_owned(), ticks }
    }

    /// Creates a logarithmic axis that contains all values. Values must be greater than 0; others
    /// are ignored.
    pub fn log(title: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values.into_iter().filter(|v| *v > 0.0).map(f64::ln));
        let space = 0.06 * (high - low);
        let (low, high) = (low - space, high + space);
        let inside = |v: &f64| (low..=high).contains(&v.ln());
        let candidates: Vec<f64> = if high - low < 2f64.ln() {
            let (a, b) = (low.exp(), high.exp());
            let step = round_step((b - a) / 5.0);
            let first = (a / step).floor();
            (0..12).map(|i| (first + f64::from(i)) * step).filter(inside).collect()
        } else {
            (-12..12).flat_map(|k| DECADE.map(|d| d * 10f64.powi(k))).filter(inside).collect()
        };
        let mut axis = Self { low, high, log: true, title: title.to_owned(), ticks: Vec::new() };
        // Leave out ticks whose labels would overlap.
        let mut last = f64::NEG_INFINITY;
        for v in candidates {
            if axis.at(v) - last >= 0.13 {
                last = axis.at(v);
                axis.ticks.push((v, label(v)));
            }
        }
        axis
    }

    /// Position of a value on the axis, from 0 to 1.
    pub fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.ln() } else { value };
        (value - self.low) / (self.high - self.low)
    }

    /// Both ends of a linear axis.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// True if a value lies on the axis.
    pub fn contains(&self, value: f64) -> bool {
        (-1e-9..=1.0 + 1e-9).contains(&self.at(value))
    }
}

/// The range of the finite values, which is never empty.
fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .into_iter()
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    // Differences below this size are rounding errors.
    let size = low.abs().max(high.abs()).max(1e-3);
    if high - low < 1e-6 * size { (low - 0.1 * size, high + 0.1 * size) } else { (low, high) }
}

/// Rounds a step up to 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// Digits after the point that a step needs.
fn digits(step: f64) -> usize {
    (-step.log10().floor()).max(0.0) as usize
}

/// Formats a tick of a logarithmic axis.
fn label(v: f64) -> String {
    let text = format!("{v:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_that_contain_all_values() {
        let axis = Axis::linear("", [0.37, 0.81], 5);
        let labels: Vec<&str> = axis.ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(labels, ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]);
        assert!((axis.at(0.6) - 0.5).abs() < 1e-9);
        let axis = Axis::linear("", [-12.0, 31.0, f64::NAN], 5);
        let labels: Vec<&str> = axis.ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!(labels, ["−20", "−10", "0", "10", "20", "30", "40"]);
    }

    #[test]
    fn degenerate_ranges_still_give_an_axis() {
        for values in [vec![], vec![2.0], vec![f64::NAN], vec![0.0, 0.0]] {
            for axis in [Axis::linear("", values.clone(), 4), Axis::log("", values.clone())] {
                assert!(axis.at(1.0).is_finite() && axis.high > axis.low, "{axis:?}");
            }
        }
    }

    #[test]
    fn logarithmic_axes_have_ticks_at_readable_ratios() {
        let labels = |values: [f64; 2]| -> Vec<String> {
            Axis::log("", values).ticks.into_iter().map(|t| t.1).collect()
        };
        assert_eq!(labels([0.1, 1.0]), ["0.1", "0.2", "0.3", "0.5", "1"]);
        assert_eq!(labels([0.85, 1.05]), ["0.85", "0.9", "0.95", "1", "1.05"]);
    }
}
