//! The last lines of a run, which warn if pairs did not count in the loss or if nothing seems to
//! have been learnt.

use std::path::Path;

use serde_json::Value;

use super::record::LEFT_OUT;
use crate::config::TrainConfig;
use crate::error::{Context, Result};
use crate::eval::Table;

/// Runs with fewer steps are not judged. Their first and last steps are on different pairs and
/// cannot be compared.
const FEWEST_STEPS: usize = 4;
/// The margin did not move if its mean changes by less than this, in the units of
/// `rewards/margins`: nats times β.
const SMALLEST_MARGIN: f64 = 1e-3;

/// The course of a training run: its loss and margin at each step, and how many pairs did not count
/// in the loss.
#[derive(Debug, Default, PartialEq)]
pub struct Course {
    losses: Vec<f64>,
    margins: Vec<f64>,
    left_out: usize,
    seen: usize,
    lacking: Option<&'static str>,
    validation: Vec<String>,
}

impl Course {
    /// Reads the course from `metrics.jsonl` in `folder`. `seen` is the number of pairs that the
    /// run saw, `lacking` is as in [`Partial::lacking`](crate::api::Partial::lacking), and
    /// `validation` is the outcome of the validations in lines.
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

    /// The run's last lines: the outcome of the validations, how many pairs did not count, and
    /// warnings if nothing seems to have been learnt. `table` is that of the run's evaluation,
    /// which measures the margin better than the last steps do.
    pub fn verdict(&self, train: &TrainConfig, table: Option<&Table>) -> Vec<String> {
        let mut lines = self.validation.clone();
        if let (Some(lacking), true) = (self.lacking, self.left_out > 0) {
            let nothing = if self.left_out == self.seen { ", so nothing was trained" } else { "" };
            lines.push(format!(
                "warning: {} of the {} pairs seen did not count in the \
                loss{nothing}: each has {lacking}",
                self.left_out, self.seen
            ));
        }
        if let Some((first, last)) = ends(&self.losses).filter(|(first, last)| last >= first) {
            lines.push(format!(
                "warning: the loss ended no lower than it began: {first:.4}, then {last:.4} \
                    (means over the first and the last quarter of {} steps, at `train.lr` = {})",
                self.losses.len(),
                train.lr
            ));
        }
        lines.extend(self.still_margin(train, table));
        lines
    }

    /// The warning that the margin did not move; `None` if it did, or if it is not known.
    fn still_margin(&self, train: &TrainConfig, table: Option<&Table>) -> Option<String> {
        let trained_on = train.split.split(['[', '+']).next().unwrap_or_default();
        let gain = table.and_then(|t| {
            t.splits.iter().find(|s| s.split == trained_on)?.change.as_ref()?.margin_gain
        });
        if let Some(gain) = gain {
            return (gain.low <= 0.0 && gain.high >= 0.0).then(|| {
                format!(
                    "warning: the margin did not move on `{trained_on}`: log p(chosen) − log \
                        p(rejected) changed by {:+.3} nats, with a 95 % interval of {:+.3} to \
                        {:+.3}",
                    gain.value, gain.low, gain.high
                )
            });
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

/// The means over the first and the last quarter; `None` if there are too few values.
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
    use crate::eval::statistics::{Change, Estimate, SplitSummary};

    fn of(losses: &[f64], margins: &[f64]) -> Course {
        Course { losses: losses.to_vec(), margins: margins.to_vec(), ..Course::default() }
    }

    fn table(low: f64, value: f64, high: f64) -> Table {
        let gain = Some(Estimate { value, low, high });
        let change = Some(Change {
            accuracy: None,
            ratio: None,
            points: None,
            margin_gain: gain,
            perplexity_ratio: None,
        });
        Table::new(
            "t",
            vec![SplitSummary {
                split: "train".into(),
                data: String::new(),
                n: 9,
                dropped: 0,
                truncated: 0,
                not_finite: 0,
                base_accuracy: None,
                change,
            }],
        )
    }

    #[test]
    fn a_run_warns_if_its_loss_ends_no_lower_than_it_began() {
        let said = |losses: &[f64]| of(losses, &[]).verdict(&TrainConfig::default(), None);
        assert!(said(&[0.9, 0.7, 0.6, 0.5, 0.5, 0.4, 0.4, 0.3]).is_empty());
        let rising = said(&[0.6, 0.8, 9.0, 0.1, 0.1, 9.0, 0.7, 0.9]);
        assert!(
            rising[0].contains("no lower than it began: 0.7000, then 0.8000 (means"),
            "{rising:?}"
        );
        assert_eq!(said(&[1.0; 8]).len(), 1);
        // One noisy step at an end is not the run, and three steps are too few to judge.
        assert!(said(&[0.1, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]).is_empty());
        assert!(said(&[1.0, 2.0, 3.0]).is_empty());
    }

    #[test]
    fn a_run_warns_if_its_margin_did_not_move() {
        let falling = [0.9, 0.8, 0.7, 0.6];
        let said = |margins: &[f64], table: Option<&Table>| {
            of(&falling, margins).verdict(&TrainConfig::default(), table)
        };
        assert!(
            said(&[0.0, 0.0001, 0.0003, 0.0005], None)[0]
                .contains("the margin did not move: `rewards/margins` was 0.00000, then 0.00050")
        );
        assert!(said(&[0.0, 0.1, 0.2, 0.3], None).is_empty());
        // The evaluation is the better judge.
        assert!(said(&[0.0; 4], Some(&table(0.2, 0.3, 0.4))).is_empty());
        assert!(said(&[], Some(&table(0.0, 0.0, 0.0)))[0].contains("did not move on `train`"));
        assert!(
            said(&[0.0, 0.1, 0.2, 0.3], Some(&table(-0.1, 0.3, 0.4)))[0]
                .contains("+0.300 nats, with a 95 % interval of -0.100 to +0.400")
        );
    }

    #[test]
    fn pairs_that_did_not_count_are_counted() {
        let course = Course {
            left_out: 4,
            seen: 44,
            lacking: Some("no preference direction"),
            ..Course::default()
        };
        let said = |course: &Course| course.verdict(&TrainConfig::default(), None);
        assert_eq!(
            said(&course),
            ["warning: 4 of the 44 pairs seen did not count in the loss: each has no \
                    preference direction"]
        );
        assert!(said(&Course { left_out: 0, ..course }).is_empty());
    }
}
