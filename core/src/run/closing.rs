//! The closing lines that a run prints. They warn if pairs were left out of the loss, or if the
//! model does not seem to have learned anything.

use std::path::Path;

use serde_json::Value;

use super::record::LEFT_OUT;
use crate::config::TrainConfig;
use crate::error::{Context, Result};
use crate::eval::Table;

/// The loss and the margin are only checked in runs with at least this many steps. In shorter runs,
/// there are too few pairs for a comparison.
const FEWEST_STEPS: usize = 4;
/// The run warns if the mean margin changes by less than this value. Its unit is the same as for
/// `rewards/margins`: nats times β.
const SMALLEST_MARGIN: f64 = 1e-3;

/// The history of a training run: loss and margin at each step, and the number of pairs left out of
/// the loss.
#[derive(Debug, Default, PartialEq)]
pub struct History {
    losses: Vec<f64>,
    margins: Vec<f64>,
    left_out: usize,
    seen: usize,
    lacking: Option<&'static str>,
    validation: Vec<String>,
}

impl History {
    /// Reads the losses and margins from `metrics.jsonl` in `folder`. `seen` is the number of pairs
    /// that the run has trained on, counted once per epoch. `lacking` describes what the left-out
    /// pairs lack; see [`Partial::lacking`](crate::api::Partial::lacking). `validation` contains
    /// the closing lines about the validations.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn read(
        folder: &Path,
        seen: usize,
        lacking: Option<&'static str>,
        validation: Vec<String>,
    ) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path)
            .within(|| format!("cannot read `{}`", path.display()))?;
        let lines: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let all = |name: &str| -> Vec<f64> {
            lines.iter().filter_map(|l| l.get(name)?.as_f64()).collect()
        };
        let left_out = all(LEFT_OUT).into_iter().sum::<f64>() as usize;
        Ok(Self {
            losses: all("loss"),
            margins: all("rewards/margins"),
            left_out,
            seen,
            lacking,
            validation,
        })
    }

    /// Returns the run's closing lines: the outcome of the validations, the number of pairs left
    /// out of the loss, and warnings if the model does not seem to have learned anything. `table`
    /// contains the results of the evaluation. Its margin is more precise than the margins of the
    /// last steps.
    pub fn verdict(&self, train: &TrainConfig, table: Option<&Table>) -> Vec<String> {
        let mut lines = self.validation.clone();
        if let (Some(lacking), true) = (self.lacking, self.left_out > 0) {
            let nothing = if self.left_out == self.seen { ", so nothing was trained" } else { "" };
            lines.push(format!(
                "warning: {} of the {} pairs seen were left out of the \
                loss{nothing}: each has {lacking}",
                self.left_out, self.seen
            ));
        }
        if let Some((first, last)) = ends(&self.losses).filter(|(first, last)| last >= first) {
            lines.push(format!(
                "warning: the loss did not decrease: it was {first:.4}, then {last:.4} \
                    (means over the first and the last quarter of {} steps, at `train.lr` = {})",
                self.losses.len(),
                train.lr
            ));
        }
        lines.extend(self.still_margin(train, table));
        lines
    }

    /// Returns a warning if the margin is known and did not move.
    fn still_margin(&self, train: &TrainConfig, table: Option<&Table>) -> Option<String> {
        let trained_on = train.split.split(['[', '+']).next().unwrap_or_default();
        let gain = table.and_then(|t| {
            t.splits.iter().find(|s| s.split == trained_on)?.change.as_ref()?.margin_gain
        });
        if let Some(gain) = gain {
            let changed = format!(
                "warning: the margin did not move on `{trained_on}`: log p(chosen) − log \
                    p(rejected) changed by {:+.3} nats",
                gain.value
            );
            match gain.interval() {
                Some((low, high)) if low <= 0.0 && high >= 0.0 => {
                    return Some(format!(
                        "{changed}, with a 95 % interval of {low:+.3} to {high:+.3}"
                    ));
                }
                None if gain.value == 0.0 => return Some(changed),
                Some(_) => return None,
                // Without an interval, compare the margins of the first and the last steps.
                None => {}
            }
        }
        let (first, last) = ends(&self.margins)?;
        ((last - first).abs() < SMALLEST_MARGIN).then(|| {
            format!(
                "warning: the margin did not move: `rewards/margins` was {first:.5}, then \
                    {last:.5} (means over the first and the last quarter of the steps)"
            )
        })
    }
}

/// Returns the means over the first and the last quarter of `values`, or `None` if there are too
/// few values.
fn ends(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < FEWEST_STEPS {
        return None;
    }
    let quarter = values.len().div_ceil(4);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    Some((mean(&values[..quarter]), mean(&values[values.len() - quarter..])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Score;
    use crate::eval::statistics::{Change, Clusters, Metric, SplitSummary};
    use crate::statistics::NoInterval;

    fn of(losses: &[f64], margins: &[f64]) -> History {
        History { losses: losses.to_vec(), margins: margins.to_vec(), ..History::default() }
    }

    fn table(low: f64, value: f64, high: f64) -> Table {
        with_gain(Metric { value, low: Some(low), high: Some(high), no_interval: None })
    }

    fn with_gain(gain: Metric) -> Table {
        let change = Some(Change { margin_gain: Some(gain), ..Change::default() });
        let none = SplitSummary::of_base("train", "", &[], &Clusters::default(), Score::Mean);
        Table::new("t", vec![SplitSummary { change, ..none }])
    }

    #[test]
    fn a_run_warns_if_its_loss_ends_no_lower_than_it_began() {
        let verdict = |losses: &[f64]| of(losses, &[]).verdict(&TrainConfig::default(), None);
        assert!(verdict(&[0.9, 0.7, 0.6, 0.5, 0.5, 0.4, 0.4, 0.3]).is_empty());
        let rising = verdict(&[0.6, 0.8, 9.0, 0.1, 0.1, 9.0, 0.7, 0.9]);
        assert!(
            rising[0].contains("the loss did not decrease: it was 0.7000, then 0.8000 (means"),
            "{rising:?}"
        );
        assert_eq!(verdict(&[1.0; 8]).len(), 1);
        // One noisy step does not cause a warning, and three steps are too few to compare.
        assert!(verdict(&[0.1, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]).is_empty());
        assert!(verdict(&[1.0, 2.0, 3.0]).is_empty());
    }

    #[test]
    fn a_run_warns_if_its_margin_did_not_move() {
        let falling = [0.9, 0.8, 0.7, 0.6];
        let verdict = |margins: &[f64], table: Option<&Table>| {
            of(&falling, margins).verdict(&TrainConfig::default(), table)
        };
        assert!(
            verdict(&[0.0, 0.0001, 0.0003, 0.0005], None)[0]
                .contains("the margin did not move: `rewards/margins` was 0.00000, then 0.00050")
        );
        assert!(verdict(&[0.0, 0.1, 0.2, 0.3], None).is_empty());
        // An evaluation's margin replaces the margins of the steps.
        assert!(verdict(&[0.0; 4], Some(&table(0.2, 0.3, 0.4))).is_empty());
        assert!(verdict(&[], Some(&table(0.0, 0.0, 0.0)))[0].contains("did not move on `train`"));
        assert!(
            verdict(&[0.0, 0.1, 0.2, 0.3], Some(&table(-0.1, 0.3, 0.4)))[0]
                .contains("+0.300 nats, with a 95 % interval of -0.100 to +0.400")
        );
    }

    #[test]
    fn without_an_interval_the_margins_of_the_steps_are_compared() {
        let few = Some(NoInterval::FewClusters);
        let of = |value, margins: &[f64]| {
            let gain = Metric { value, low: None, high: None, no_interval: few };
            of(&[], margins).verdict(&TrainConfig::default(), Some(&with_gain(gain)))
        };
        assert!(of(0.3, &[0.0, 0.1, 0.2, 0.3]).is_empty());
        assert!(of(0.3, &[0.0; 4])[0].contains("`rewards/margins` was"));
        assert!(of(0.0, &[0.0, 0.1, 0.2, 0.3])[0].ends_with("changed by +0.000 nats"));
    }

    #[test]
    fn the_closing_lines_give_the_number_of_left_out_pairs() {
        let history = History {
            left_out: 4,
            seen: 44,
            lacking: Some("no preference direction"),
            ..History::default()
        };
        let verdict = |history: &History| history.verdict(&TrainConfig::default(), None);
        assert_eq!(
            verdict(&history),
            ["warning: 4 of the 44 pairs seen were left out of the loss: each has no \
                    preference direction"]
        );
        assert!(verdict(&History { left_out: 0, ..history }).is_empty());
    }
}
